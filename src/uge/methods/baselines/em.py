"""EM: error-minimising noise, sample-wise and class-wise (Huang et al., ICLR 2021, arXiv 2101.04898)."""

import dataclasses
import itertools
import logging
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from uge.data.augment import augmentation
from uge.data.store import Records
from uge.methods.baselines.base import PUBLISHED_RHO, Baseline, Material, Settings
from uge.methods.baselines.surrogate import (
    ClassNoise,
    SampleNoise,
    endless_indices,
    perturbed,
    trainable_surrogate,
)
from uge.runtime import seeded, stream

log = logging.getLogger(__name__)

Scope = Literal["sample", "class"]
_CHUNK = 250  # Images at a time in passes over all images, at most.


class EMSettings(Settings):
    """Settings of EM: min over θ, min over δ of CE(f_θ(x + δ), y).

    To scale down: ``surrogate``, ``theta_steps``, ``steps``.

    Attributes:
        form: ``"fixed"``: in each of ``theta_steps`` steps a batch's perturbations take ``steps`` sign steps and then
            the surrogate one; at the end all perturbations take ``steps`` once more. ``"original"``: rounds of
            ``theta_batches`` steps of the surrogate and sign steps over all images, until the surrogate fits them.
        surrogate: A network by name.
        theta_steps: Steps of the surrogate in all (form ``fixed``).
        theta_batches: M, steps of the surrogate per round (form ``original``; 20 were used for CIFAR-100).
        rounds: Cap on rounds (form ``original``), since the stop rule may never be met.
        stop_error: Training error at which form ``original`` stops.
        steps: Sign steps; published: 10 (fixed), 20 (original, sample-wise), 1 (original, class-wise).
        step: Length of a sign step in 8-bit levels; published: 1.6 (fixed), 0.8 (original).
        batch_size: Images per step of the surrogate.
        lr: Learning rate of the surrogate's SGD (momentum 0.9, weight decay 5e-4).
        clip: Largest norm of the surrogate's gradient.
        augment: Augmentation in steps of the surrogate; sign steps take images as they are stored.
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
}  # Sign steps and their length in levels.


class _Run:
    def __init__(self, material: Material, settings: EMSettings, scope: Scope) -> None:
        self.material = material
        self.settings = settings
        name = "em" if scope == "sample" else "em-class"
        self.noise = SampleNoise(material) if scope == "sample" else ClassNoise(material)
        self.surrogate = trainable_surrogate(
            material, self.settings.surrogate, name, lr=self.settings.lr, clip=self.settings.clip
        )
        self.indices = endless_indices(material, self.settings.batch_size, name)
        self.chunks = torch.split(torch.arange(len(material.store)), min(_CHUNK, self.settings.batch_size))
        self.draw = stream(material.seed, name, "augment")
        steps, step = _PUBLISHED[self.settings.form, scope]
        self.steps = self.settings.steps or steps
        self.step = self.settings.step or step

    def train(self, indices: Tensor) -> float:
        # Perturbed pixels are augmented as content.
        x, labels = perturbed(self.noise, indices)
        return self.surrogate.train_step(augmentation(self.settings.augment)(x, self.draw), labels)

    def descend(self, batches: Sequence[Tensor]) -> None:
        self.noise.descend(batches, self.surrogate, steps=self.steps, step=self.step)


def _fixed(run: _Run) -> None:
    total = run.settings.theta_steps + 1
    for number, indices in zip(range(1, total), run.indices, strict=False):
        run.descend([indices])
        run.surrogate.report(run.material, number, total, loss=run.train(indices))
    if isinstance(run.noise, SampleNoise):  # Patterns of classes were moved by the last batch as by any other.
        run.descend(run.chunks)
    run.surrogate.report(run.material, total, total)


def _original(run: _Run) -> None:
    rounds = run.settings.rounds
    for number in range(1, rounds + 1):
        for indices in itertools.islice(run.indices, run.settings.theta_batches):
            run.train(indices)
        run.descend(run.chunks)
        error = _training_error(run)
        run.surrogate.report(run.material, number, rounds, error=error)
        if error < run.settings.stop_error:
            return
    log.warning("the surrogate's training error is still %.3f after %d rounds", error, rounds)


@torch.no_grad()
def _training_error(run: _Run) -> float:
    run.surrogate.network.eval()
    batches = (perturbed(run.noise, indices) for indices in run.chunks)
    wrong = sum(int((run.surrogate.logits(x).argmax(1) != labels).sum()) for x, labels in batches)
    return wrong / len(run.material.store)


_FORMS = {"fixed": _fixed, "original": _original}


def error_minimising(material: Material, settings: EMSettings, *, scope: Scope) -> Records:
    """Perturbations that lower the loss of a surrogate while it trains on them, so that nothing is left to learn.

    Args:
        material: Images, budget, seed.
        settings: Form, surrogate and steps.
        scope: ``"sample"``, or ``"class"``: images of a class share one pattern (clipped where a pixel has no room).

    Raises:
        UsageError: The surrogate diverges.
    """
    run = _Run(material, settings, scope)
    with seeded(material.seed, "em", "layers"):
        _FORMS[run.settings.form](run)
    records = material.records()
    for indices in run.chunks:
        records.write(indices, run.noise.read(indices).round())  # Negative noise stays.
    return records


EM = Baseline(
    function=partial(error_minimising, scope="sample"),
    norm="Linf",
    rho=PUBLISHED_RHO,
    scope="sample",
    about="error-minimising noise per image (Huang et al., Unlearnable Examples, ICLR 2021)",
    settings=EMSettings,
)
EM_CLASS = dataclasses.replace(
    EM,
    function=partial(error_minimising, scope="class"),
    scope="class",
    about="error-minimising noise, one pattern per class (Huang et al., Unlearnable Examples, ICLR 2021)",
)
