"""TAP: adversarial examples as poison, targeted and untargeted (Fowl et al., NeurIPS 2021, arXiv 2106.10807)."""

import dataclasses
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from uge.data.augment import augmentation
from uge.data.store import Records
from uge.learning.recipes import Recipe
from uge.learning.training import fit, steps_per_epoch
from uge.methods.baselines.base import PUBLISHED_RHO, Baseline, Material, Settings
from uge.methods.baselines.surrogate import Surrogate, fresh_network, project, sign_steps
from uge.runtime import stream, stream_seed


class TAPSettings(Settings):
    """Settings of TAP: PGD on a clean, frozen surrogate.

    To scale down: ``surrogate``, ``epochs``, ``steps`` with a longer ``step``.

    Attributes:
        surrogate: A network by name.
        epochs: Epochs of training on the clean images (SGD, momentum 0.9, weight decay 5e-4, batch 128, one cycle).
        lr: Peak learning rate.
        steps: Sign steps per image and restart.
        step: Length of a sign step in 8-bit levels.
        restarts: Trials of all images, each from its own random start; the whole trial of the lowest mean loss, of the
            last step, counts.
        augment: Augmentation of the perturbed images, drawn anew for every step.
        batch_size: Images that are perturbed at once.
    """

    surrogate: str = "resnet18"
    epochs: int = Field(40, ge=1)
    lr: float = Field(0.1, gt=0)
    steps: int = Field(250, ge=1)
    step: float = Field(0.4, gt=0)
    restarts: int = Field(8, ge=1)
    augment: Literal["none", "crop", "flip", "crop-flip", "rotate-flip"] = "crop-flip"
    batch_size: int = Field(128, ge=1)


def adversarial_poison(material: Material, settings: TAPSettings, *, targeted: bool) -> Records:
    """Perturbations that make a clean network predict another class.

    Args:
        material: Images, budget, seed.
        settings: Surrogate and steps.
        targeted: Minimise CE(f(t(x + δ)), (y + 1) mod K) over δ; else maximise CE(f(t(x + δ)), y).

    Raises:
        UsageError: The surrogate diverges.
    """
    count = len(material.store)
    surrogate = clean_surrogate(material, settings)
    sign = 1 if targeted else -1
    batches = torch.split(torch.arange(count), settings.batch_size)

    def trial(number: int) -> tuple[float, Records]:
        total = 0.0

        def change(indices: Tensor, x: Tensor, labels: Tensor) -> Tensor:
            nonlocal total
            first = int(indices[0])
            goal = (labels + 1) % len(material.store.classes) if targeted else labels
            draw = stream(material.seed, "tap", "batch", first // settings.batch_size, "restart", number)
            delta, loss = _attack(surrogate, x * 255, goal, sign, material.budget.levels, settings, draw)
            total += loss
            surrogate.report(material, number * count + first + len(indices), count * settings.restarts)
            return delta / 255

        records = material.filled(change, batches)
        return total / count, records

    lowest, best = trial(0)
    for number in range(1, settings.restarts):
        mean, records = trial(number)
        if mean < lowest:
            lowest = mean
            best = records
    return best


def clean_surrogate(material: Material, settings: TAPSettings) -> Surrogate:
    """The surrogate, trained on the clean images and frozen."""
    count = len(material.store)
    network = fresh_network(material, settings.surrogate, "tap")
    recipe = Recipe(epochs=settings.epochs, lr=settings.lr)
    fit(
        network,
        material.store,
        recipe,
        seed=stream_seed(material.seed, "tap", "training"),
        runtime=material.runtime,
    )
    size = min(recipe.batch_size, count)
    left_out = count % size == 1 and steps_per_epoch(count, size) == count // size
    return Surrogate(
        network.eval().requires_grad_(False), material.runtime, gradients=recipe.epochs * (count - left_out)
    )


def _attack(
    surrogate: Surrogate,
    clean: Tensor,
    goal: Tensor,
    sign: int,
    bound: float,
    settings: TAPSettings,
    draw: torch.Generator,
) -> tuple[Tensor, float]:
    """Perturbations in levels from a normal start, and the sum of the losses in the last step, before it."""
    augment = augmentation(settings.augment)
    last = 0.0

    def loss(x: Tensor) -> Tensor:
        nonlocal last
        value = sign * F.cross_entropy(surrogate.logits(augment(x, draw)), goal, reduction="sum")
        last = value.item()
        return value

    start = project(clean, (bound * torch.randn(clean.shape, generator=draw)).to(clean.device), bound)
    delta = sign_steps(
        clean,
        start,
        lambda x: surrogate.gradient(x, loss),
        steps=settings.steps,
        step=settings.step,
        bound=bound,
    )
    return delta, last


TAP = Baseline(
    function=partial(adversarial_poison, targeted=True),
    norm="Linf",
    rho=PUBLISHED_RHO,
    scope="sample",
    about="targeted adversarial poisoning (Fowl et al., Adversarial Examples Make Strong Poisons, NeurIPS 2021)",
    settings=TAPSettings,
)
TAP_UNTARGETED = dataclasses.replace(
    TAP,
    function=partial(adversarial_poison, targeted=False),
    about="untargeted adversarial poisoning (Fowl et al., Adversarial Examples Make Strong Poisons, NeurIPS 2021)",
)
