"""NumPy archives: ``images`` and ``labels``, or ``x_train``, ``y_train``, ``x_test``, ``y_test``.

Arrays stored without compression (``numpy.savez``) are read image by image from the file; compressed ones
(``numpy.savez_compressed``) and Fortran-ordered ones can only be decompressed as a whole, once, into memory.
"""

from __future__ import annotations

import functools
import logging
import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from uge.data.formats.base import SPLIT_NAMES, Splits, class_names, encode_labels, label_values, row_ids
from uge.data.images import ImageSet, Pixels
from uge.errors import DataError

logger = logging.getLogger(__name__)

_PLAIN_IMAGES = ("images", "image", "x", "X", "data", "arr_0")
_PLAIN_LABELS = ("labels", "label", "y", "Y", "targets", "target", "arr_1")
_IMAGES = ("x_{}", "X_{}", "{}_images", "images_{}", "{}_x", "{}_data")
_LABELS = ("y_{}", "Y_{}", "{}_labels", "labels_{}", "{}_y", "{}_targets")
_NAMES = ("classes", "class_names", "label_names")
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_PROBES = 16
_DAMAGE = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error)


def detect(path: Path) -> bool:
    """Whether the path is an .npz file."""
    return path.suffix.lower() == ".npz" and path.is_file()


def splits(path: Path) -> Splits:
    """The splits of an archive, found by the names of its arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {member[:-4] for member in archive.namelist() if member.endswith(".npy")}
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is no NumPy archive: {error}; write it with numpy.savez") from error
    found = {}
    for split in SPLIT_NAMES:
        if pair := _pair(names, *([form.format(split) for form in forms] for forms in (_IMAGES, _LABELS))):
            found[split] = pair
    if not found and (pair := _pair(names, _PLAIN_IMAGES, _PLAIN_LABELS)):
        found["train"] = pair
    if not found:
        raise DataError(
            f"{path} needs arrays 'images' and 'labels' (or 'x_train', 'y_train', 'x_test', 'y_test'), "
            f"there are: {', '.join(sorted(names)) or 'none'}; rename them"
        )
    return {split: functools.partial(_open, path, split, found, names) for split in found}


def _pair(names: set[str], images: Sequence[str], labels: Sequence[str]) -> tuple[str, str] | None:
    image, label = (next((name for name in known if name in names), None) for known in (images, labels))
    return (image, label) if image and label else None


def _open(path: Path, split: str, found: dict[str, tuple[str, str]], names: set[str]) -> ImageSet:
    labels = {name: label_values(_load(path, key), f"{path} ('{key}')") for name, (_, key) in found.items()}
    given = next((name for name in _NAMES if name in names), None)
    leading = next((labels[name] for name in ("train", "training") if name in labels), labels[split])
    classes = _texts(path, given) if given else class_names(leading, labels.values())
    reader = NpzReader.open(path, found[split][0])
    count = len(reader)
    if count != len(labels[split]):
        raise DataError(f"{path} has {count} images but {len(labels[split])} labels ({split}); they must be as many")
    reader.probe()
    return ImageSet(
        name=path.stem,
        split=split,
        classes=classes,
        labels=encode_labels(labels[split], classes, str(path)),
        ids=row_ids(split, count),
        reader=reader,
        rows=np.arange(count, dtype=np.int64),
        root=path,
    )


def _texts(path: Path, key: str) -> tuple[str, ...]:
    names = np.atleast_1d(_load(path, key))
    try:
        return tuple(str(name, "utf-8") if isinstance(name, bytes) else str(name) for name in names)
    except UnicodeDecodeError as error:
        raise _unreadable(path, key, error) from error


def _load(path: Path, key: str) -> NDArray[Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return np.asarray(archive[key])
    except _DAMAGE as error:
        raise _unreadable(path, key, error) from error


def _unreadable(path: Path, key: str, error: Exception) -> DataError:
    return DataError(f"array '{key}' of {path} cannot be read: {error}; write it as plain numbers or texts")


class _Rows(Protocol):
    def __getitem__(self, row: int) -> NDArray[Any]: ...


@dataclass(frozen=True)
class _Stored:
    """Rows of an array that lies uncompressed in a file."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, row: int) -> NDArray[Any]:
        size = math.prod(self.shape) * self.dtype.itemsize
        with self.path.open("rb") as handle:
            handle.seek(self.offset + row * size)
            data = handle.read(size)
        if len(data) < size:
            raise DataError(f"{self.path} ends before image {row}; fetch or write it again")
        return np.frombuffer(data, self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class NpzReader:
    """Images of one array, as uint8 with channels last. Threads and processes may share it."""

    path: Path
    key: str
    rows: _Rows
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    channels_first: bool

    @classmethod
    def open(cls, path: Path, key: str) -> NpzReader:
        """Find an array in an archive, and load it only where it cannot be read in place.

        Raises:
            DataError: Its shape or type is not that of images.
        """
        try:
            shape, dtype, stored = _locate(path, key)
        except _DAMAGE as error:
            raise _unreadable(path, key, error) from error
        channels_first = _is_channels_first(shape, f"array '{key}' of {path}")
        if dtype.kind not in "biuf":
            raise DataError(f"images of {path} ('{key}') must be uint8 or floats in [0, 1], got {dtype}; convert them")
        if stored is None:
            logger.warning("%s is compressed: its images are held in memory; numpy.savez avoids that", path)
        if dtype.kind == "f":
            logger.info("%s: floats in [0, 1] are rounded to 8 bits", path)
        return cls(path, key, _load(path, key) if stored is None else stored, shape, dtype, channels_first)

    def __len__(self) -> int:
        return self.shape[0]

    def probe(self) -> None:
        """Read some images, so that wrong value ranges are found before any work is done."""
        for row in np.unique(np.linspace(0, len(self) - 1, _PROBES).astype(int)) if len(self) else ():
            self.read(int(row))

    def read(self, row: int) -> Pixels:
        """Image ``row``: uint8, height × width × channels.

        Raises:
            DataError: Its values are NaN or out of range.
        """
        image = self.rows[row]
        if image.dtype != np.uint8:
            image = self._to_bytes(image, row)
        if image.ndim == 2:
            return np.array(image[:, :, None])
        return np.array(image.transpose(1, 2, 0) if self.channels_first else image, order="C")

    def _to_bytes(self, image: NDArray[Any], row: int) -> Pixels:
        top = 255 if image.dtype.kind in "iu" else 1
        low, high = (image.min(), image.max()) if image.size else (0, 0)
        if not (low >= 0 and high <= top):  # false for NaN too
            raise DataError(
                f"image {row} of {self.path} ('{self.key}') has values from {low} to {high}, expected 0 to {top} "
                f"for {image.dtype}; scale them, or store uint8"
            )
        return image.astype(np.uint8) if top == 255 else np.rint(image.astype(np.float64) * 255).astype(np.uint8)


def _locate(path: Path, key: str) -> tuple[tuple[int, ...], np.dtype[Any], _Stored | None]:
    """Shape and type of an array, and where it lies if it can be read in place."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        info = archive.getinfo(f"{key}.npy")
        with archive.open(info) as member:
            header = _HEADERS.get(np.lib.format.read_magic(member))
            shape, fortran, dtype = header(member) if header else ((), False, np.dtype(object))
            start = member.tell()
        raw.seek(info.header_offset + 26)
        lengths = raw.read(4)
    before = info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    in_place = info.compress_type == zipfile.ZIP_STORED and not fortran
    return shape, dtype, _Stored(path, before + start, shape[1:], dtype) if in_place else None


def _is_channels_first(shape: tuple[int, ...], what: str) -> bool:
    if len(shape) == 3:
        return False
    if len(shape) == 4:
        first, last = shape[1] in range(1, 5), shape[3] in range(1, 5)
        if first != last:
            return first
        if first:
            raise DataError(
                f"{what} has shape {shape}, where channels may be first or last; store N×H×W×C of larger images"
            )
    raise DataError(f"{what} must be N×H×W, N×H×W×C or N×C×H×W with 1 to 4 channels, got {shape}; reshape it")
