"""Union of the published parts as one image set (Eq. 15); images are read when asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uge.data.images import ImageSet, Pixels
from uge.errors import DataError


@dataclass(frozen=True)
class _Joined:
    """Reader of several sets, one after the other."""

    sets: tuple[ImageSet, ...]
    ends: tuple[int, ...]

    def read(self, row: int) -> Pixels:
        """Image ``row`` of all."""
        number = int(np.searchsorted(self.ends, row, side="right"))
        return self.sets[number].read(row - (self.ends[number - 1] if number else 0))


def union(parts: Sequence[ImageSet], name: str = "union") -> ImageSet:
    """Join the images of ``parts``, in their order; no pixel is read.

    Ids become ``server-K/ID``, since servers that do not talk to each other may use the same ids.

    Args:
        parts: One set per server, of the same class names in the same order.
        name: Name of the union in reports.

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
        name=name,
        split="train",
        classes=parts[0].classes,
        labels=np.concatenate([part.labels for part in parts]),
        ids=[f"server-{number}/{id}" for number, part in enumerate(parts) for id in part.ids],
        reader=_Joined(tuple(parts), ends),
        rows=np.arange(ends[-1], dtype=np.int64),
    )
