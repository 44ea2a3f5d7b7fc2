"""What a hacker does with a published folder: a table of named attacks (docs/attacks.md)."""

import functools

from uge.attacks.augment import AUGMENTATION
from uge.attacks.base import Attack, Context, Entry, direct
from uge.attacks.combine import combination
from uge.attacks.distill import DISTILLATION, distill
from uge.attacks.knowledge import KNOWLEDGE
from uge.attacks.preprocess import PREPROCESSING
from uge.attacks.purify import PURIFICATION
from uge.attacks.train import TRAINING
from uge.attacks.transfer import TRANSFER
from uge.errors import UnknownNameError
from uge.names import PLUS

ATTACKS: dict[str, Entry] = {
    "direct": Entry(direct, "plain", "trains on the published images and labels as anybody would", expected=0.0),
    **PREPROCESSING,
    **AUGMENTATION,
    **TRAINING,
    **PURIFICATION,
    **TRANSFER,
    **DISTILLATION,
    **KNOWLEDGE,
}
"""Attacks by name; any two of them are a third, named ``A+B`` (:func:`attack`)."""


def attack(name: str) -> Entry:
    """Look an attack up; ``A+B`` is the combination of both (:func:`combination`).

    Raises:
        UnknownNameError: There is none of that name.
        UsageError: The parts cannot be combined.
    """
    parts = name.split(PLUS)
    for part in parts:
        if part not in ATTACKS:
            raise UnknownNameError("attack", part, ATTACKS, "two of them make a third: 'grayscale+ueraser'")
    return functools.reduce(combination, (ATTACKS[part] for part in parts))


__all__ = ["ATTACKS", "Attack", "Context", "Entry", "attack", "combination", "direct", "distill"]
