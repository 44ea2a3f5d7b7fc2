"""Two more ways to keep the authorised network on its path (ours): what it computes, and where it goes.

Gradient matching (Eq. 5) compares directions at one point of the path. Value matching compares what the network
computes from clean and from protected images there. Parameter matching compares where a few steps of training lead from
there (trajectory matching, Cazenavette et al., CVPR 2022): after one step it is the relative error of the gradient, its
length included; after several, curvature counts as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from uge.learning.objectives import full_precision
from uge.methods.uge.gradient_matching import still_statistics
from uge.networks.head import last_layer

_TINY = 1e-8


def value_matching(networks: Sequence[nn.Module], x: Tensor, x_u: Tensor) -> Tensor:
    """L_vm: relative squared differences of logits, features and batch statistics, mean over networks.

    Logits and features: ‖a_u - a‖² / ‖a - mean(a)‖², with the mean over the batch. The inputs of a batch norm, with
    the mean μ and the standard deviation σ of every channel over the batch: ‖μ_u - μ‖² / ‖σ‖² and ‖σ_u - σ‖² / ‖σ‖².
    The mean over all these parts counts.

    Args:
        networks: Each at one snapshot θ_t, with a last linear layer. They run in training mode and stay as they are.
        x: Clean pixels in [0, 1], batch × channels × height × width.
        x_u: Protected pixels, the same shape; the loss is differentiable in them.

    Returns:
        A scalar, at least 0; 1 where values differ as much as those of different images do.

    Raises:
        UsageError: A network has no linear layer.
    """
    losses = []
    for network in networks:
        with torch.no_grad():
            clean = _values(network, x)
        found = _values(network, x_u)
        parts = [(b - a).square().sum() / (scale + _TINY) for (a, scale), (b, _) in zip(clean, found, strict=True)]
        losses.append(torch.stack(parts).mean())
    return torch.stack(losses).mean()


def _values(network: nn.Module, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What is compared, each with the square that its differences are measured by, in full precision."""
    found = list[tuple[Tensor, Tensor]]()

    def batch_statistics(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        values = full_precision(given[0])
        others = [axis for axis in range(values.dim()) if axis != 1]
        variance = values.var(others, correction=0)
        found.extend([(values.mean(others), variance.sum()), ((variance + _TINY).sqrt(), variance.sum())])

    def outputs(values: Tensor) -> None:
        values = full_precision(values)
        found.append((values, (values - values.mean(0)).square().sum()))

    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    hooks = [norm.register_forward_pre_hook(batch_statistics) for norm in norms]
    hooks.append(last_layer(network).register_forward_pre_hook(lambda _, given: outputs(given[0])))
    try:
        with still_statistics(network, training=True):
            outputs(network(x))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def parameter_matching(
    networks: Sequence[nn.Module], x: Tensor, x_u: Tensor, y: Tensor, *, steps: int = 1, lr: float = 0.02
) -> Tensor:
    """L_pm = ‖θ_u - θ_c‖² / ‖θ_c - θ_t‖², mean over networks.

    θ_c and θ_u are where SGD without momentum leads from θ_t in ``steps`` steps, each on its share of the batch, with
    clean and with protected pixels.

    Args:
        networks: Each at one snapshot θ_t. They run in training mode and stay as they are.
        x: Clean pixels in [0, 1], batch × channels × height × width.
        x_u: Protected pixels, the same shape; the loss is differentiable in them.
        y: int64 labels.
        steps: At most half of the batch, so that every share has two images.
        lr: Learning rate of the steps. For one step it does not matter.

    Returns:
        A scalar, at least 0; about 1 for protected images that teach nothing.
    """
    losses = []
    for network in networks:
        with torch.enable_grad():
            start = [parameter.detach() for parameter in network.parameters()]
            clean = [value.detach() for value in _trained(network, x, y, steps, lr, differentiable=False)]
            found = _trained(network, x_u, y, steps, lr, differentiable=True)
            error = torch.stack([(b - a).square().sum() for a, b in zip(clean, found, strict=True)]).sum()
            way = torch.stack([(a - s).square().sum() for s, a in zip(start, clean, strict=True)]).sum()
            losses.append(error / way.clamp_min(torch.finfo(way.dtype).tiny))
    return torch.stack(losses).mean()


def _trained(network: nn.Module, x: Tensor, y: Tensor, steps: int, lr: float, *, differentiable: bool) -> list[Tensor]:
    names = [name for name, _ in network.named_parameters()]
    values = [parameter.detach().requires_grad_(True) for parameter in network.parameters()]
    shares = min(steps, max(len(y) // 2, 1))
    with still_statistics(network, training=True):
        for pixels, labels in zip(x.tensor_split(shares), y.tensor_split(shares), strict=True):
            logits = functional_call(network, dict(zip(names, values, strict=True)), (pixels,))
            loss = F.cross_entropy(full_precision(logits), labels)
            gradients = torch.autograd.grad(
                loss, values, create_graph=differentiable, allow_unused=True, materialize_grads=True
            )
            values = [value - lr * gradient for value, gradient in zip(values, gradients, strict=True)]
            if not differentiable:
                values = [value.detach().requires_grad_(True) for value in values]
    return values
