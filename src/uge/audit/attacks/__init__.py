"""What a hacker does with a published folder: one attack, one file."""

from uge.audit.attacks.base import Attack, Context
from uge.audit.attacks.direct import direct
from uge.audit.attacks.distill import distill, distill_inside
from uge.audit.attacks.preprocess import PREPROCESSING
from uge.errors import UnknownNameError

ATTACKS: dict[str, Attack] = {
    "direct": direct,
    "distill": distill,
    "distill-inside": distill_inside,
    **PREPROCESSING,
}
"""Attacks by name; those whose names start with ``distill`` need the trained authorised network."""


def attack(name: str) -> Attack:
    """Look an attack up.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if name not in ATTACKS:
        raise UnknownNameError("attack", name, ATTACKS)
    return ATTACKS[name]


__all__ = ["ATTACKS", "Attack", "Context", "attack", "direct", "distill"]
