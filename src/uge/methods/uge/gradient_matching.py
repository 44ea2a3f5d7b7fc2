"""Gradient matching loss L_gm, which keeps the copy learnable for the authorised network (Eq. 5, 6, 12)."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from uge.learning.objectives import full_precision

_NEGLIGIBLE = 1e-3


def gradient_matching(
    networks: Sequence[nn.Module],
    x: Tensor,
    x_u: Tensor,
    y: Tensor,
    *,
    reduction: Literal["batch", "sample"] = "batch",
    layout: Literal["layer", "flat"] = "layer",
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

    Example:
        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2, bias=False))
        >>> x, y = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([0])
        >>> for x_u in (x, x / 2, x.flip(3)):  # The same direction, twice, and an orthogonal one.
        ...     print(round(gradient_matching([network], x, x_u, y).item(), 4) + 0.0)
        0.0
        0.0
        1.0
    """
    gradients = _batch_gradients if reduction == "batch" else _sample_gradients
    losses = []
    for network in networks:
        with torch.enable_grad():
            clean = [gradient.detach() for gradient in gradients(network, x, y, False)]
            protected = gradients(network, x_u, y, True)
        if layout == "flat":
            pairs = [(torch.cat(clean, 1), torch.cat(protected, 1))]
        else:
            pairs = _with_direction(clean, protected)
        distances = [1 - F.cosine_similarity(a, b, dim=1, eps=1e-8) for a, b in pairs]
        losses.append(torch.stack(distances).mean())
    return torch.stack(losses).mean()


def _batch_gradients(network: nn.Module, x: Tensor, y: Tensor, differentiable: bool) -> list[Tensor]:
    """∇_θ of the mean loss: one tensor of shape (1, size) per parameter."""
    # Leaves of their own, so that the network's parameters keep their requires_grad.
    leaves = {name: p.detach().requires_grad_(True) for name, p in network.named_parameters()}
    loss = F.cross_entropy(call_in_mode(network, leaves, x, training=True), y)
    gradients = torch.autograd.grad(
        loss, list(leaves.values()), create_graph=differentiable, allow_unused=True, materialize_grads=True
    )
    return [gradient.reshape(1, -1) for gradient in gradients]


def _sample_gradients(network: nn.Module, x: Tensor, y: Tensor, differentiable: bool) -> list[Tensor]:
    """∇_θ of every image's loss: one tensor of shape (batch, size) per parameter."""
    parameters = {name: p.detach() for name, p in network.named_parameters()}

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(call_in_mode(network, values, image[None], training=False), label[None])

    # In full precision: under vmap, batch norm in eval mode cannot mix bf16 activations with fp32 statistics.
    with torch.autocast(x.device.type, enabled=False):
        per_sample: Callable[..., dict[str, Tensor]] = vmap(grad(loss), in_dims=(None, 0, 0))
        gradients = per_sample(parameters, x, y)
    return [gradient.reshape(len(x), -1) for gradient in gradients.values()]


def _with_direction(clean: list[Tensor], protected: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pairs of gradients of the same parameter, without those whose clean gradient is negligible."""
    # The gradient of a bias in front of batch norm is zero but for rounding, and so has no direction.
    pairs = list(zip(clean, protected, strict=True))
    norms = torch.stack([gradient.norm() for gradient in clean])
    counted = (norms > _NEGLIGIBLE * norms.max()).tolist()
    return [pair for pair, counts in zip(pairs, counted, strict=True) if counts] or pairs


def call_in_mode(network: nn.Module, parameters: dict[str, Tensor], x: Tensor, *, training: bool) -> Tensor:
    """Logits of ``network`` with other parameters, in full precision; its mode and running statistics stay.

    Args:
        network: The network; parameters that are not named stay in use.
        parameters: Values by the names of parameters.
        x: Pixels in [0, 1], batch × channels × height × width.
        training: Train mode, with batch statistics, or eval mode.
    """
    modes = {module: module.training for module in network.modules()}
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}  # These record running statistics.
    network.train(training)
    try:
        return full_precision(functional_call(network, (parameters, buffers), (x,)))
    finally:
        for module, mode in modes.items():
            module.training = mode
