"""Gradient matching loss L_gm: what keeps the copy learnable for the authorised network (Eq. 5, 6, 12)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from uge.learning.objectives import full_precision

Reduction = Literal["batch", "sample"]
Layout = Literal["layer", "flat"]

_TINY = 1e-8
_NEGLIGIBLE = 1e-3


def gradient_matching(
    networks: Sequence[nn.Module],
    x: Tensor,
    x_u: Tensor,
    y: Tensor,
    *,
    reduction: Reduction = "batch",
    layout: Layout = "layer",
) -> Tensor:
    """L_gm = mean over networks of Dist[∇_θ L(f(x), y), ∇_θ L(f(x_u), y)], Dist = 1 - cosine (Eq. 5, 6, 12).

    Eq. 6 is written per sample; in practice gradients are those of a mini-batch. Both
    readings are here.

    Args:
        networks: Each at one snapshot θ_t of its trajectory. Nothing in them changes: neither
            parameters nor their ``requires_grad``, running statistics or modes. All parameters
            count, those that do not require a gradient too.
        x: Clean pixels in [0, 1], batch × channels × height × width.
        x_u: Protected pixels, the same shape; the loss is differentiable in them.
        y: int64 labels.
        reduction: ``"batch"``: one gradient of the mean loss, batch norm in training mode.
            ``"sample"``: one gradient per image, batch norm in eval mode (batch statistics
            have no meaning for one image), never in bf16; the mean distance is returned.
        layout: ``"layer"``: one cosine per parameter tensor, averaged over those whose clean
            gradient is at least a thousandth of the largest; ``"flat"``: one cosine over all.

    Returns:
        A scalar in [0, 2].
    """
    gradients = _batch_gradients if reduction == "batch" else _sample_gradients
    distance = _layer_distance if layout == "layer" else _flat_distance
    losses = []
    for network in networks:
        with torch.enable_grad():
            clean = [g.detach() for g in gradients(network, x, y, False)]
            losses.append(distance(clean, gradients(network, x_u, y, True)))
    return torch.stack(losses).mean()


def _batch_gradients(network: nn.Module, x: Tensor, y: Tensor, differentiable: bool) -> list[Tensor]:
    """∇_θ of the mean loss: one tensor of shape (1, size) per parameter."""
    # Leaves of their own, so that the network's parameters keep their requires_grad.
    leaves = {name: p.detach().requires_grad_(True) for name, p in network.named_parameters()}
    with still_statistics(network, training=True):
        loss = F.cross_entropy(full_precision(functional_call(network, leaves, (x,))), y)
        found = torch.autograd.grad(
            loss, list(leaves.values()), create_graph=differentiable, allow_unused=True, materialize_grads=True
        )
    return [g.reshape(1, -1) for g in found]


def _sample_gradients(network: nn.Module, x: Tensor, y: Tensor, differentiable: bool) -> list[Tensor]:
    """∇_θ of every image's loss: one tensor of shape (batch, size) per parameter."""
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    buffers = dict(network.named_buffers())

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(network, (values, buffers), (image[None],))
        return F.cross_entropy(full_precision(logits), label[None])

    # In full precision: under vmap, batch norm in eval mode cannot mix bf16 activations with fp32 statistics.
    with still_statistics(network, training=False), torch.autocast(x.device.type, enabled=False):
        per_sample: Callable[..., dict[str, Tensor]] = vmap(grad(loss), in_dims=(None, 0, 0))
        found = per_sample(parameters, x, y)
    return [g.reshape(len(x), -1) for g in found.values()]


def _layer_distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    # The gradient of a bias in front of batch norm is zero but for rounding, and so has no direction.
    norms = torch.stack([g.norm() for g in a])
    kept = (norms > _NEGLIGIBLE * norms.max()).tolist()
    pairs = [pair for pair, keep in zip(zip(a, b, strict=True), kept, strict=True) if keep] or list(
        zip(a, b, strict=True)
    )
    return torch.stack([1 - F.cosine_similarity(g, h, dim=1, eps=_TINY) for g, h in pairs]).mean()


def _flat_distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return (1 - F.cosine_similarity(torch.cat(a, 1), torch.cat(b, 1), dim=1, eps=_TINY)).mean()


@contextlib.contextmanager
def still_statistics(network: nn.Module, *, training: bool) -> Iterator[None]:
    """Train or eval mode inside the block, with running statistics left as they are."""
    before = [(module, module.training) for module in network.modules()]
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    tracking = [norm.track_running_stats for norm in norms]
    network.train(training)
    if training:
        for norm in norms:
            norm.track_running_stats = False  # Batch statistics are used, and nothing is recorded.
    try:
        yield
    finally:
        for norm, tracked in zip(norms, tracking, strict=True):
            norm.track_running_stats = tracked
        for module, mode in before:
            module.training = mode
