"""Error-minimising noise, sample-wise and class-wise (Huang et al., ICLR 2021)."""

from __future__ import annotations

import functools
import logging
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from uge.data.augment import augmentation
from uge.data.loader import fetch
from uge.data.store import Records
from uge.methods.baselines.base import PUBLISHED_RHO, Baseline, Material, Settings
from uge.methods.baselines.surrogate import (
    ClassNoise,
    SampleNoise,
    Surrogate,
    endless_indices,
    project,
    trained_surrogate,
)
from uge.runtime import seeded, stream

log = logging.getLogger(__name__)

Scope = Literal["sample", "class"]
_CHUNK = 250
"""Images at a time that passes over all images take at most."""


class EMSettings(Settings):
    """min over θ, min over δ of CE(f_θ(x + δ), y). To scale down: ``surrogate``, ``theta_steps``, ``steps``.

    Attributes:
        form: ``"fixed"``: in each of ``theta_steps`` steps a batch's perturbations take ``steps`` sign steps and then
            the surrogate one; at the end all perturbations take ``steps`` once more. ``"original"``: rounds of
            ``theta_batches`` steps of the surrogate and sign steps over all images, until it fits them.
        surrogate: A network by name.
        theta_steps: Steps of the surrogate in all (form ``fixed``).
        theta_batches: M, steps of the surrogate per round (form ``original``; 20 were used for CIFAR-100).
        rounds: Cap on rounds (form ``original``), since the stop rule may never be met.
        stop_error: Training error at which form ``original`` stops.
        steps: Sign steps; published: 10 (fixed), 20 (original, sample-wise), 1 (original, class-wise).
        step: Their length in 8-bit levels; published: 1.6 (fixed), 0.8 (original).
        batch_size: Images per step of the surrogate.
        lr: Of its SGD (momentum 0.9, weight decay 5e-4).
        clip: Largest norm of its gradient.
        augment: What the surrogate sees its images through; sign steps see them as they are stored.
    """

    form: Literal["fixed", "original"] = "fixed"
    surrogate: str = "resnet18"
    theta_steps: int = Field(5000, ge=1)
    theta_batches: int = Field(10, ge=1)
    rounds: int = Field(100, ge=1)
    stop_error: float = Field(0.01, ge=0, le=1)
    steps: int | None = Field(None, ge=1)
    step: float | None = Field(None, gt=0)
    batch_size: int = Field(128, ge=2)
    lr: float = Field(0.1, gt=0)
    clip: float = Field(5.0, gt=0)
    augment: Literal["none", "crop", "flip", "crop-flip", "rotate-flip"] = "crop-flip"


_PUBLISHED: dict[tuple[str, Scope], tuple[int, float]] = {
    ("fixed", "sample"): (10, 1.6),
    ("fixed", "class"): (10, 1.6),
    ("original", "sample"): (20, 0.8),
    ("original", "class"): (1, 0.8),
}
"""Sign steps and their length in levels."""


class _Run:
    """One run: the surrogate, the noise, and how both move."""

    def __init__(self, material: Material, scope: Scope) -> None:
        self.material, self.settings = material, material.settings(EMSettings)
        name = "em" if scope == "sample" else "em-class"
        self.noise = SampleNoise(material) if scope == "sample" else ClassNoise(material)
        steps, step = _PUBLISHED[self.settings.form, scope]
        self.steps, self.step = self.settings.steps or steps, self.settings.step or step
        self.surrogate: Surrogate = trained_surrogate(
            material, self.settings.surrogate, name, lr=self.settings.lr, clip=self.settings.clip
        )
        self.indices = endless_indices(material, self.settings.batch_size, name)
        self.draw = stream(material.seed, name, "augment")

    def clean(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels in levels, float, and labels."""
        batch = fetch(self.material.store, indices)
        return batch.x * 255, batch.y

    def perturbed(self, indices: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
        """x + δ in [0, 1]."""
        return (clean + project(clean, self.noise.read(indices, labels), self.noise.bound)) / 255

    def train(self, indices: Tensor, clean: Tensor, labels: Tensor) -> float:
        """One step of the surrogate on a batch; what is perturbed is augmented as content."""
        x = augmentation(self.settings.augment)(self.perturbed(indices, clean, labels), self.draw)
        return self.surrogate.train_step(x, labels)

    def descend(self, indices: Tensor, clean: Tensor, labels: Tensor) -> None:
        self.noise.descend(indices, labels, clean, self.surrogate, steps=self.steps, step=self.step)

    def on_progress(self, done: int, total: int, **figures: float) -> None:
        if self.material.progress is not None:
            self.material.progress(done, total, {**figures, "gradients": float(self.surrogate.gradients)})

    def chunks(self) -> tuple[Tensor, ...]:
        return torch.split(torch.arange(len(self.material.store)), min(_CHUNK, self.settings.batch_size))


def _fixed(run: _Run) -> None:
    """A step of the surrogate after sign steps of the same batch, ``theta_steps`` times, and a last pass."""
    total = run.settings.theta_steps + 1
    for number in range(run.settings.theta_steps):
        indices = next(run.indices)
        clean, labels = run.clean(indices)
        run.descend(indices, clean, labels)
        run.on_progress(number + 1, total, loss=run.train(indices, clean, labels))
    if isinstance(run.noise, SampleNoise):  # Patterns of classes were moved by the last batch as by any other.
        for indices in run.chunks():
            run.descend(indices, *run.clean(indices))
    run.on_progress(total, total)


def _original(run: _Run) -> None:
    """Rounds of M steps of the surrogate, then sign steps over all images, until the training error is small."""
    for number in range(run.settings.rounds):
        for _ in range(run.settings.theta_batches):
            indices = next(run.indices)
            run.train(indices, *run.clean(indices))
        if isinstance(run.noise, ClassNoise):
            _descend_classes(run, run.noise)
        else:
            for indices in run.chunks():
                run.descend(indices, *run.clean(indices))
        error = _training_error(run)
        run.on_progress(number + 1, run.settings.rounds, error=error)
        if error < run.settings.stop_error:
            return
    log.warning("the surrogate's training error is still %.3f after %d rounds", error, run.settings.rounds)


def _descend_classes(run: _Run, noise: ClassNoise) -> None:
    """Sign steps along the gradient of every class over all images."""
    for _ in range(run.steps):
        gradient = torch.zeros_like(noise.patterns)
        for indices in run.chunks():
            clean, labels = run.clean(indices)
            gradient += noise.gradient(labels, clean, run.surrogate)
        noise.move(gradient, run.step)


def _training_error(run: _Run) -> float:
    wrong = 0
    for indices in run.chunks():
        clean, labels = run.clean(indices)
        wrong += int((run.surrogate.predictions(run.perturbed(indices, clean, labels)) != labels).sum())
    return wrong / len(run.material.store)


_FORMS = {"fixed": _fixed, "original": _original}


def error_minimising(material: Material, *, scope: Scope) -> Records:
    """δ that lowers the loss of a surrogate which is trained on it meanwhile, so that there is nothing left to learn.

    Args:
        material: Images, budget, seed; ``options`` are :class:`EMSettings`.
        scope: ``"sample"``, or ``"class"``: images of a class share one pattern (clipped where a pixel has no room).

    Raises:
        UsageError: A setting is wrong, or the surrogate diverges.
    """
    run = _Run(material, scope)
    with seeded(material.seed, "em", "layers"):
        _FORMS[run.settings.form](run)
    out = material.records()
    for indices in run.chunks():
        labels = material.store.labels[indices.to(material.store.device)]
        out.write(indices, run.noise.read(indices, labels).round())  # Negative noise stays.
    return out


EM = Baseline(
    make=functools.partial(error_minimising, scope="sample"),
    norm="Linf",
    rho=PUBLISHED_RHO,
    scope="sample",
    about="error-minimising noise per image (Huang et al., Unlearnable Examples, ICLR 2021)",
    settings=EMSettings,
)
EM_CLASS = Baseline(
    make=functools.partial(error_minimising, scope="class"),
    norm="Linf",
    rho=PUBLISHED_RHO,
    scope="class",
    about="error-minimising noise, one pattern per class (Huang et al., Unlearnable Examples, ICLR 2021)",
    settings=EMSettings,
)
