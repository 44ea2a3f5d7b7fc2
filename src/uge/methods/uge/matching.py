"""Losses that keep the authorised network on its path: gradient matching L_gm (Eq. 5, 6, 12), and two of ours.

Gradient matching compares directions at one point of the path. Value matching L_vm compares what the network
computes from clean and from protected images there. Parameter matching L_pm compares where a few steps of training
lead from there (trajectory matching, Cazenavette et al., CVPR 2022): after one step it is the relative error of the
gradient, its length included; after several, curvature counts as well.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from uge.learning.objectives import full_precision
from uge.networks.head import last_layer

_NEGLIGIBLE = 1e-3
_TINY = 1e-8


def gradient_matching(
    networks: Sequence[nn.Module],
    x: Tensor,
    x_u: Tensor,
    y: Tensor,
    *,
    reduction: Literal["batch", "sample"] = "batch",
    layout: Literal["layer", "flat", "row"] = "layer",
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
            gradient is at least a thousandth of the largest; ``"flat"``: one cosine over all; ``"row"``: one cosine
            per output of every weight matrix or convolution, summed (Zhao et al., ICLR 2021), vectors left out.

    Returns:
        A scalar in [0, 2]; with ``"row"`` up to twice the number of rows.

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
        if layout == "row":
            shapes = [parameter.shape for parameter in network.parameters()]
            rows = [_rows(a, b, shape) for a, b, shape in zip(clean, protected, shapes, strict=True) if len(shape) > 1]
            losses.append(torch.cat(rows, 1).sum(1).mean())
            continue
        if layout == "flat":
            pairs = [(torch.cat(clean, 1), torch.cat(protected, 1))]
        else:
            pairs = _with_direction(clean, protected)
        losses.append(torch.stack([_distance(a, b) for a, b in pairs]).mean())
    return torch.stack(losses).mean()


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(a, b, dim=-1, eps=1e-8)


def _rows(clean: Tensor, protected: Tensor, shape: torch.Size) -> Tensor:
    # Distances of the rows of a weight, batch × rows.
    return _distance(*(gradient.reshape(len(gradient), shape[0], -1) for gradient in (clean, protected)))


def _batch_gradients(network: nn.Module, x: Tensor, y: Tensor, differentiable: bool) -> list[Tensor]:
    """∇_θ of the mean loss: one tensor of shape (1, size) per parameter."""
    return [gradient.reshape(1, -1) for gradient in _gradients(network, _leaves(network), x, y, differentiable)]


def _leaves(network: nn.Module) -> dict[str, Tensor]:
    # Leaves of their own, so that the network's parameters keep their requires_grad.
    return {name: parameter.detach().requires_grad_(True) for name, parameter in network.named_parameters()}


def _gradients(
    network: nn.Module, values: dict[str, Tensor], x: Tensor, y: Tensor, differentiable: bool
) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        F.cross_entropy(call_in_mode(network, values, x, training=True), y),
        list(values.values()),
        create_graph=differentiable,
        allow_unused=True,
        materialize_grads=True,
    )


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
    # The gradient of a bias in front of batch norm is zero but for rounding, and so has no direction.
    pairs = list(zip(clean, protected, strict=True))
    norms = torch.stack([gradient.norm() for gradient in clean])
    return [pairs[row] for row in (norms > _NEGLIGIBLE * norms.max()).nonzero()[:, 0].tolist()] or pairs


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

    Example:
        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 2))
        >>> x = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
        >>> value_matching([network], x, x).item()
        0.0
        >>> round(value_matching([network], x, x + 0.5).item(), 4)  # A shift by the standard deviation.
        1.0
    """
    losses = []
    for network in networks:
        with torch.no_grad():
            clean = _values(network, x)
        protected = _values(network, x_u)
        parts = [(b - a).square().sum() / (scale + _TINY) for (a, scale), (b, _) in zip(clean, protected, strict=True)]
        losses.append(torch.stack(parts).mean())
    return torch.stack(losses).mean()


def _values(network: nn.Module, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Values that are compared, each with the square that its differences are measured by, in full precision."""
    compared = list[tuple[Tensor, Tensor]]()

    def batch_statistics(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = full_precision(inputs[0])
        others = [axis for axis in range(values.dim()) if axis != 1]
        variance = values.var(others, correction=0)
        compared.extend([(values.mean(others), variance.sum()), ((variance + _TINY).sqrt(), variance.sum())])

    def outputs(activations: Tensor) -> None:
        values = full_precision(activations)
        compared.append((values, (values - values.mean(0)).square().sum()))

    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    hooks = [norm.register_forward_pre_hook(batch_statistics) for norm in norms]
    hooks.append(last_layer(network).register_forward_pre_hook(lambda _, inputs: outputs(inputs[0])))
    try:
        outputs(call_in_mode(network, {}, x, training=True))
    finally:
        for hook in hooks:
            hook.remove()
    return compared


def parameter_matching(
    networks: Sequence[nn.Module], x: Tensor, x_u: Tensor, y: Tensor, *, steps: int = 1, lr: float = 0.02
) -> Tensor:
    """L_pm = ‖θ_u - θ_c‖² / ‖θ_c - θ_t‖², mean over networks (Cazenavette et al., CVPR 2022).

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

    Example:
        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2, bias=False))
        >>> x, y = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([0])
        >>> parameter_matching([network], x, x, y).item()
        0.0
        >>> round(parameter_matching([network], x, 0 * x, y).item(), 4)  # Black images teach nothing.
        1.0
    """
    losses = []
    for network in networks:
        with torch.enable_grad():
            start = [parameter.detach() for parameter in network.parameters()]
            clean = [value.detach() for value in _trained(network, x, y, steps, lr, differentiable=False)]
            protected = _trained(network, x_u, y, steps, lr, differentiable=True)
        error = torch.stack([(b - a).square().sum() for a, b in zip(clean, protected, strict=True)]).sum()
        way = torch.stack([(a - s).square().sum() for s, a in zip(start, clean, strict=True)]).sum()
        losses.append(error / way.clamp_min(torch.finfo(way.dtype).tiny))
    return torch.stack(losses).mean()


def _trained(network: nn.Module, x: Tensor, y: Tensor, steps: int, lr: float, *, differentiable: bool) -> list[Tensor]:
    values = _leaves(network)
    shares = min(steps, max(len(y) // 2, 1))
    for pixels, labels in zip(x.tensor_split(shares), y.tensor_split(shares), strict=True):
        gradients = _gradients(network, values, pixels, labels, differentiable)
        moved = [value - lr * gradient for value, gradient in zip(values.values(), gradients, strict=True)]
        if not differentiable:
            moved = [value.detach().requires_grad_(True) for value in moved]
        values = dict(zip(values, moved, strict=True))
    return list(values.values())


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
