"""Tangent kernels of infinitely wide networks in closed form, and what training by them predicts.

A kernel takes two sets of images and gives one value for each pair: what the gradients of a network in all its
parameters have in common at two images, in the limit of infinite width (Jacot, Gabriel and Hongler, NeurIPS 2018;
convolutions without pooling: Novak et al., ICLR 2019, and Arora et al., NeurIPS 2019). No network is drawn. The two
here are those that NTGA was published with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHTS, BIASES = 1.76, 0.18
"""Variance of a weight, times its fan-in, and of a bias, as published."""
WINDOW, STRIDE = 5, 2
"""Of the convolutions, as published."""

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Of n and m images in [0, 1] (count × channels × size × size), n × m; differentiable in both."""


@dataclass(frozen=True)
class Layer:
    """What two sets of images have in common at one layer, at each of P places (one after a flattening).

    Attributes:
        cross: Covariance of a unit's value at two images, P × n × m.
        first: Its variance at each of the n images, P × n × 1.
        second: The same of the m images, P × 1 × m.
        tangent: The tangent kernel so far, P × n × m.
    """

    cross: Tensor
    first: Tensor
    second: Tensor
    tangent: Tensor


def fnn(x: Tensor, z: Tensor) -> Tensor:
    """Five dense layers, an error function after each; the last of them is the output, as in the original code."""
    layer = _inputs(x.flatten(1)[..., None], z.flatten(1)[..., None])
    for _ in range(5):
        layer = erf(dense(layer))
    return layer.tangent[0]


def cnn(x: Tensor, z: Tensor) -> Tensor:
    """Two convolutions of 5 × 5 and stride 2 with a ReLU after each, and three dense layers without activations."""
    layer, side = relu(dense(_inputs(_patches(x), _patches(z)))), -(-x.shape[-1] // STRIDE)
    layer = relu(dense(Layer(*(average(values, side) for values in vars(layer).values()))))
    layer = Layer(*(values.mean(0, keepdim=True) for values in vars(layer).values()))
    for _ in range(3):
        layer = dense(layer)
    return layer.tangent[0]


def _inputs(x: Tensor, z: Tensor) -> Layer:
    """Before any layer; x and z are count × values × places."""
    x, z = x.permute(2, 0, 1), z.permute(2, 0, 1)
    cross, values = x @ z.mT / x.shape[2], (x.square().mean(2), z.square().mean(2))
    return Layer(cross, values[0][:, :, None], values[1][:, None], torch.zeros_like(cross))


def dense(layer: Layer) -> Layer:
    """Weights and biases; of a convolution what comes after :func:`average`."""
    cross, first, second = (WEIGHTS * values + BIASES for values in (layer.cross, layer.first, layer.second))
    return Layer(cross, first, second, cross + WEIGHTS * layer.tangent)


def relu(layer: Layer) -> Layer:
    """The arc-cosine kernels of Cho and Saul (2009)."""
    norm = (layer.first * layer.second).sqrt()
    # An image and itself: the angle's derivative is not defined there, and what depends on it does not change.
    most = 1 - 8 * torch.finfo(norm.dtype).eps
    cosine = (layer.cross / norm).clamp(-most, most)
    angle = math.pi - torch.acos(cosine)
    cross = norm * ((1 - cosine.square()).sqrt() + angle * cosine) / (2 * math.pi)
    return Layer(cross, layer.first / 2, layer.second / 2, layer.tangent * angle / (2 * math.pi))


def erf(layer: Layer) -> Layer:
    """The arc-sine kernel of Williams (1997)."""
    norm = (1 + 2 * layer.first) * (1 + 2 * layer.second)
    derivative = 4 / math.pi / (norm - 4 * layer.cross.square()).sqrt()
    first, second = (2 / math.pi * torch.asin(2 * values / (1 + 2 * values)) for values in (layer.first, layer.second))
    return Layer(2 / math.pi * torch.asin(2 * layer.cross / norm.sqrt()), first, second, layer.tangent * derivative)


def _edges(side: int) -> tuple[int, int]:
    """Zeros before and after, so that every second pixel is the middle of a window."""
    total = max((-(-side // STRIDE) - 1) * STRIDE + WINDOW - side, 0)
    return total // 2, total - total // 2


def _patches(x: Tensor) -> Tensor:
    """The windows of images, count × values × places."""
    return F.unfold(F.pad(x, _edges(x.shape[-1]) * 2), WINDOW, stride=STRIDE)


def average(values: Tensor, side: int) -> Tensor:
    """What a convolution does to a covariance: its mean over every window, side² × ... to (side / 2)² × ..."""
    maps = values.reshape(side, side, *values.shape[1:])
    before, after = _edges(side)
    for axis in (0, 1):
        zeros = maps.new_zeros(1).expand(*maps.shape[:axis], 1, *maps.shape[axis + 1 :])
        maps = torch.cat([*[zeros] * before, maps, *[zeros] * after], axis).unfold(axis, WINDOW, STRIDE).mean(-1)
    return maps.flatten(0, 1)


def flow(train: Tensor, cross: Tensor, targets: Tensor, time: float) -> Tensor:
    """Predictions at time t of gradient flow on the mean squared error, from zero: K_* K⁻¹ (I - exp(-K t / nC)) Y.

    The loss is ½ of the mean over the n images and C outputs, so that the published times apply.

    Args:
        train: K of the training images, n × n, symmetric, without negative eigenvalues.
        cross: K_* of other images with them, m × n.
        targets: Y, n × C.
        time: t > 0.

    Returns:
        m × C; differentiable in ``train`` and ``cross``.
    """
    inverse: Tensor = _GrowthFunction.apply(train, time / targets.numel())  # type: ignore[no-untyped-call]
    predicted: Tensor = cross @ (inverse @ targets)
    return predicted


class _GrowthFunction(torch.autograd.Function):
    """φ(K) = K⁻¹ (I - exp(-K r)) of a symmetric matrix; its derivative by Daleckii and Krein.

    The derivative of an eigendecomposition is not defined where eigenvalues coincide; that of φ(K) is.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, rate: float) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        values = values.clamp(min=0)
        phi = rate * _growth(values * rate)
        ctx.save_for_backward(values, vectors, phi)
        ctx.rate = rate
        found: Tensor = (vectors * phi) @ vectors.T
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        values, vectors, phi = ctx.saved_tensors
        apart = values[:, None] - values[None]
        near = apart.abs() <= 1e-5 * values.max().clamp(min=1e-30)
        middle = (values[:, None] + values[None]) / 2
        derivatives = torch.where(
            near,
            ctx.rate**2 * _growth_slope(middle * ctx.rate),
            (phi[:, None] - phi[None]) / torch.where(near, 1.0, apart),
        )
        return vectors @ (derivatives * (vectors.T @ gradient @ vectors)) @ vectors.T, None


def _growth(z: Tensor) -> Tensor:
    """(1 - exp(-z)) / z."""
    return torch.where(z < 1e-6, 1 - z / 2, -torch.expm1(-z) / z.clamp(min=1e-6))


def _growth_slope(z: Tensor) -> Tensor:
    """Derivative of :func:`_growth`."""
    large = z.clamp(min=1e-3)
    return torch.where(z < 1e-3, -1 / 2 + z / 3 - z**2 / 8, ((1 + large) * torch.exp(-large) - 1) / large**2)
