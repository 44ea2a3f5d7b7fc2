"""What methods with a surrogate network share: steps of the network, sign steps of the perturbation, CPU settings.

Perturbations that are being optimised are counted in 8-bit levels, but need not be whole: published steps are
0.4/255, 0.8/255 and 1.6/255. Those that persist between visits are kept as int16 in hundredths of a level, which
holds all of these steps exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uge.data.loader import epoch_order
from uge.data.store import Records
from uge.errors import UsageError
from uge.learning.objectives import full_precision
from uge.methods.baselines.base import Material
from uge.networks import ImageClassifier, build
from uge.runtime import Runtime, stream, stream_seed

HUNDREDTHS = 100
"""Units of a persistent perturbation in one 8-bit level."""


@dataclass
class Surrogate:
    """A network that perturbations are computed on, and a count of the gradient evaluations that it cost.

    Attributes:
        network: Takes pixels in [0, 1], already at its place.
        runtime: Device and precision.
        optimizer: Of :meth:`train_step`.
        clip: Largest norm of a parameter gradient.
        gradients: Forward and backward passes so far, counted per image.
    """

    network: nn.Module
    runtime: Runtime
    optimizer: torch.optim.Optimizer | None = None
    clip: float = math.inf
    gradients: int = 0

    def logits(self, x: Tensor) -> Tensor:
        """Logits in fp32 of pixels in [0, 1], batch × channels × size × size, in the network's present mode."""
        with self.runtime.autocast():
            return full_precision(self.network(x.contiguous(memory_format=self.runtime.memory_format)))

    def train_step(self, x: Tensor, y: Tensor, *, lr: float | None = None) -> float:
        """One step of the parameters down the cross-entropy (batch norm in training mode); returns the loss.

        Args:
            x: Pixels in [0, 1].
            y: Labels.
            lr: Learning rate from now on, if it changes.

        Raises:
            UsageError: The loss is not finite.
        """
        assert self.optimizer is not None
        self.network.train()
        for group in self.optimizer.param_groups if lr is not None else ():
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.logits(x), y)
        value = loss.item()
        if not math.isfinite(value):
            raise UsageError(f"the surrogate's loss became {value}; lower the baseline's setting lr")
        loss.backward()  # type: ignore[no-untyped-call]
        if math.isfinite(self.clip):
            nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        self.gradients += len(y)
        return value

    def gradient(self, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Gradient of ``loss`` (a scalar) in pixels ``x``, with batch norm in eval mode; parameters stay."""
        self.network.eval()
        x = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(x), x)
        self.gradients += len(x)
        return gradient

    def label_slope(self, x: Tensor, y: Tensor) -> Tensor:
        """Gradient in the pixels of every image's own cross-entropy with ``y``."""
        return self.gradient(x, lambda pixels: F.cross_entropy(self.logits(pixels), y, reduction="sum"))

    @torch.no_grad()
    def predictions(self, x: Tensor) -> Tensor:
        """Predicted classes in eval mode."""
        self.network.eval()
        return self.logits(x).argmax(1)


def fresh_network(material: Material, name: str, method: str) -> ImageClassifier:
    """A network with initial weights that fits the images, placed on the device.

    Raises:
        UnknownNameError: There is no such network.
    """
    store, seed = material.store, stream_seed(material.seed, method, "surrogate")
    network = build(name, len(store.classes), seed=seed, channels=store.channels, size=store.size)
    return material.runtime.place(network)


def trained_surrogate(material: Material, name: str, method: str, *, lr: float, clip: float = math.inf) -> Surrogate:
    """A fresh network with SGD of momentum 0.9 and weight decay 5e-4, the rates that EM and REM were published with."""
    network = fresh_network(material, name, method)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    return Surrogate(network, material.runtime, optimizer, clip)


def sign_steps(
    clean: Tensor, delta: Tensor, gradient: Callable[[Tensor], Tensor], *, steps: int, step: float, bound: float
) -> Tensor:
    """Projected sign descent (PGD): δ ← project(δ - step · sign(gradient(x + δ))).

    Args:
        clean: Pixels in levels, float, 0..255.
        delta: Perturbation in levels, float, same shape.
        gradient: From pixels in [0, 1] to the gradient that is descended.
        steps: How many.
        step: Length in levels, need not be whole.
        bound: Largest absolute change in levels.
    """
    for _ in range(steps):
        delta = project(clean, delta - step * gradient((clean + delta) / 255).sign(), bound)
    return delta


def project(clean: Tensor, delta: Tensor, bound: float) -> Tensor:
    """The nearest perturbation within ``bound`` that leaves pixels within 0..255; all in levels."""
    return (clean + delta.clamp(-bound, bound)).clamp(0, 255) - clean


def random_start(like: Tensor, bound: float, generator: torch.Generator) -> Tensor:
    """A perturbation in levels, uniform within ``bound``; the generator is on the CPU."""
    return ((torch.rand(like.shape, generator=generator) * 2 - 1) * bound).to(like.device)


def endless_indices(material: Material, batch_size: int, method: str) -> Iterator[Tensor]:
    """Indices of batches, epoch after epoch in a new order; a last batch of one image is left out.

    Raises:
        UsageError: There are fewer than two images.
    """
    count = len(material.store)
    if count < 2:
        raise UsageError(f"a surrogate needs at least two images to train on, got {count}")
    for epoch in itertools.count():
        order = epoch_order(count, stream(material.seed, method, "order", epoch))
        yield from (indices for indices in torch.split(order, batch_size) if len(indices) > 1)


class SampleNoise:
    """One perturbation per image that persists between visits, in records of hundredths of a level."""

    def __init__(self, material: Material) -> None:
        store = material.store
        self.bound = material.budget.levels
        self._records = Records(len(store), store.pixels.shape, torch.int16, device=store.device)

    def read(self, indices: Tensor, labels: Tensor) -> Tensor:
        """Perturbations in levels, float."""
        return self._records.read(indices).float() / HUNDREDTHS

    def descend(self, indices: Tensor, labels: Tensor, clean: Tensor, surrogate: Surrogate, **how: Any) -> None:
        """Sign steps (``steps``, ``step``) of these images' perturbations down their cross-entropy."""
        delta = self.read(indices, labels)
        delta = sign_steps(clean, delta, lambda x: surrogate.label_slope(x, labels), bound=self.bound, **how)
        self._records.write(indices, (delta * HUNDREDTHS).round())


class ClassNoise:
    """One pattern per class that persists between visits."""

    def __init__(self, material: Material) -> None:
        store = material.store
        self.bound = material.budget.levels
        self.patterns = torch.zeros((len(store.classes), *store.pixels.shape), device=store.device)

    def read(self, indices: Tensor, labels: Tensor) -> Tensor:
        """Perturbations in levels, float."""
        return self.patterns[labels]

    def gradient(self, labels: Tensor, clean: Tensor, surrogate: Surrogate) -> Tensor:
        """Sum over the images of a class of the gradient in its pattern, K × C × S × S."""
        x = project(clean, self.patterns[labels], self.bound).add(clean).div(255)
        gradient = surrogate.label_slope(x, labels)
        return torch.zeros_like(self.patterns).index_add_(0, labels, gradient)

    def move(self, gradient: Tensor, step: float) -> None:
        """One sign step of every pattern, in levels; a class without images stays."""
        self.patterns = (self.patterns - step * gradient.sign()).clamp(-self.bound, self.bound)

    def descend(
        self, indices: Tensor, labels: Tensor, clean: Tensor, surrogate: Surrogate, *, steps: int, step: float
    ) -> None:
        """Sign steps of the patterns down the mean cross-entropy of these images, class by class."""
        for _ in range(steps):
            self.move(self.gradient(labels, clean, surrogate), step)
