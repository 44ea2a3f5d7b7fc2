"""Division of labelled images among servers: every image goes to exactly one."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from uge.errors import DataError, UnknownNameError, UsageError
from uge.runtime import stream_seed

Rows = NDArray[np.int64]
_TRIES = 200


def split_rows(labels: Rows, servers: int, split: str, *, alpha: float = 0.5, seed: int = 0) -> list[Rows]:
    """Positions of each server's images, in ascending order.

    Args:
        labels: int64, one per image.
        servers: Number of parts, at least 2.
        split: A name in :data:`SPLITS`.
        alpha: Concentration of the Dirichlet split, above 0.
        seed: Root seed; ``classes`` draws nothing.

    Returns:
        One array per server; together they hold every position once.

    Raises:
        UnknownNameError: There is no such split.
        UsageError: Fewer than two servers, or ``alpha`` is not above 0.
        DataError: A server would get fewer than two classes with two images each.
    """
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    if servers < 2 or alpha <= 0:
        raise UsageError(f"a split needs at least 2 servers and alpha above 0, got {servers} and {alpha:g}")
    for attempt in range(_TRIES):
        owner = SPLITS[split](labels, servers, alpha, np.random.default_rng(stream_seed(seed, "split", split, attempt)))
        parts = [np.flatnonzero(owner == server) for server in range(servers)]
        if all(_trainable(labels[part]) for part in parts):
            return parts
        if split != "dirichlet":
            break
    raise DataError(
        f"{len(labels)} images of {len(np.unique(labels))} classes cannot be divided among {servers} servers by "
        f"'{split}' so that each has two classes with at least two images each; take fewer servers or more images"
    )


def _trainable(labels: Rows) -> bool:
    """True where ``ImageSet.check_trainable`` accepts a part."""
    counts = np.bincount(labels)
    used = counts[counts > 0]
    return len(used) >= 2 and int(used.min()) >= 2


def _by_classes(labels: Rows, servers: int, alpha: float, random: np.random.Generator) -> Rows:
    """Consecutive blocks of classes, as in Table 9; with 10 classes and 2 servers, five each."""
    owner = np.empty(len(labels), dtype=np.int64)
    for server, block in enumerate(np.array_split(np.unique(labels), servers)):
        owner[np.isin(labels, block)] = server
    return owner


def _iid(labels: Rows, servers: int, alpha: float, random: np.random.Generator) -> Rows:
    """Equal shares of every class, dealt out like cards, so that sizes differ by one image at most."""
    owner = np.empty(len(labels), dtype=np.int64)
    dealt = 0
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        owner[rows] = (dealt + np.arange(len(rows))) % servers
        dealt += len(rows)
    return owner


def _dirichlet(labels: Rows, servers: int, alpha: float, random: np.random.Generator) -> Rows:
    """Shares of every class from a symmetric Dirichlet distribution (Hsu, Qi and Brown, arXiv 1909.06335).

    A single image of a class goes to the server that has most of that class: no classifier learns from one.
    """
    owner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        cuts = np.round(np.cumsum(random.dirichlet(np.full(servers, alpha))) * len(rows)).astype(np.int64)[:-1]
        mine = np.searchsorted(cuts, np.arange(len(rows)), side="right")
        counts = np.bincount(mine, minlength=servers)
        owner[rows] = np.where(counts[mine] == 1, counts.argmax(), mine)
    return owner


SPLITS: Mapping[str, Callable[[Rows, int, float, np.random.Generator], Rows]] = {
    "classes": _by_classes,
    "iid": _iid,
    "dirichlet": _dirichlet,
}
"""From labels, number of servers, alpha and random numbers to the server of each image."""
