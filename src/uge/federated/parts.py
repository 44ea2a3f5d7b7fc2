"""Parts of a federation: division of the images among servers, the servers' folders, and the union of the parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uge.data import load_images
from uge.data.formats.base import COLUMNS
from uge.data.formats.part import SUFFIX
from uge.data.formats.sealed import SCHEME
from uge.data.images import ImageSet, Pixels
from uge.errors import DataError, UnknownNameError, UsageError
from uge.files import write_json
from uge.publishing import private_folder
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
    _, counts = np.unique(labels, return_counts=True)
    return len(counts) >= 2 and int(counts.min()) >= 2


def _by_classes(labels: Rows, servers: int, alpha: float, random: np.random.Generator) -> Rows:
    """Consecutive blocks of classes, as in Table 9; with 10 classes and 2 servers, five each."""
    owner = np.empty(len(labels), dtype=np.int64)
    for server, block in enumerate(np.array_split(np.unique(labels), servers)):
        owner[np.isin(labels, block)] = server
    return owner


def _iid(labels: Rows, servers: int, alpha: float, random: np.random.Generator) -> Rows:
    """Equal shares of every class, dealt out like cards, so that sizes differ by one image at most."""
    owner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        owner[rows] = (np.count_nonzero(labels < label) + np.arange(len(rows))) % servers
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


@dataclass(frozen=True)
class Server:
    """Folder of one server: ``originals.part.json``, ``published`` and ``published.private``.

    Attributes:
        number: Number of the server, from 0.
        folder: Place of everything that it reads or writes, except the source of its originals.
    """

    number: int
    folder: Path

    @classmethod
    def at(cls, out: Path, number: int) -> Server:
        """Server ``number`` of the federation in ``out``."""
        return cls(number, out / f"server-{number}")

    @property
    def part(self) -> Path:
        """File that names the server's own images; a source for ``uge protect``."""
        return self.folder / f"originals{SUFFIX}"

    @property
    def published(self) -> Path:
        """Published folder."""
        return self.folder / "published"

    @property
    def key(self) -> Path:
        """Key file of the global network with θ0."""
        return private_folder(self.published) / "authorized-0.key.safetensors"

    def originals(self) -> ImageSet:
        """Clean images of the server."""
        return load_images(self.part)

    def images(self) -> ImageSet:
        """Published images of the server."""
        return load_images(self.published)


def write_part(server: Server, source: str, images: ImageSet, rows: list[int], *, limit: int | None) -> None:
    """Write the file that names the server's own images of a source.

    Args:
        server: The server.
        source: Source for ``load_images``; a path becomes absolute.
        images: The source's training images, with the shared class names.
        rows: Positions of the server's images among them.
        limit: Number of training images that were read of the source.
    """
    scheme = SCHEME if source.startswith(SCHEME) else ""
    path = Path(source.removeprefix(scheme)).expanduser()
    write_json(
        server.part,
        {
            "source": f"{scheme}{path.resolve()}" if path.exists() else source,
            "limit": limit,
            "images": len(images),
            "classes": list(images.classes),
            "rows": rows,
            **{f"{kind}_column": name for kind, name in vars(COLUMNS.get()).items() if name is not None},
        },
    )


@dataclass(frozen=True)
class _Joined:
    sets: tuple[ImageSet, ...]
    ends: tuple[int, ...]

    def read(self, row: int) -> Pixels:
        number = int(np.searchsorted(self.ends, row, side="right"))
        return self.sets[number].read(row - (self.ends[number - 1] if number else 0))


def union(parts: Sequence[ImageSet]) -> ImageSet:
    """Join the images of ``parts``, in their order (Eq. 15); images are read when asked for.

    Ids become ``server-K/ID``, since servers that do not talk to each other may use the same ids.

    Args:
        parts: One set per server, of the same class names in the same order.

    Raises:
        DataError: There is no part, or class names differ.
    """
    if not parts:
        raise DataError("a union needs at least one part, got none")
    for number, part in enumerate(parts):
        if part.classes != parts[0].classes:
            raise DataError(
                f"server 0 has the classes {list(parts[0].classes)}, but server {number} has {list(part.classes)}; "
                "agree on one list of classes and protect again"
            )
    ends = tuple(int(end) for end in np.cumsum([len(part) for part in parts]))
    return ImageSet(
        name="union",
        split="train",
        classes=parts[0].classes,
        labels=np.concatenate([part.labels for part in parts]),
        ids=[f"server-{number}/{id}" for number, part in enumerate(parts) for id in part.ids],
        reader=_Joined(tuple(parts), ends),
        rows=np.arange(ends[-1], dtype=np.int64),
    )
