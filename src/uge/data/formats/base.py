"""What all formats share: the table's row type, names of splits, labels and ids."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uge.data.images import ImageSet
from uge.errors import DataError

logger = logging.getLogger(__name__)

# Split name as the source spells it → opens that split. Making the mapping must stay cheap.
Splits = Mapping[str, Callable[[], ImageSet]]


@dataclass(frozen=True)
class Format:
    """One row of the table of formats.

    Attributes:
        name: For messages.
        detect: Whether a path is of this format; looks at names, not at pixels.
        splits: The splits of such a path.
    """

    name: str
    detect: Callable[[Path], bool]
    splits: Callable[[Path], Splits]


_LARGEST = 10_000
"""A label below it is taken as it is, however few images there are."""
_TRAIN = ("train", "training")
_TEST = ("test", "testing")
_VALIDATION = ("validation", "valid", "val", "dev")
SPLIT_NAMES = (*_TRAIN, *_TEST, *_VALIDATION)
_SAME = {name: group for group in (_TRAIN, _TEST, _VALIDATION) for name in group}
_IN_NAME = re.compile(rf"(?<![a-z])({'|'.join(sorted(SPLIT_NAMES, key=len, reverse=True))})(?![a-z])")


def choose_split(names: Iterable[str], split: str) -> str | None:
    """The name in ``names`` that stands for ``split``; "test" falls back to a validation split."""
    there = {name.lower(): name for name in names}
    wanted = split.lower()
    candidates = [wanted, *_SAME.get(wanted, ())]
    if wanted in _TEST:
        candidates += _VALIDATION
    return next((there[name] for name in candidates if name in there), None)


def split_in_name(name: str) -> str | None:
    """The split that a file name mentions: ``"train-00000-of-00002.parquet"`` → ``"train"``."""
    found = _IN_NAME.search(name.lower())
    return found.group(1) if found else None


def by_split(files: Sequence[Path], root: Path) -> dict[str, list[Path]]:
    """Files below ``root``, sorted by name and grouped by the split that their name or folder mentions.

    A file that mentions none is of the training split, unless another file names that one.
    """
    groups: dict[str, list[Path]] = {}
    silent = []
    for file in sorted(files):
        folders = file.parent.relative_to(root).as_posix()
        split = split_in_name(file.name) or split_in_name(folders)
        if split:
            groups.setdefault(split, []).append(file)
        else:
            silent.append(file)
    if silent and choose_split(groups, "train"):
        logger.warning("%s is not used: its name mentions no split, and other files do", silent[0])
    elif silent:
        groups["train"] = silent
    return groups


def row_ids(split: str, count: int) -> list[str]:
    """Ids of a row format: ``"train/00000000"`` and so on."""
    return [f"{split}/{row:08d}" for row in range(count)]


def label_values(values: Sequence[Any] | NDArray[Any], where: str) -> NDArray[Any]:
    """Labels as an array of int64 or of text.

    Raises:
        DataError: A label is missing, or they are neither whole numbers nor texts.
    """
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 1 and array.dtype.kind in "iub":
        return array.astype(np.int64)
    if array.ndim == 1 and array.dtype.kind == "U":
        return array
    if array.ndim == 1 and array.size == 0:
        return array.astype(np.int64)
    kind = f"an array of {array.dtype} with shape {array.shape}"
    raise DataError(f"labels of {where} must be one whole number or one text per image, got {kind}; convert them")


def class_names(train: NDArray[Any], others: Iterable[NDArray[Any]] = ()) -> tuple[str, ...]:
    """Class names where the source gives none.

    Text labels: the sorted distinct texts of the training split (a text that only the test split
    has is a mistake, found by ``encode_labels``). Numbers: ``"0"`` up to the largest of all splits.

    Raises:
        DataError: The largest number is out of all proportion to the images.
    """
    if train.dtype.kind == "U":
        return tuple(str(name) for name in np.unique(train))
    numbers = [labels for labels in (train, *others) if labels.size and labels.dtype.kind == "i"]
    largest = max((int(labels.max()) for labels in numbers), default=-1)
    images = max((len(labels) for labels in numbers), default=0)
    if largest >= max(_LARGEST, 10 * images):
        raise DataError(
            f"the label {largest} of {images} images would mean {largest + 1} classes; number the classes from 0"
        )
    return tuple(str(number) for number in range(largest + 1))


def encode_labels(values: NDArray[Any], classes: Sequence[str], where: str) -> NDArray[np.int64]:
    """Labels as indices into ``classes``.

    Raises:
        DataError: A text label is no class name.
    """
    if values.dtype.kind == "i":
        return values
    index = {name: number for number, name in enumerate(classes)}
    distinct, inverse = np.unique(values, return_inverse=True)
    unknown = [str(name) for name in distinct if str(name) not in index]
    if unknown:
        raise DataError(f"{where}: label '{unknown[0]}' is no class of the training split; rename it or add the class")
    numbers = np.array([index[str(name)] for name in distinct], dtype=np.int64)
    return numbers[inverse]
