"""How names of networks begin that are not in the table, and how names of attacks are joined. Needs no torch."""

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
    """Whether a network stands behind a wave key."""
    return network.startswith(KEYED)
