"""How names of networks begin that are not in the table, and how names of attacks are joined. Needs no torch."""

from uge.errors import UsageError

KEYED = "keyed:"
"""A secret wave key stands in front of the network named after it."""
TIMM = "timm:"
"""A model of timm."""
CHECKPOINT = "checkpoint:"
"""A file or folder on disk, whose features the network starts from."""
PLUS = "+"
"""Joins two attacks of which the first is done before the second."""


def behind_key(network: str) -> str:
    """A network's name without the wave key in front of it, if it has one."""
    return network.removeprefix(KEYED)


def is_keyed(network: str) -> bool:
    """True for a network with a wave key."""
    return network.startswith(KEYED)


def split_names(text: str) -> list[str]:
    """Names separated by commas, without blanks.

    Raises:
        UsageError: There is none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"expected names separated by commas, got '{text}'")
    return names
