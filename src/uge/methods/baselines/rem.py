"""REM: robust error-minimising noise (Fu et al., ICLR 2022, arXiv 2203.14533)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from uge.data.augment import augmentation
from uge.data.loader import fetch
from uge.data.store import Records
from uge.methods.baselines.base import PUBLISHED_RHO, Baseline, Material, Settings
from uge.methods.baselines.surrogate import (
    Surrogate,
    endless_indices,
    random_start,
    sign_steps,
    trainable_surrogate,
)
from uge.runtime import seeded, stream


class REMSettings(Settings):
    """Settings of REM: min over θ, min over δ of E_t max over ρ of CE(f_θ(t(x + δ) + ρ), y).

    One step of θ costs (samples · steps + 1) · (adversary_steps + 1) gradient evaluations per image, 50 times EM's
    with the published numbers. To scale down: ``surrogate``, ``theta_steps``, ``steps``, ``samples``,
    ``adversary_steps``.

    Attributes:
        surrogate: A network by name.
        theta_steps: Adversarial training steps of the surrogate.
        steps: Sign steps of the defence noise δ, from a random start.
        step: Length of a sign step of δ in 8-bit levels.
        adversary_radius: Bound on the adversary's ρ in 8-bit levels.
        adversary_steps: Sign steps of ρ, from a random start.
        adversary_step: Length of a sign step of ρ in 8-bit levels.
        samples: Draws of t per step of δ.
        augment: Augmentation that t is drawn from.
        batch_size: Images per step.
        lr: Learning rate of the surrogate's SGD (momentum 0.9, weight decay 5e-4).
        decay_every: Steps after which ``lr`` falls to a tenth, again and again.
        clip: Largest norm of the surrogate's gradient; none as published.
    """

    surrogate: str = "resnet18"
    theta_steps: int = Field(5000, ge=1)
    steps: int = Field(10, ge=1)
    step: float = Field(1.6, gt=0)
    adversary_radius: float = Field(4.0, ge=0)
    adversary_steps: int = Field(10, ge=0)
    adversary_step: float = Field(0.8, gt=0)
    samples: int = Field(5, ge=1)
    augment: Literal["none", "crop", "flip", "crop-flip", "rotate-flip"] = "crop-flip"
    batch_size: int = Field(128, ge=2)
    lr: float = Field(0.1, gt=0)
    decay_every: int = Field(2000, ge=1)
    clip: float | None = Field(None, gt=0)


def adversary(surrogate: Surrogate, x: Tensor, y: Tensor, settings: REMSettings, draw: torch.Generator) -> Tensor:
    """ρ in [0, 1] units that raises CE(f(x + ρ), y), by PGD from a random start.

    Args:
        surrogate: The network.
        x: Pixels in [0, 1].
        y: Labels.
        settings: Radius, steps and their length.
        draw: Source of the start.
    """
    pixels = x.detach() * 255
    return (
        sign_steps(
            pixels,
            random_start(pixels, settings.adversary_radius, draw),
            lambda moved: -surrogate.label_gradient(moved, y),
            steps=settings.adversary_steps,
            step=settings.adversary_step,
            bound=settings.adversary_radius,
        )
        / 255
    )


def robust_gradient(surrogate: Surrogate, x: Tensor, y: Tensor, settings: REMSettings, draw: torch.Generator) -> Tensor:
    """Gradient of E_t max_ρ CE(f(t(x) + ρ), y) in ``x``, each image on its own; t by ``samples`` draws."""
    augment = augmentation(settings.augment)

    def loss(pixels: Tensor) -> Tensor:
        seen = augment(pixels, draw)
        worst = seen + adversary(surrogate, seen, y, settings, draw)
        return F.cross_entropy(surrogate.logits(worst), y, reduction="sum")

    gradients = (surrogate.gradient(x, loss) for _ in range(settings.samples))
    return sum(gradients, torch.zeros_like(x)) / settings.samples


def defence(
    surrogate: Surrogate, clean: Tensor, y: Tensor, bound: float, settings: REMSettings, draw: torch.Generator
) -> Tensor:
    """δ in levels for pixels ``clean`` in levels (float): sign steps down the robust loss from a random start."""
    return sign_steps(
        clean,
        random_start(clean, bound, draw),
        lambda x: robust_gradient(surrogate, x, y, settings, draw),
        steps=settings.steps,
        step=settings.step,
        bound=bound,
    )


def robust_error_minimising(material: Material, settings: REMSettings) -> Records:
    """Perturbations that lower the loss of a surrogate while it trains adversarially on them.

    Every batch starts from a new random δ. A last pass with the final surrogate makes the δ that are returned.

    Args:
        material: Images, budget (the defence radius), seed.
        settings: Surrogate and steps.

    Raises:
        UsageError: The surrogate diverges.
    """
    store = material.store
    bound = float(material.budget.levels)
    surrogate = trainable_surrogate(material, settings.surrogate, "rem", lr=settings.lr, clip=settings.clip or math.inf)
    augment = augmentation(settings.augment)
    draw = stream(material.seed, "rem", "draws")
    chunks = torch.split(torch.arange(len(store)), settings.batch_size)
    total = settings.theta_steps + len(chunks)

    def change(indices: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        delta = defence(surrogate, x * 255, labels, bound, settings, draw)
        surrogate.report(material, settings.theta_steps + int(indices[-1]) // settings.batch_size + 1, total)
        return delta / 255

    with seeded(material.seed, "rem", "layers"):
        indices = endless_indices(material, settings.batch_size, "rem")
        for number in range(settings.theta_steps):
            batch = fetch(store, next(indices))
            clean = batch.x * 255
            protected = (clean + defence(surrogate, clean, batch.y, bound, settings, draw)) / 255
            seen = augment(protected, draw)
            worst = seen + adversary(surrogate, seen, batch.y, settings, draw)
            rate = settings.lr * 0.1 ** (number // settings.decay_every)
            surrogate.report(material, number + 1, total, loss=surrogate.train_step(worst, batch.y, lr=rate))
        return material.filled(change, chunks)


REM = Baseline(
    function=robust_error_minimising,
    norm="Linf",
    rho=PUBLISHED_RHO,
    scope="sample",
    about="robust error-minimising noise, made against adversarial training (Fu et al., ICLR 2022)",
    settings=REMSettings,
)
