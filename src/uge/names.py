"""Prefixes of network names outside the table, and the sign that joins names of attacks. Needs no torch."""

#: Prefix of a network with a secret wave key in front of it.
KEYED = "keyed:"
#: Prefix of a file or folder on disk, whose features the network starts from.
CHECKPOINT = "checkpoint:"
#: Joins two attacks of which the first is done before the second.
PLUS = "+"


def behind_key(network: str) -> str:
    """Name of a network without the prefix of a wave key."""
    return network.removeprefix(KEYED)


def is_keyed(network: str) -> bool:
    """True for networks with a wave key."""
    return network.startswith(KEYED)
