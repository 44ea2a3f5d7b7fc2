"""Attacks that train with stronger augmentation, after the recipe's own crops and flips; test images stay."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from uge.attacks import policies
from uge.attacks.base import Attack, Entry, learn
from uge.data.augment import cutout
from uge.learning.objectives import Objective, augmented, cutmix, error_maximising, mixup
from uge.runtime import stream

COPIES = 5
"""Augmentations of which UEraser takes the one with the largest loss."""


def drawn(name: str, make: Callable[[torch.Generator], Objective]) -> Attack:
    """Plain training by an objective that draws from the stream ``name`` of the attack's seed."""
    return lambda context: learn(context, make(stream(context.seed, name)))


_ROWS: dict[str, tuple[Callable[[torch.Generator], Objective], str, float, float]] = {
    "cutout16": (
        functools.partial(augmented, cutout),
        "covers a random square of half the side (16 of 32 pixels)",
        1.0,
        5.0,
    ),
    "mixup": (mixup, "trains on blends of two images and of their labels", 1.1, 15.0),
    "cutmix": (cutmix, "trains on images with a box of another image pasted in", 1.0, 8.0),
    "randaugment": (
        functools.partial(augmented, policies.randaugment),
        "trains with two random operations on every image (RandAugment)",
        1.1,
        10.0,
    ),
    "random-colour": (
        functools.partial(augmented, policies.random_colour),
        "drops another random direction of colour from every image in every step",
        1.1,
        15.0,
    ),
    "ueraser": (
        functools.partial(error_maximising, policies.ueraser, count=COPIES),
        "trains on the hardest of five strong augmentations of every image (UEraser)",
        5.2,
        70.0,
    ),
    "ueraser-lite": (
        functools.partial(augmented, policies.ueraser),
        "trains on one strong augmentation of every image (UEraser without its worst of five)",
        1.6,
        50.0,
    ),
}
_REVISIONS = {"ueraser": 1, "ueraser-lite": 1}

AUGMENTATION: dict[str, Entry] = {
    name: Entry(drawn(name, make), "augment", about, cost=cost, expected=expected, revision=_REVISIONS.get(name, 0))
    for name, (make, about, cost, expected) in _ROWS.items()
}
"""Attacks by name."""
