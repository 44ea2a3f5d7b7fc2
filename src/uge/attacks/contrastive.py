"""Attacks with few labelled clean images: features from the copy, with or without its labels, then a last layer."""

import functools
import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uge.attacks.augment import luma
from uge.attacks.base import Context, Entry, learn
from uge.attacks.transfer import classifier, probe
from uge.data.loader import Batch
from uge.data.store import PixelStore
from uge.learning.objectives import Objective, evaluating, full_precision
from uge.learning.training import History, fit
from uge.networks import ImageClassifier
from uge.progress import part_of
from uge.runtime import seeded, stream, stream_seed

EPOCHS = 2  # Factor of the recipe's epochs for learning features.
TEMPERATURE = 0.5
PROJECTED = 64  # Dimensions in which two views of an image are compared.
LEAST_AREA = 0.3  # Smallest part of an image that a view shows.
JITTER = 0.4  # Largest relative change of brightness, contrast and colour.
GRAY = 0.2  # Share of gray views.


class Projected(nn.Module):
    """Features of a classifier behind a projection of two layers, on the unit sphere.

    Args:
        network: The classifier; its last layer has no part in this.
        width: Features of the network.
    """

    def __init__(self, network: ImageClassifier, width: int) -> None:
        super().__init__()
        self.network = network
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PROJECTED))

    def forward(self, x: Tensor) -> Tensor:
        """Pixels in [0, 1], (B, channels, H, W), to unit vectors, (B, :data:`PROJECTED`)."""
        return F.normalize(full_precision(self.projection(self.network.features(x))), dim=1)


def view(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random part of every image at full size, half of them mirrored, in other tones, some gray (SimCLR).

    Args:
        x: Pixels in [0, 1], batch × channels × height × width.
        generator: Source of the views, on the CPU.

    Returns:
        Pixels of the same shape.
    """
    count = len(x)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    side = uniform(LEAST_AREA, 1).sqrt()
    ratio = torch.exp(uniform(-math.log(4 / 3), math.log(4 / 3)) / 2)
    wide = (side * ratio).clamp_max(1)
    tall = (side / ratio).clamp_max(1)
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0] = torch.where(torch.rand(count, generator=generator) < 0.5, -wide, wide)
    matrix[:, 1, 1] = tall
    matrix[:, 0, 2] = (1 - wide) * uniform(-1, 1)
    matrix[:, 1, 2] = (1 - tall) * uniform(-1, 1)
    grid = F.affine_grid(matrix.to(x.device), list(x.shape), align_corners=False)
    out = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    for centre in (lambda y: torch.zeros_like(y), lambda y: luma(y).mean((2, 3), keepdim=True), luma):
        strength = uniform(1 - JITTER, 1 + JITTER)[:, None, None, None].to(x.device)
        middle = centre(out)
        out = (middle + strength * (out - middle)).clamp(0, 1)
    gray = (torch.rand(count, generator=generator) < GRAY)[:, None, None, None].to(x.device)
    return torch.where(gray, luma(out), out)


def nt_xent(first: Tensor, second: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Cross-entropy of finding the other view of an image among all views (NT-Xent; Chen et al., 2020, Eq. 1).

    Args:
        first: Unit vectors of one view of every image, (B, D).
        second: Unit vectors of another view, (B, D).
        temperature: Divides the cosines.
    """
    count = len(first)
    both = torch.cat([first, second])
    cosines = both @ both.T / temperature
    cosines = cosines.masked_fill(torch.eye(2 * count, dtype=torch.bool, device=both.device), -math.inf)
    other = torch.arange(2 * count, device=both.device).roll(count)
    return F.cross_entropy(cosines, other)


def contrast(generator: torch.Generator, classes: int) -> Objective:
    """NT-Xent of two random views; the training accuracy is that of the nearest other image's label.

    Args:
        generator: Source of the views.
        classes: Number of classes of the labels, which enter nothing but that accuracy.
    """

    def objective(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        with torch.autocast(batch.x.device.type, enabled=False):
            views = torch.cat([view(batch.x, generator), view(batch.x, generator)])
        first, second = network(views).chunk(2)
        nearest = (first @ first.T).detach().fill_diagonal_(-math.inf).argmax(1)
        logits = F.one_hot(batch.y[nearest], classes).float()
        return {"loss": nt_xent(first, second), "logits": logits}

    return objective


def pretrain(network: ImageClassifier, store: PixelStore, context: Context) -> None:
    """Train features of ``network`` in place, on the images of ``store`` without their labels."""
    with seeded(context.seed, "contrastive"), evaluating(network), torch.no_grad():
        width = network.features(torch.zeros(1, network.channels, network.size, network.size)).shape[1]
    with seeded(context.seed, "contrastive", "projection"):
        projected = Projected(network, width)
    recipe = context.recipe.model_copy(update={"epochs": EPOCHS * context.recipe.epochs, "augment": "none"})
    objective = contrast(stream(context.seed, "contrastive", "views"), len(store.classes))
    fit(
        projected,
        store,
        recipe,
        seed=stream_seed(context.seed, "contrastive"),
        runtime=context.runtime,
        objective=objective,
    )


def repeated(few: PixelStore, count: int) -> PixelStore:
    """The few images over and over, ``count`` of them."""
    return few.subset(torch.arange(count) % len(few))


def _contrastive(context: Context) -> History:
    few = repeated(context.few(), len(context.store))  # First, so that nothing is trained where there are none.
    pretrain(classifier(context.network), context.store, context)
    return probe(replace(context, store=few, chooses=False))


def _last_layer(context: Context) -> History:
    few = repeated(context.few(), len(context.store))
    first = learn(replace(context, chooses=False, progress=part_of(context.progress, 0, 2)))
    second = probe(replace(context, store=few, chooses=False, progress=part_of(context.progress, 1, 2)))
    return replace(second, seconds=first.seconds + second.seconds)


_few = functools.partial(Entry, family="transfer", needs=frozenset({"few"}))

FEW: dict[str, Entry] = {
    "contrastive": _few(
        _contrastive,
        about="learns features from the published images without their labels (SimCLR), then a last layer on ten "
        "labelled clean images a class",
        cost=4.5,
        expected=5.0,
    ),
    "last-layer-few": _few(
        _last_layer,
        about="trains on the published images and then the last layer again on ten labelled clean images a class",
        cost=1.4,
        expected=30.0,
    ),
}
