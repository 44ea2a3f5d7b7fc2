"""Adversarial examples as poison, targeted and untargeted (Fowl et al., NeurIPS 2021)."""

from __future__ import annotations

import functools
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
from uge.methods.baselines.surrogate import Surrogate, fresh_network, project, random_start, sign_steps
from uge.runtime import stream, stream_seed


class TAPSettings(Settings):
    """PGD on a clean, frozen surrogate. To scale down: ``surrogate``, ``epochs``, ``steps`` with a longer ``step``.

    Attributes:
        surrogate: A network by name.
        epochs: Of its training on the clean images (SGD, momentum 0.9, weight decay 5e-4, batch 128, one cycle).
        lr: Peak learning rate.
        steps: Sign steps per image and restart.
        step: Their length in 8-bit levels.
        restarts: Starts per image, the first from the clean image, others from random noise (published: up to 8);
            what has the lowest loss in the end is kept, image by image.
        augment: What the surrogate sees the perturbed images through, drawn anew for every step.
        batch_size: Images that are perturbed at once.
    """

    surrogate: str = "resnet18"
    epochs: int = Field(40, ge=1)
    lr: float = Field(0.1, gt=0)
    steps: int = Field(250, ge=1)
    step: float = Field(0.4, gt=0)
    restarts: int = Field(1, ge=1)
    augment: Literal["none", "crop", "flip", "crop-flip", "rotate-flip"] = "crop-flip"
    batch_size: int = Field(128, ge=1)


def adversarial_poison(material: Material, *, targeted: bool) -> Records:
    """δ that a clean network takes for another class.

    Args:
        material: Images, budget, seed; ``options`` are :class:`TAPSettings`.
        targeted: Minimise CE(f(t(x + δ)), (y + 1) mod K) over δ; else maximise CE(f(t(x + δ)), y).

    Raises:
        UsageError: A setting is wrong, or the surrogate diverges.
    """
    settings, store, out = material.settings(TAPSettings), material.store, material.records()
    surrogate = clean_surrogate(material, settings)
    sign, classes = 1 if targeted else -1, len(store.classes)
    done, total = 0, len(store) * settings.restarts
    for number, indices in enumerate(torch.split(torch.arange(len(store)), settings.batch_size)):
        pixels, labels = store.pixels.read(indices), store.labels[indices.to(store.device)]
        goal = (labels + 1) % classes if targeted else labels
        kept, lowest = (
            torch.zeros_like(pixels, dtype=torch.float32),
            torch.full_like(goal, torch.inf, dtype=torch.float32),
        )
        for restart in range(settings.restarts):
            draw = stream(material.seed, "tap", "batch", number, "restart", restart)
            delta = _attack(surrogate, pixels.float(), goal, sign, material.budget.levels, settings, restart, draw)
            loss = sign * losses(surrogate, (pixels + delta) / 255, goal)
            kept = torch.where((loss < lowest)[:, None, None, None], delta, kept)
            lowest = torch.minimum(loss, lowest)
            done += len(indices)
            if material.progress is not None:
                material.progress(done, total, {"gradients": float(surrogate.gradients)})
        out.write(indices, material.stored(pixels, kept / 255))
    return out


def clean_surrogate(material: Material, settings: TAPSettings) -> Surrogate:
    """The surrogate, trained on the clean images and frozen."""
    network, store = fresh_network(material, settings.surrogate, "tap"), material.store
    recipe = Recipe(epochs=settings.epochs, lr=settings.lr)
    fit(network, store, recipe, seed=stream_seed(material.seed, "tap", "training"), runtime=material.runtime)
    size = min(recipe.batch_size, len(store))
    left_out = len(store) % size == 1 and steps_per_epoch(len(store), size) == len(store) // size
    return Surrogate(
        network.eval().requires_grad_(False),
        material.runtime,
        gradients=recipe.epochs * (len(store) - left_out),
    )


@torch.no_grad()
def losses(surrogate: Surrogate, x: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every image in [0, 1], not augmented."""
    return F.cross_entropy(surrogate.logits(x), labels, reduction="none")


def _attack(
    surrogate: Surrogate,
    clean: Tensor,
    goal: Tensor,
    sign: int,
    bound: float,
    settings: TAPSettings,
    restart: int,
    draw: torch.Generator,
) -> Tensor:
    """Sign steps down ``sign`` times the cross-entropy with ``goal``; all in levels."""
    augment = augmentation(settings.augment)
    start = project(clean, random_start(clean, bound, draw), bound) if restart else torch.zeros_like(clean)

    def loss(x: Tensor) -> Tensor:
        return sign * F.cross_entropy(surrogate.logits(augment(x, draw)), goal, reduction="sum")

    return sign_steps(
        clean, start, lambda x: surrogate.gradient(x, loss), steps=settings.steps, step=settings.step, bound=bound
    )


TAP = Baseline(
    make=functools.partial(adversarial_poison, targeted=True),
    norm="Linf",
    rho=PUBLISHED_RHO,
    scope="sample",
    about="targeted adversarial poisoning (Fowl et al., Adversarial Examples Make Strong Poisons, NeurIPS 2021)",
    settings=TAPSettings,
)
TAP_UNTARGETED = Baseline(
    make=functools.partial(adversarial_poison, targeted=False),
    norm="Linf",
    rho=PUBLISHED_RHO,
    scope="sample",
    about="untargeted adversarial poisoning (Fowl et al., Adversarial Examples Make Strong Poisons, NeurIPS 2021)",
    settings=TAPSettings,
)
