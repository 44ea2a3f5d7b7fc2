"""Surrogate networks, PGD steps on perturbations, and perturbations of samples and classes between visits.

Perturbations that are being optimised are counted in 8-bit levels, but need not be whole: published steps are
0.4/255, 0.8/255 and 1.6/255. Those that persist between visits are kept as int16 in hundredths of a level, which
holds all of these steps exactly.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uge.data.loader import epoch_order, fetch
from uge.data.store import Records
from uge.errors import UsageError
from uge.learning.objectives import full_precision
from uge.methods.baselines.base import Material
from uge.networks import ImageClassifier, build
from uge.runtime import Runtime, stream, stream_seed

_HUNDREDTHS = 100  # Units of a persistent perturbation in one 8-bit level.


@dataclass
class Surrogate:
    """A network that perturbations are computed on, with a count of its gradient evaluations.

    Attributes:
        network: Takes pixels in [0, 1]; on the runtime's device.
        runtime: Device and precision.
        optimizer: Optimiser of :meth:`train_step`.
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
        """Take one step of the parameters down the cross-entropy (batch norm in training mode); return the loss.

        Args:
            x: Pixels in [0, 1].
            y: Labels.
            lr: New learning rate, where it changes.

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
        nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.optimizer.step()
        self.gradients += len(y)
        return value

    def gradient(self, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Gradient of ``loss`` (a scalar) in pixels ``x``, with batch norm in eval mode; no parameter changes."""
        self.network.eval()
        x = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(x), x)
        self.gradients += len(x)
        return gradient

    def label_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Gradient of every image's own cross-entropy with ``y`` in its pixels."""
        return self.gradient(x, lambda pixels: F.cross_entropy(self.logits(pixels), y, reduction="sum"))

    def report(self, material: Material, done: int, total: int, **figures: float) -> None:
        """Call the material's progress with ``figures`` and the gradient evaluations so far."""
        material.progress(done, total, {**figures, "gradients": float(self.gradients)})


def fresh_network(material: Material, name: str, method: str) -> ImageClassifier:
    """A network with initial weights that fits the images, on the device.

    Raises:
        UnknownNameError: There is no such network.
    """
    store = material.store
    seed = stream_seed(material.seed, method, "surrogate")
    return material.runtime.place(build(name, len(store.classes), seed=seed, channels=store.channels, size=store.size))


def trainable_surrogate(material: Material, name: str, method: str, *, lr: float, clip: float = math.inf) -> Surrogate:
    """A fresh network with SGD of momentum 0.9 and weight decay 5e-4, as EM and REM were published with."""
    network = fresh_network(material, name, method)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    return Surrogate(network, material.runtime, optimizer, clip)


def sign_steps(
    clean: Tensor, delta: Tensor, gradient: Callable[[Tensor], Tensor], *, steps: int, step: float, bound: float
) -> Tensor:
    """PGD (Madry et al., ICLR 2018): ``steps`` times δ ← project(δ - step · sign(gradient(x + δ))).

    Args:
        clean: Pixels in levels, float, 0..255.
        delta: Perturbation in levels, float, same shape.
        gradient: From pixels in [0, 1] to the gradient that is descended.
        steps: Number of steps.
        step: Length in levels, need not be whole.
        bound: Largest absolute change in levels.
    """
    for _ in range(steps):
        delta = project(clean, delta - step * gradient((clean + delta) / 255).sign(), bound)
    return delta


def project(clean: Tensor, delta: Tensor, bound: float) -> Tensor:
    """The nearest perturbation within ``bound`` that leaves pixels within 0..255; all in levels."""
    return (clean + delta.clamp(-bound, bound)).clamp(0, 255) - clean


def random_start(clean: Tensor, bound: float, generator: torch.Generator) -> Tensor:
    """A perturbation of ``clean`` in levels, uniform within ``bound`` and then projected.

    Args:
        clean: Pixels in levels, float, 0..255.
        bound: Largest absolute change in levels.
        generator: Source of random numbers, on the CPU.
    """
    return project(clean, ((torch.rand(clean.shape, generator=generator) * 2 - 1) * bound).to(clean.device), bound)


def endless_indices(material: Material, batch_size: int, method: str) -> Iterator[Tensor]:
    """Indices of batches, epoch after epoch in a new order; a last batch of one image is left out.

    Raises:
        UsageError: There are fewer than two images.
    """
    count = len(material.store)
    if count < 2:
        raise UsageError(f"a surrogate needs at least two images to train on, got {count}; give more")
    for epoch in itertools.count():
        order = epoch_order(count, stream(material.seed, method, "order", epoch))
        yield from (indices for indices in torch.split(order, batch_size) if len(indices) > 1)


class SampleNoise:
    """One perturbation per image that persists between visits, in records of hundredths of a level."""

    def __init__(self, material: Material) -> None:
        self.store = material.store
        self.bound = material.budget.levels
        self._records = Records(len(self.store), self.store.pixels.shape, torch.int16, device=self.store.device)

    def read(self, indices: Tensor) -> Tensor:
        """Perturbations of the images at ``indices`` in levels, float."""
        return self._records.read(indices).float() / _HUNDREDTHS

    def restart(self, indices: Tensor, draw: torch.Generator) -> None:
        """Give the images at ``indices`` random perturbations (:func:`random_start`)."""
        delta = random_start(fetch(self.store, indices).x * 255, self.bound, draw)
        self._records.write(indices, (delta * _HUNDREDTHS).round())

    def descend(self, batches: Iterable[Tensor], surrogate: Surrogate, *, steps: int, step: float) -> None:
        """Move the perturbations of images, batch by batch of indices, by PGD down their cross-entropy."""
        for indices in batches:
            batch = fetch(self.store, indices)
            delta = sign_steps(
                batch.x * 255,
                self.read(indices),
                lambda x, y=batch.y: surrogate.label_gradient(x, y),  # type: ignore[misc]
                steps=steps,
                step=step,
                bound=self.bound,
            )
            self._records.write(indices, (delta * _HUNDREDTHS).round())


class ClassNoise:
    """One pattern per class that persists between visits."""

    def __init__(self, material: Material) -> None:
        self.store = material.store
        self.bound = material.budget.levels
        self.patterns = torch.zeros((len(self.store.classes), *self.store.pixels.shape), device=self.store.device)

    def read(self, indices: Tensor) -> Tensor:
        """Patterns of the classes of the images at ``indices`` in levels, float."""
        return self.patterns[self.store.labels[indices.to(self.store.device)]]

    def descend(self, batches: Iterable[Tensor], surrogate: Surrogate, *, steps: int, step: float) -> None:
        """Move all patterns by sign steps down the cross-entropy of the images of their class in all ``batches``.

        A class without images keeps its pattern.
        """
        for _ in range(steps):
            gradient = torch.zeros_like(self.patterns)
            for x, y in (perturbed(self, indices) for indices in batches):
                gradient += torch.zeros_like(gradient).index_add_(0, y, surrogate.label_gradient(x, y))
            self.patterns = (self.patterns - step * gradient.sign()).clamp(-self.bound, self.bound)

    def follow(self, batches: Iterable[Tensor], surrogate: Surrogate, *, steps: int, step: float) -> None:
        """Move patterns batch by batch to the mean of what the images of their class would have alone.

        Each image takes its sign steps from the pattern of its class. A class without images in a batch keeps its
        pattern.
        """
        for indices in batches:
            batch = fetch(self.store, indices)
            clean = batch.x * 255
            own = sign_steps(
                clean,
                project(clean, self.read(indices), self.bound),
                lambda x, y=batch.y: surrogate.label_gradient(x, y),  # type: ignore[misc]
                steps=steps,
                step=step,
                bound=self.bound,
            )
            counts = torch.bincount(batch.y, minlength=len(self.patterns))[:, None, None, None]
            means = torch.zeros_like(self.patterns).index_add_(0, batch.y, own) / counts.clamp_min(1)
            self.patterns = torch.where(counts > 0, means, self.patterns)


def perturbed(noise: SampleNoise | ClassNoise, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels x + δ in [0, 1] and labels of the images at ``indices``."""
    batch = fetch(noise.store, indices)
    clean = batch.x * 255
    return (clean + project(clean, noise.read(indices), noise.bound)) / 255, batch.y
