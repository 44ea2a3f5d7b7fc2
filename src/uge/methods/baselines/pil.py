"""PIL: noise that a linear network takes for the class.

Code of jinlinll/pil, ICLR 2026.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from uge.data.store import PixelStore, Records
from uge.learning.recipes import Recipe
from uge.learning.training import fit
from uge.methods.baselines.base import PUBLISHED_RHO, Baseline, Material, Settings
from uge.runtime import Runtime, seeded, stream

_PUBLISHED_IMAGES = 50_000  # Size of the training set that the settings were published for.


class PilSettings(Settings):
    """Settings of PIL.

    Attributes:
        epochs: Epochs of the linear surrogate.
        lr: Learning rate of the surrogate (SGD, cosine).
        batch_size: Batch size of the surrogate for 50,000 images; smaller in proportion for fewer images, so that
            it takes as many steps (at least 8 images).
        steps: Sign steps on every perturbation.
        step: Length of a sign step in [0, 1] units.
        weight: Weight of the cross-entropy of the perturbation alone; the rest goes to the uniform term.
    """

    epochs: int = Field(30, ge=1)
    lr: float = Field(0.003, gt=0)
    batch_size: int = Field(512, ge=2)
    steps: int = Field(30, ge=1)
    step: float = Field(0.8 / 255, gt=0)
    weight: float = Field(0.9, ge=0, le=1)


def linear_surrogate(store: PixelStore, settings: PilSettings, seed: int, runtime: Runtime) -> nn.Module:
    """Two linear layers without bias, from pixels in [0, 1] to logits, trained on the clean images and frozen."""
    classes = len(store.classes)
    with seeded(seed, "pil-surrogate"):
        network = nn.Sequential(
            nn.Flatten(),
            nn.Linear(store.channels * store.size**2, classes, bias=False),
            nn.Linear(classes, classes, bias=False),
        )
    recipe = Recipe(
        lr=settings.lr,
        epochs=settings.epochs,
        batch_size=min(settings.batch_size, max(8, settings.batch_size * len(store) // _PUBLISHED_IMAGES)),
        schedule="cosine",
        weight_decay=0,
        augment="none",
    )
    fit(network, store, recipe, seed=seed, runtime=Runtime(runtime.device, "fp32"))
    return network.requires_grad_(False)


def linear_loss(network: nn.Module, x: Tensor, delta: Tensor, labels: Tensor, weight: float) -> Tensor:
    """w · CE(f(δ), y) + (1 - w) · KL(uniform ‖ f(x - δ)), means over the batch.

    Args:
        network: Pixels to logits.
        x: Pixels in [0, 1].
        delta: Perturbation that is subtracted from them, in [0, 1] units, same shape.
        labels: int64 labels.
        weight: w.
    """
    answers = F.log_softmax(network(x - delta), 1)
    even = F.kl_div(answers, torch.full_like(answers, 1 / answers.shape[1]), reduction="batchmean")
    return weight * F.cross_entropy(network(delta), labels) + (1 - weight) * even


def _linear_noise(material: Material, settings: PilSettings) -> Records:
    rho = material.budget.rho
    network = linear_surrogate(material.store, settings, material.seed, material.runtime)

    def change(indices: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        generator = stream(material.seed, "pil-start", int(indices[0]))
        delta = rho * (2 * torch.rand(x.shape, generator=generator).to(x.device) - 1)
        for _ in range(settings.steps):
            delta.requires_grad_(True)
            (gradient,) = torch.autograd.grad(linear_loss(network, x, delta, labels, settings.weight), delta)
            delta = (delta.detach() - settings.step * gradient.sign()).clamp(-rho, rho)
        return -delta

    return material.filled(change)


PIL = Baseline(
    _linear_noise,
    norm="Linf",
    rho=PUBLISHED_RHO,
    scope="sample",
    about=(
        "PIL: noise that a linear network takes for the class, and without which it cannot tell the class "
        "(jinlinll/pil, ICLR 2026)."
    ),
    settings=PilSettings,
)
