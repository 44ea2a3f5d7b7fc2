"""Attacks that change the published images before training, and the test images in the same way."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from torch import Tensor

from uge.attacks import filters
from uge.attacks.base import Context, Entry, Preparation, batched
from uge.attacks.filters import jpeg
from uge.attacks.notch import notch
from uge.attacks.waves import wave_terms, without_waves
from uge.data.store import PixelStore
from uge.runtime import stream, stream_seed

Transform = Callable[[Tensor], Tensor]
"""uint8 pixels, batch × channels × size × size, to pixels of the same shape and type."""


def transformed(store: PixelStore, change: Transform) -> PixelStore:
    """A store with every image changed, batch by batch."""
    found = store.empty_like()
    for rows in batched(store):
        found.pixels.write(rows, change(store.pixels.read(rows)))
    return found


def changing(transform: Callable[[Context], Transform]) -> Preparation:
    """A transform of every image that the hacker has, of the test set too."""

    def prepare(context: Context) -> Context:
        change = transform(context)
        store, test = (transformed(images, change) for images in (context.store, context.test))
        return dataclasses.replace(
            context,
            store=store,
            test=test,
            clean=lambda: transformed(context.clean(), change),
            public=lambda: transformed(context.public(), change),
        )

    return prepare


def _fixed(transform: Callable[..., Tensor], **settings: float) -> Callable[[Context], Transform]:
    return lambda context: functools.partial(transform, **settings)


def _colour_projection(context: Context) -> Transform:
    return lambda pixels: filters.colour_projection(pixels, stream(context.seed, "colour-projection"))


def _wave_removal(context: Context) -> Transform:
    return functools.partial(without_waves, terms=wave_terms(len(context.store.classes)))


def _other_key(context: Context) -> Transform:
    classes, seed = len(context.store.classes), stream_seed(context.seed, "wave-key")
    return functools.partial(filters.other_key, classes=classes, seed=seed)


QUALITIES = {10: 60.0, 30: 40.0, 50: 30.0, 75: 20.0, 90: 10.0}
"""JPEG qualities and what they are expected to win back; only the first was in the public benchmark."""

_ROWS: dict[str, tuple[Callable[[Context], Transform], str, float, float]] = {
    "grayscale": (_fixed(filters.grayscale), "turns every image gray", 1.0, 40.0),
    **{
        f"jpeg{quality}": (_fixed(jpeg, quality=quality), f"compresses as JPEG of quality {quality}", 1.0, gain)
        for quality, gain in QUALITIES.items()
    },
    "bdr2": (_fixed(filters.posterise, bits=2), "keeps 4 of 256 levels (bit-depth reduction)", 1.0, 30.0),
    "bdr4": (_fixed(filters.posterise, bits=4), "keeps 16 of 256 levels (bit-depth reduction)", 1.0, 10.0),
    "gaussian-blur": (_fixed(filters.gaussian_blur, sigma=1.0), "blurs with a Gaussian of one pixel", 1.0, 10.0),
    "median-blur": (_fixed(filters.median_blur, side=3), "takes the median of 3 × 3 pixels", 1.0, 10.0),
    "sharpen": (_fixed(filters.sharpen, sigma=1.0), "sharpens by an unsharp mask of one pixel", 1.0, 5.0),
    "colour-projection": (_colour_projection, "drops one random direction of colour", 1.0, 15.0),
    "low-pass": (
        _fixed(filters.low_pass, part=0.5),
        "keeps the lower half of the frequencies along each side",
        1.0,
        10.0,
    ),
    "notch": (notch, "drops the frequencies that stand out of the published images' own spectrum", 1.0, 10.0),
    "resize": (_fixed(filters.resize_down_up, part=0.5), "scales to half the size and up again", 1.0, 15.0),
    "wave-removal": (
        _wave_removal,
        "searches every image, without the key, for the waves of a wave key and takes them out",
        1.2,
        60.0,
    ),
    "other-key": (_other_key, "trains behind a wave key of the hacker's own", 1.1, 10.0),
}

_REVISIONS = {"other-key": 1}
"""Attacks that once were something else; the first form of this one had a key of colours."""

__all__ = ["PREPROCESSING", "TRANSFORMS", "Transform", "changing", "jpeg", "transformed"]

TRANSFORMS = {name: row[0] for name, row in _ROWS.items()}
"""What makes each transform for one attack."""

PREPROCESSING: dict[str, Entry] = {
    name: Entry.prepared(
        changing(transform), "preprocess", about, cost=cost, expected=expected, revision=_REVISIONS.get(name, 0)
    )
    for name, (transform, about, cost, expected) in _ROWS.items()
}
"""Attacks by name."""
