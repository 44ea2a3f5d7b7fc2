"""EM: error-minimising noise, sample-wise and class-wise (Huang et al., ICLR 2021, arXiv 2101.04898)."""

import dataclasses
import itertools
import logging
import math
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from uge.data.augment import augmentation
from uge.data.loader import epoch_order
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

    None stands for the published value of the form, see :data:`_PUBLISHED`. To scale down: ``surrogate``,
    ``theta_steps``, ``steps``.

    Attributes:
        form: ``"fixed"``, of a fixed length (Fu et al., ICLR 2022): in each of ``theta_steps`` steps a batch gets new
            perturbations by ``steps`` sign steps from a random start, and then the surrogate takes one step on them; at
            the end all perturbations are made so by the last surrogate. ``"original"`` (Huang et al., ICLR 2021):
            rounds of ``theta_batches`` steps of the surrogate and sign steps over all images, from where they stand,
            until the surrogate fits them.
        surrogate: A network by name.
        theta_steps: Steps of the surrogate in all (form ``fixed``).
        theta_batches: M, steps of the surrogate per round (form ``original``; 20 were used for CIFAR-100).
        rounds: Cap on rounds (form ``original``), since the stop rule may never be met.
        stop_error: Training error at which form ``original`` stops.
        subset: Part of the images by which form ``original`` moves patterns of classes.
        steps: Sign steps.
        step: Length of a sign step in 8-bit levels.
        batch_size: Images per step of the surrogate.
        lr: Learning rate of the surrogate's SGD (momentum 0.9, weight decay 5e-4).
        decay_every: Steps after which ``lr`` falls to a tenth, again and again (form ``fixed``).
        clip: Largest norm of the surrogate's gradient.
        augment: Augmentation in steps of the surrogate; sign steps take images as they are stored.
    """

    form: Literal["fixed", "original"] = "fixed"
    surrogate: str = "resnet18"
    theta_steps: int = Field(5000, ge=1)
    theta_batches: int = Field(10, ge=1)
    rounds: int = Field(100, ge=1)
    stop_error: float | None = Field(None, ge=0, le=1)
    subset: float = Field(0.2, gt=0, le=1)
    steps: int | None = Field(None, ge=1)
    step: float | None = Field(None, gt=0)
    batch_size: int = Field(128, ge=2)
    lr: float = Field(0.1, gt=0)
    decay_every: int = Field(2000, ge=1)
    clip: float | None = Field(None, gt=0)
    augment: Literal["none", "crop", "flip", "crop-flip", "rotate-flip"] | None = None


class EMClassSettings(EMSettings):
    """Settings of class-wise EM, which was published in the original form only; ``fixed`` is ours for it."""

    form: Literal["fixed", "original"] = "original"


@dataclasses.dataclass(frozen=True)
class _Form:
    """Published values of a form: sign steps, their length in levels, stop error, largest gradient, augmentation."""

    steps: int
    step: float
    stop_error: float = 0.0
    clip: float = math.inf
    augment: str = "none"


_PUBLISHED: dict[tuple[str, Scope], _Form] = {
    ("fixed", "sample"): _Form(10, 1.6, augment="crop-flip"),
    ("fixed", "class"): _Form(10, 1.6, augment="crop-flip"),  # Ours.
    ("original", "sample"): _Form(20, 0.8, stop_error=0.01, clip=5.0),
    ("original", "class"): _Form(1, 0.8, stop_error=0.1, clip=5.0),
}


class _Run:
    def __init__(self, material: Material, settings: EMSettings, scope: Scope) -> None:
        self.material = material
        self.settings = settings
        name = "em" if scope == "sample" else "em-class"
        published = _PUBLISHED[settings.form, scope]
        self.steps = settings.steps or published.steps
        self.step = settings.step or published.step
        self.stop_error = published.stop_error if settings.stop_error is None else settings.stop_error
        self.augment = augmentation(settings.augment or published.augment)
        self.noise = SampleNoise(material) if scope == "sample" else ClassNoise(material)
        self.surrogate = trainable_surrogate(
            material, settings.surrogate, name, lr=settings.lr, clip=settings.clip or published.clip
        )
        self.indices = endless_indices(material, settings.batch_size, name)
        self.chunks = torch.split(torch.arange(len(material.store)), min(_CHUNK, settings.batch_size))
        self.draw = stream(material.seed, name, "augment")
        self.start = stream(material.seed, name, "start")
        self.judged = self.chunks
        if scope == "class":
            count = max(2, round(settings.subset * len(material.store)))
            chosen = epoch_order(len(material.store), stream(material.seed, name, "subset"))[:count]
            self.judged = torch.split(chosen, settings.batch_size)

    def train(self, indices: Tensor, *, lr: float | None = None) -> float:
        # Perturbed pixels are augmented as content.
        x, labels = perturbed(self.noise, indices)
        return self.surrogate.train_step(self.augment(x, self.draw), labels, lr=lr)

    def renew(self, indices: Tensor) -> None:
        """Make the perturbations of a batch anew; patterns of classes go on from where they stand."""
        if isinstance(self.noise, SampleNoise):
            self.noise.restart(indices, self.start)
        self.noise.descend([indices], self.surrogate, steps=self.steps, step=self.step)


def _fixed(run: _Run) -> None:
    total = run.settings.theta_steps + 1
    for number, indices in zip(range(1, total), run.indices, strict=False):
        run.renew(indices)
        rate = run.settings.lr * 0.1 ** ((number - 1) // run.settings.decay_every)
        run.surrogate.report(run.material, number, total, loss=run.train(indices, lr=rate))
    if isinstance(run.noise, SampleNoise):  # Patterns of classes were moved by the last batch as by any other.
        for indices in run.chunks:
            run.renew(indices)
    run.surrogate.report(run.material, total, total)


def _original(run: _Run) -> None:
    rounds = run.settings.rounds
    for number in range(1, rounds + 1):
        for indices in itertools.islice(run.indices, run.settings.theta_batches):
            run.train(indices)
        if isinstance(run.noise, SampleNoise):
            run.noise.descend(run.chunks, run.surrogate, steps=run.steps, step=run.step)
        else:
            run.noise.follow(run.judged, run.surrogate, steps=run.steps, step=run.step)
        error = _training_error(run)
        run.surrogate.report(run.material, number, rounds, error=error)
        if error < run.stop_error:
            return
    log.warning("the surrogate's training error is still %.3f after %d rounds", error, rounds)


@torch.no_grad()
def _training_error(run: _Run) -> float:
    run.surrogate.network.eval()
    batches = (perturbed(run.noise, indices) for indices in run.judged)
    wrong = sum(int((run.surrogate.logits(x).argmax(1) != labels).sum()) for x, labels in batches)
    return wrong / sum(map(len, run.judged))


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
    about="error-minimising noise per image (Huang et al., Unlearnable Examples, ICLR 2021; form fixed: Fu et al.)",
    settings=EMSettings,
)
EM_CLASS = dataclasses.replace(
    EM,
    function=partial(error_minimising, scope="class"),
    scope="class",
    about="error-minimising noise, one pattern per class (Huang et al., Unlearnable Examples, ICLR 2021)",
    settings=EMClassSettings,
)
