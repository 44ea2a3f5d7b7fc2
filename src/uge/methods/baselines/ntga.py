"""NTGA: neural tangent generalisation attack, on the kernel of an infinitely wide network (Yuan and Wu, ICML 2021).

One fault of the original code is not copied: each of its ten sign steps starts again from the clean image, with the
length of the whole budget, so that they are worth one. Here each goes on from the present δ.

A kernel takes two sets of images and gives one value for each pair: the inner product of the gradients of a network in
all its parameters at two images, in the limit of infinite width (Jacot, Gabriel and Hongler, NeurIPS 2018;
convolutions without pooling: Novak et al., ICLR 2019, and Arora et al., NeurIPS 2019). No network is drawn. NTGA was
published with the two kernels :func:`fnn` and :func:`cnn`.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from uge.data.loader import Batch, epoch_order, fetch
from uge.data.store import Records
from uge.errors import UsageError
from uge.methods.baselines.base import PUBLISHED_RHO, Baseline, Material, Settings
from uge.methods.baselines.surrogate import sign_steps
from uge.runtime import stream

WEIGHTS = 1.76  # Variance of a weight, times its fan-in, as published.
BIASES = 0.18  # Variance of a bias, as published.
WINDOW = 5  # Side of the convolutions' windows, as published.
STRIDE = 2

Kernel = Callable[[Tensor, Tensor], Tensor]
"""From n and m images in [0, 1] (count × channels × size × size) to n × m values; differentiable in both."""


class Layer(NamedTuple):
    """Covariances of two sets of images at one layer, at each of P places (one after a flattening).

    Attributes:
        cross: Covariance of a unit's value at two images, P × n × m.
        first: Variance of a unit's value at each of the n images, P × n × 1.
        second: The same at the m images, P × 1 × m.
        tangent: The tangent kernel so far, P × n × m.
    """

    cross: Tensor
    first: Tensor
    second: Tensor
    tangent: Tensor


def fnn(x: Tensor, z: Tensor) -> Tensor:
    """Kernel of five dense layers, an error function after each; the last is the output, as in the original code."""
    layer = _inputs(x.flatten(1)[..., None], z.flatten(1)[..., None])
    for _ in range(5):
        layer = erf(dense(layer))
    return layer.tangent[0]


def cnn(x: Tensor, z: Tensor) -> Tensor:
    """Kernel of two convolutions (5 × 5, stride 2, ReLU after each) and three dense layers without activations."""
    layer = relu(dense(_inputs(_patches(x), _patches(z))))
    side = -(-x.shape[-1] // STRIDE)
    layer = relu(dense(Layer(*(average(values, side) for values in layer))))
    layer = Layer(*(values.mean(0, keepdim=True) for values in layer))
    for _ in range(3):
        layer = dense(layer)
    return layer.tangent[0]


def _inputs(x: Tensor, z: Tensor) -> Layer:
    # Covariances before any layer; x and z are count × values × places.
    cross = x.permute(2, 0, 1) @ z.permute(2, 1, 0) / x.shape[1]
    first, second = (images.permute(2, 0, 1).square().mean(2) for images in (x, z))
    return Layer(cross, first[:, :, None], second[:, None], torch.zeros_like(cross))


def dense(layer: Layer) -> Layer:
    """Apply the weights and biases of a dense layer, or of a convolution after :func:`average`."""
    cross, first, second = (WEIGHTS * values + BIASES for values in (layer.cross, layer.first, layer.second))
    return Layer(cross, first, second, cross + WEIGHTS * layer.tangent)


def relu(layer: Layer) -> Layer:
    """Apply a ReLU: the arc-cosine kernels of Cho and Saul (NeurIPS 2009)."""
    norm = (layer.first * layer.second).sqrt()
    # For an image and itself the angle has no derivative, and the values that depend on it do not change.
    most = 1 - 8 * torch.finfo(norm.dtype).eps
    cosine = (layer.cross / norm).clamp(-most, most)
    angle = math.pi - torch.acos(cosine)
    cross = norm * ((1 - cosine.square()).sqrt() + angle * cosine) / (2 * math.pi)
    return Layer(cross, layer.first / 2, layer.second / 2, layer.tangent * angle / (2 * math.pi))


def erf(layer: Layer) -> Layer:
    """Apply an error function: the arc-sine kernel of Williams (1997)."""
    norm = (1 + 2 * layer.first) * (1 + 2 * layer.second)
    derivative = 4 / math.pi / (norm - 4 * layer.cross.square()).sqrt()
    first, second = (2 / math.pi * torch.asin(2 * values / (1 + 2 * values)) for values in (layer.first, layer.second))
    return Layer(2 / math.pi * torch.asin(2 * layer.cross / norm.sqrt()), first, second, layer.tangent * derivative)


def _edges(side: int) -> tuple[int, int]:
    # Numbers of zeros before and after, so that every second pixel is the middle of a window.
    total = max((-(-side // STRIDE) - 1) * STRIDE + WINDOW - side, 0)
    return total // 2, total - total // 2


def _patches(x: Tensor) -> Tensor:
    return F.unfold(F.pad(x, _edges(x.shape[-1]) * 2), WINDOW, stride=STRIDE)


def average(values: Tensor, side: int) -> Tensor:
    """Apply a convolution to a covariance: its mean over every window, side² × ... to (side / 2)² × ..."""
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
    growth: Tensor = _GrowthFunction.apply(train, time / targets.numel())  # type: ignore[no-untyped-call]
    return cross @ (growth @ targets)


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
        return torch.mm(vectors * phi, vectors.T)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        values, vectors, phi = ctx.saved_tensors
        apart = values[:, None] - values[None]
        near = apart.abs() <= 1e-5 * values.max().clamp(min=1e-30)
        middle = (values[:, None] + values[None]) / 2
        derivatives = torch.where(
            near,
            ctx.rate**2 * _growth_derivative(middle * ctx.rate),
            (phi[:, None] - phi[None]) / torch.where(near, 1.0, apart),
        )
        return vectors @ (derivatives * (vectors.T @ gradient @ vectors)) @ vectors.T, None


def _growth(z: Tensor) -> Tensor:  # (1 - exp(-z)) / z
    return torch.where(z < 1e-6, 1 - z / 2, -torch.expm1(-z) / z.clamp(min=1e-6))


def _growth_derivative(z: Tensor) -> Tensor:
    large = z.clamp(min=1e-3)
    return torch.where(z < 1e-3, -1 / 2 + z / 3 - z**2 / 8, ((1 + large) * torch.exp(-large) - 1) / large**2)


_NETWORKS: dict[str, tuple[Kernel, float]] = {
    "fnn": (fnn, 4096.0),
    "cnn": (cnn, 8.0),
}  # Kernel, and its best published time.


class NTGASettings(Settings):
    """Settings of NTGA: max over δ of the loss on held-out images that the NTK predicts. To scale down: ``steps``.

    Attributes:
        network: ``"fnn"`` (5 dense layers) or ``"cnn"`` (2 convolutions, 3 dense layers; forty times as slow).
        time: t of the prediction; by default 4096 and 8, the best that were published for CIFAR-10 (the original code's
            default is 64). The original code adds 1e-4 of the kernel's mean diagonal to it, which is left out here.
        loss: Loss of the predictions for the held-out images.
        block: Images that are perturbed together; there are at least two blocks.
        held_out: Clean images on which the loss is predicted: the same for all blocks, less the block's own.
        steps: Sign steps.
        step: Length of a sign step in 8-bit levels (published: 1.1 · 8/10).
        chunk: Images whose kernels are computed at once.
    """

    network: Literal["fnn", "cnn"] = "fnn"
    time: float | None = Field(None, gt=0)
    loss: Literal["cross-entropy", "mse"] = "cross-entropy"
    block: int = Field(512, ge=2)
    held_out: int = Field(512, ge=1)
    steps: int = Field(10, ge=1)
    step: float = Field(0.88, gt=0)
    chunk: int = Field(32, ge=1)


def kernels(kernel: Kernel, x: Tensor, held_out: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Kernels of a block of n images with itself, n × n, and of m held-out images with the block, m × n, float64.

    Args:
        kernel: Tangent kernel of the network.
        x: Pixels of the block in [0, 1].
        held_out: Clean pixels of other images in [0, 1].
        chunk: Images at once.
    """
    own = torch.cat([kernel(part, x).double() for part in torch.split(x, chunk)])
    cross = torch.cat([kernel(part, held_out).double() for part in torch.split(x, chunk)])
    return (own + own.T) / 2, cross.T  # Rounding alone makes it unsymmetric.


def block_gradient(
    kernel: Kernel, x: Tensor, held_out: Tensor, loss: Callable[[Tensor, Tensor], Tensor], *, chunk: int
) -> Tensor:
    """Gradient of a loss on held-out images in the pixels of a block.

    The gradients of the kernels come first. Then every chunk of images is differentiated through its own rows of the
    kernels, so that the graph of one chunk is in memory, never that of the block.

    Args:
        kernel: Tangent kernel of the network.
        x: Pixels of the block in [0, 1].
        held_out: Clean pixels of other images in [0, 1].
        loss: From the two :func:`kernels` to the loss.
        chunk: Images at once.
    """
    with torch.no_grad():
        values = kernels(kernel, x, held_out, chunk)
    train, cross = (value.requires_grad_(True) for value in values)
    by_train, by_cross = torch.autograd.grad(loss(train, cross), (train, cross))
    by_train = (by_train + by_train.T).to(x.dtype)
    by_cross = by_cross.T.to(x.dtype)
    gradients = list[Tensor]()
    for rows in torch.split(torch.arange(len(x)), chunk):
        part = x[rows].detach().requires_grad_(True)
        score = (kernel(part, x) * by_train[rows]).sum() + (kernel(part, held_out) * by_cross[rows]).sum()
        gradients += torch.autograd.grad(score, part)
    return torch.cat(gradients)


def held_out_loss(train: Tensor, cross: Tensor, targets: Tensor, labels: Tensor, settings: NTGASettings) -> Tensor:
    """Mean loss on held-out images of the predictions by :func:`flow`.

    Args:
        train: Kernel of the block with itself, n × n.
        cross: Kernel of the held-out images with the block, m × n.
        targets: Centred one-hot labels of the block, n × C, float64.
        labels: Labels of the held-out images.
        settings: Time of the prediction and loss.
    """
    predictions = flow(train, cross, targets, settings.time or _NETWORKS[settings.network][1])
    if settings.loss == "mse":
        return F.mse_loss(predictions, centred(labels, targets.shape[1]))
    return F.cross_entropy(predictions, labels)


def centred(labels: Tensor, classes: int) -> Tensor:
    """One-hot labels minus their mean 1/C, float64."""
    return F.one_hot(labels, classes).double() - 1 / classes


def blocks(count: int, settings: NTGASettings, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices (block, held-out): every image is in one block, and no image of a block is held out for it.

    All blocks share one held-out set, spread over the order; each leaves out its own images.

    Raises:
        UsageError: There are fewer than two images.
    """
    if count < 2:
        raise UsageError(f"the ntga baseline needs at least two images, one to hold out, got {count}; give more")
    order = epoch_order(count, stream(seed, "ntga", "order"))
    # Blocks with other held-out images move in other directions, and leave no common pattern for a hacker to learn.
    held_out = min(settings.held_out, count)
    common = order[torch.arange(held_out) * count // held_out]
    for block in torch.chunk(order, max(2, -(-count // settings.block))):
        others = common[~torch.isin(common, block)]
        yield block, others if len(others) else order[~torch.isin(order, block)][: settings.held_out]


def neural_tangent_attack(material: Material, settings: NTGASettings) -> Records:
    """Perturbations that raise the loss on held-out images after gradient flow on the perturbed block.

    Args:
        material: Images, budget, seed.
        settings: Kernel, blocks and steps.

    Raises:
        UsageError: There are fewer than two images.
    """
    store = material.store
    done = 0
    records = material.records()
    for block, held_out in blocks(len(store), settings, material.seed):
        delta = _block_perturbation(fetch(store, block), fetch(store, held_out), material, settings)
        records.write(block, material.stored(store.pixels.read(block), delta / 255))
        done += len(block)
        material.progress(done, len(store), {"gradients": float(done * settings.steps)})
    return records


def _block_perturbation(block: Batch, others: Batch, material: Material, settings: NTGASettings) -> Tensor:
    kernel, _ = _NETWORKS[settings.network]
    targets = centred(block.y, len(material.store.classes))

    def loss(train: Tensor, cross: Tensor) -> Tensor:
        return held_out_loss(train, cross, targets, others.y, settings)

    return sign_steps(
        block.x * 255,
        torch.zeros_like(block.x),
        lambda x: -block_gradient(kernel, x, others.x, loss, chunk=settings.chunk),
        steps=settings.steps,
        step=settings.step,
        bound=material.budget.levels,
    )


NTGA = Baseline(
    function=neural_tangent_attack,
    norm="Linf",
    rho=PUBLISHED_RHO,
    scope="sample",
    about="neural tangent generalisation attack (Yuan and Wu, ICML 2021)",
    settings=NTGASettings,
)
