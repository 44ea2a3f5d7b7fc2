"""Surrogate networks, trained on the clean images through random filters; some of them adversarially."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from uge.data.loader import Batch
from uge.data.store import PixelStore
from uge.learning.objectives import Objective, adversarial, supervised
from uge.learning.recipes import Recipe
from uge.learning.training import fit
from uge.methods.robust.filters import NUMBERS, filtered
from uge.methods.robust.settings import FilterShares, RobustSettings, SurrogateName
from uge.networks import ImageClassifier, build, load_weights, restore, save_weights
from uge.progress import Progress, part_of
from uge.runtime import Runtime, stream, stream_seed

PlaceOf = Callable[[str], Path | None]


def file_name(number: int) -> str:
    """Name of the file of a trained surrogate."""
    return f"surrogate-{number}.safetensors"


def train_surrogates(
    store: PixelStore,
    settings: RobustSettings,
    *,
    seed: int,
    runtime: Runtime,
    place: PlaceOf = lambda name: None,
    progress: Progress | None = None,
) -> list[ImageClassifier]:
    """Every surrogate of the settings, trained and frozen, in evaluation mode.

    Args:
        store: Clean images.
        settings: Names, epochs and filters.
        seed: Root seed.
        runtime: Device and precision.
        place: Gives the file of a name, from which a trained surrogate is read, or an interrupted training resumes;
            None keeps it in memory. The weights are the same.
        progress: Called after every epoch.

    Raises:
        UnknownNameError: There is no such network.
        DivergedError: A loss is not finite.
    """
    names = settings.surrogate_names
    return [
        runtime.place(
            _trained(
                number,
                name,
                store,
                settings,
                stream_seed(seed, "robust", "surrogate", number),
                runtime,
                place,
                part_of(progress, number, len(names)),
            )
        )
        .eval()
        .requires_grad_(False)
        for number, name in enumerate(names)
    ]


def _trained(
    number: int,
    name: SurrogateName,
    store: PixelStore,
    settings: RobustSettings,
    seed: int,
    runtime: Runtime,
    place: PlaceOf,
    progress: Progress | None,
) -> ImageClassifier:
    network = build(name.network, len(store.classes), channels=store.channels, size=store.size, seed=seed)
    path = place(file_name(number))
    if path is not None and path.is_file():
        restore(network, *load_weights(path))
        return network
    fit(
        network,
        store,
        Recipe(epochs=settings.work.epochs),
        seed=seed,
        runtime=runtime,
        objective=through_filters(settings.filters, seed, radius=name.radius),
        checkpoint=place(f"surrogate-{number}.checkpoint.safetensors"),
        progress=progress,
    )
    if path is not None:
        save_weights(path, network)
    return network


def through_filters(shares: FilterShares, seed: int, *, radius: int = 0) -> Objective:
    """Cross-entropy on images that have passed a random filter each, after the recipe's own augmentation.

    Random numbers follow from the images of a batch and not from what was drawn before, so a resumed run draws those of
    an uninterrupted one.

    Args:
        shares: Frequency of each filter.
        seed: Root of the streams.
        radius: Radius in 8-bit levels within which one sign step of 1.25 radii looks for the highest loss first (fast
            adversarial training, Wong et al., 2020); 0 for none.
    """

    def objective(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        draw = stream(seed, "filters", hashlib.sha256(batch.indices.numpy().tobytes()).hexdigest())
        with torch.autocast(batch.x.device.type, enabled=False):  # Pixels keep their precision.
            x = filtered(batch.x, torch.rand(len(batch.y), NUMBERS, generator=draw), shares)
        own = adversarial(draw, radius=radius / 255, step=1.25 * radius / 255, steps=1) if radius else supervised
        return own(network, replace(batch, x=x))

    return objective
