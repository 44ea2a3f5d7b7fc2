"""Parts that all formats share: files by split, labels, class names, the image set and errors."""

import contextlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uge.data.images import NO_LABEL, ImageSet, Reader
from uge.errors import DataError, UnknownNameError
from uge.files import check_regular

logger = logging.getLogger(__name__)

# Split name as the source spells it → opens that split. Making the mapping must stay cheap.
Splits = Mapping[str, Callable[[], ImageSet]]

IMAGE_COLUMNS = ("image", "img", "images")
"""Names of a column of images in a table, in order of preference."""
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class")
"""Names of a column of labels in a table, in order of preference."""
_MOST_CLASSES = 10_000  # Not doubted, however few images there are.
_TRAIN = ("train", "training")
_TEST = ("test", "testing")
_VALIDATION = ("validation", "valid", "val", "dev")
SPLIT_NAMES = (*_TRAIN, *_TEST, *_VALIDATION)
SAME_SPLIT = {name: group for group in (_TRAIN, _TEST, _VALIDATION) for name in group}
"""Name of a split → all names of that split, the usual one first."""
_IN_NAME = re.compile(rf"(?<![a-z])({'|'.join(sorted(SPLIT_NAMES, key=len, reverse=True))})(?![a-z])")


class UnlabelledError(DataError):
    """Split without labels, as the test splits of competitions are published; raised where labels are needed."""


@dataclass(frozen=True)
class Columns:
    """Columns of images and of labels in a table; None for the usual names.

    Attributes:
        image: Column of images.
        label: Column of labels.
        labels: False where a set without labels is taken as well.
    """

    image: str | None = None
    label: str | None = None
    labels: bool = True


_USUAL = Columns()
COLUMNS: ContextVar[Columns] = ContextVar("columns", default=_USUAL)
"""Columns of the tables that are read from now on in this thread."""


@contextlib.contextmanager
def read_columns(columns: Columns) -> Iterator[None]:
    """Read these columns of every table inside the block."""
    token = COLUMNS.set(columns)
    try:
        yield
    finally:
        COLUMNS.reset(token)


def choose_column(
    kind: str, names: Sequence[str], given: str | None, usual: Sequence[str], where: str, of_kind: Sequence[str] = ()
) -> str:
    """Name of the column of images or labels in a table.

    Args:
        kind: ``"image"`` or ``"label"``, for messages.
        names: All columns.
        given: Column that was asked for, if any.
        usual: Names to look for, in order of preference.
        where: Name of the table in messages.
        of_kind: Columns whose type says that they are of this kind; taken where there is no other choice.

    Raises:
        UnknownNameError: The column that was asked for is not there.
        DataError: No column has a usual name, and none or several are of the kind.
    """
    if given is not None:
        if given not in names:
            raise UnknownNameError(f"{kind} column of {where}", given, names)
        return given
    chosen = next((name for name in usual if name in names), of_kind[0] if len(of_kind) == 1 else None)
    if chosen is None:
        raise DataError(
            f"{where} has no {kind} column (expected one of {', '.join(usual)}; there are: {', '.join(names)}); "
            f"rename the column, or name it by --{kind}-column"
        )
    return chosen


@contextlib.contextmanager
def data_errors(what: str, advice: str, kinds: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn exceptions of a library that reads a damaged file into one sentence.

    Args:
        what: Start of the sentence, for instance ``"tar file a.tar cannot be read"``.
        advice: End of the sentence: what to do.
        kinds: Exceptions of the library.

    Raises:
        DataError: "``what``: the library's message; ``advice``".
    """
    try:
        yield
    except DataError:
        raise
    except kinds as error:
        raise DataError(f"{what}: {error}; {advice}") from error


def choose_split(names: Iterable[str], split: str) -> str | None:
    """Name in ``names`` that stands for ``split``; a validation split stands in for a missing ``"test"``."""
    spelled = {name.lower(): name for name in names}
    wanted = split.lower()
    candidates = [wanted, *SAME_SPLIT.get(wanted, ()), *(_VALIDATION if wanted in _TEST else ())]
    return next((spelled[name] for name in candidates if name in spelled), None)


SEALED = "sealed"
"""Folder of a published folder with its encrypted originals."""


def source_files(path: Path, ending: str, *folders: str) -> list[Path]:
    """Files of one ending: the path itself, or those in a folder and in its sub-folders that are named like a split.

    Args:
        path: File or folder.
        ending: Ending with its dot, for instance ``".tar"``.
        folders: Names of further sub-folders.
    """
    if path.is_file():
        return [path] if path.suffix == ending else []
    places = [path, *(path / name for name in (*folders, *SPLIT_NAMES))]
    files = sorted(file for place in places for file in place.glob(f"*{ending}") if file.name[0] != ".")
    known = [*places, path / SEALED]
    skipped = sorted({file.parent for file in path.glob(f"*/*{ending}") if file.parent not in known}) if files else []
    if skipped:
        listed = ", ".join(place.name for place in skipped[:5])
        logger.warning("%s: the %s files in the folders %s are not used", path, ending, listed)
    return files


def by_split(files: Iterable[Path], path: Path) -> dict[str, list[Path]]:
    """Files by the split that their name, or else their folder below ``path``, mentions.

    A file that mentions none is of the training split. It is left out, with a warning, where other files mention the
    training split and further ones.
    """
    groups: dict[str, list[Path]] = {}
    for file in files:
        check_regular(file)
        folder = "" if file == path else file.parent.relative_to(path).as_posix()
        match = _IN_NAME.search(file.name.lower()) or _IN_NAME.search(folder.lower())
        groups.setdefault(match[1] if match else "", []).append(file)
    unnamed = groups.pop("", [])
    train = choose_split(groups, "train")
    if unnamed and train and len(groups) > 1:
        more = f" and {len(unnamed) - 1} more files are" if len(unnamed) > 1 else " is"
        logger.warning("%s%s not used: no split is in the name, and other files have one", unnamed[0], more)
    elif unnamed:
        groups[train or "train"] = sorted([*unnamed, *groups.get(train or "train", [])])
    return groups


def label_values(values: Sequence[Any] | NDArray[Any], where: str) -> NDArray[Any]:
    """Labels as an array of int64 or of text.

    Raises:
        DataError: A label is missing, or they are neither whole numbers nor texts.
    """
    expected = f"labels of {where} must be one whole number or one text per image"
    with data_errors(expected, "convert them", (ValueError,)):  # Lists of several lengths make no array.
        array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 1 and (array.dtype.kind in "iub" or not array.size):
        return array.astype(np.int64)
    if array.ndim == 1 and array.dtype.kind == "U":
        return array
    raise DataError(f"{expected}, got an array of {array.dtype} with shape {array.shape}; convert them")


def class_names(split: str, labels: Mapping[str, NDArray[Any]]) -> tuple[str, ...]:
    """Class names where the source gives none.

    Text labels: the sorted distinct texts of the training split (a text that only the test split
    has is a mistake, which ``image_set`` refuses). Numbers: ``"0"`` up to the largest of all splits.

    Args:
        split: Split that is opened; it decides where there is no training split.
        labels: Labels of every split, as ``label_values`` gives them.

    Raises:
        DataError: The largest number is out of all proportion to the images.
    """
    leading = labels[next((name for name in _TRAIN if name in labels), split)]
    if leading.dtype.kind == "U":
        return tuple(str(name) for name in np.unique(leading))
    numbers = [values for values in labels.values() if values.size and values.dtype.kind == "i"]
    largest = max((int(values.max()) for values in numbers), default=-1)
    images = max((len(values) for values in numbers), default=0)
    if largest >= max(_MOST_CLASSES, 10 * images):
        raise DataError(
            f"the label {largest} of {images} images would mean {largest + 1} classes; number the classes from 0"
        )
    return tuple(str(number) for number in range(largest + 1))


def no_labels(count: int) -> NDArray[np.int64]:
    """Labels of ``count`` images without labels."""
    return np.full(count, NO_LABEL, dtype=np.int64)


def image_set(
    source: Path | str,
    split: str,
    labels: NDArray[Any],
    classes: Sequence[str],
    reader: Reader,
    *,
    ids: Sequence[str] | None = None,
    count: int | None = None,
) -> ImageSet:
    """Image set of one split, in which row r of the reader has label r.

    Args:
        source: File or folder that was read, or the name of a source that is neither.
        split: Name of the split as the source spells it.
        labels: Labels as ``label_values`` gives them.
        classes: Class names.
        reader: Source of the pixels.
        ids: Sample ids; ``"train/00000000"`` and so on where the source gives none.
        count: Number of images, where it may differ from the number of labels.

    Raises:
        DataError: A text label is no class name, or there are more or fewer images than labels.
    """
    if count not in (None, len(labels)):
        raise DataError(f"{source} has {count} images but {len(labels)} labels ({split}); they must be as many")
    if isinstance(source, str):
        name = source
    else:  # A file keeps its own name where it is a link; "." has none without resolving.
        name = source.resolve().name if source.is_dir() else source.stem.removesuffix(".tar")
    return ImageSet(
        name=name,
        split=split,
        classes=tuple(classes),
        labels=labels if labels.dtype.kind == "i" else _encoded(labels, classes, source),
        ids=[f"{split}/{row:08d}" for row in range(len(labels))] if ids is None else ids,
        reader=reader,
        rows=np.arange(len(labels), dtype=np.int64),
        root=None if isinstance(source, str) else source,
    )


def _encoded(labels: NDArray[Any], classes: Sequence[str], source: Path | str) -> NDArray[np.int64]:
    index = {name: number for number, name in enumerate(classes)}
    distinct, inverse = np.unique(labels, return_inverse=True)
    unknown = [str(name) for name in distinct if str(name) not in index]
    if unknown:
        raise DataError(f"{source}: label '{unknown[0]}' is no class of the training split; rename it or add the class")
    return np.array([index[str(name)] for name in distinct], dtype=np.int64)[inverse]
