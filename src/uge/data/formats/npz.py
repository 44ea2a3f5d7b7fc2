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
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uge.data.depth import note_scaled
from uge.data.formats.base import SPLIT_NAMES, Splits, class_names, data_errors, image_set, label_values
from uge.data.images import ImageSet, Pixels
from uge.errors import DataError
from uge.files import LARGEST

logger = logging.getLogger(__name__)

_PLAIN_IMAGES = ("images", "image", "x", "X", "data", "arr_0")
_PLAIN_LABELS = ("labels", "label", "y", "Y", "targets", "target", "arr_1")
_IMAGES = ("x_{}", "X_{}", "{}_images", "images_{}", "{}_x", "{}_data")
_LABELS = ("y_{}", "Y_{}", "{}_labels", "labels_{}", "{}_y", "{}_targets")
_NAMES = ("classes", "class_names", "label_names")
_PROBES = 16
_UNDOUBTED = 64 << 20  # Bytes up to which an array may be packed as tightly as it likes.
_MOST_PACKED = 500  # Bytes of a larger one per byte in the file; images do not come near.


def splits(path: Path) -> Splits | None:
    """Splits of an archive, by the names of its arrays; None for what is no .npz file.

    Raises:
        DataError: The file is no archive, or no two arrays have the names of images and labels.
    """
    if not (path.suffix.lower() == ".npz" and path.is_file()):
        return None
    with (
        data_errors(f"{path} is no NumPy archive", "write it with numpy.savez", (zipfile.BadZipFile, OSError)),
        zipfile.ZipFile(path) as archive,
    ):
        names = {member[:-4] for member in archive.namelist() if member.endswith(".npy")}
    pairs: dict[str, tuple[str, str]] = {}
    for split in (*SPLIT_NAMES, ""):  # An archive without splits is the training split.
        image = _first(names, [form.format(split) for form in _IMAGES] if split else _PLAIN_IMAGES)
        label = _first(names, [form.format(split) for form in _LABELS] if split else _PLAIN_LABELS)
        if image and label and (split or not pairs):
            pairs[split or "train"] = (image, label)
    if not pairs:
        raise DataError(
            f"{path} needs arrays 'images' and 'labels' (or 'x_train', 'y_train', 'x_test', 'y_test'), "
            f"there are: {', '.join(sorted(names)) or 'none'}; rename them"
        )
    return {split: functools.partial(_open, path, split, pairs, _first(names, _NAMES)) for split in pairs}


def _first(names: set[str], known: Iterable[str]) -> str | None:
    return next((name for name in known if name in names), None)


def _open(path: Path, split: str, pairs: dict[str, tuple[str, str]], classes: str | None) -> ImageSet:
    labels = {name: label_values(load_array(path, key), f"{path} ('{key}')") for name, (_, key) in pairs.items()}
    names = np.ravel(load_array(path, classes)).astype(str).tolist() if classes else class_names(split, labels)
    reader = NpzReader.open(path, pairs[split][0])
    images = image_set(path, split, labels[split], names, reader, count=reader.shape[0])
    list(images.probe(min(_PROBES, len(images))))  # A wrong range of values is found before any work is done.
    return images


_reading = functools.partial(
    data_errors,
    advice="write it as plain numbers or texts",
    kinds=(ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error),
)


def load_array(path: Path, key: str, most: float = LARGEST) -> NDArray[Any]:
    """One array of an archive; bytes become text.

    Args:
        path: The archive.
        key: Name of the array.
        most: Largest size in bytes.

    Raises:
        DataError: It is damaged, holds objects, or has a size that is too large for the file or for ``most``.
    """
    with _reading(f"array '{key}' of {path} cannot be read"), np.load(path, allow_pickle=False) as archive:
        check_member(archive.zip.getinfo(f"{key}.npy"), most)
        array = np.asarray(archive[key])
        return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array


def check_member(member: zipfile.ZipInfo, most: float = math.inf) -> None:
    """Refuse an array that would take far more memory than disk.

    Raises:
        ValueError: It is larger than ``most``, or packed more tightly than images can be.
    """
    if member.file_size > min(most, max(_UNDOUBTED, _MOST_PACKED * member.compress_size)):
        raise ValueError(f"it says that it has {member.file_size:,} bytes, out of all proportion")


@dataclass(frozen=True)
class NpzReader:
    """Images of one array, as uint8 with channels last. Threads and processes may share it.

    Attributes:
        path: The archive.
        key: Name of the array.
        shape: Shape of the array, images first.
        dtype: Type of the array.
        channels_first: True for N×C×H×W.
        place: Offset of the array in the file in bytes, or the array itself where it cannot be read in place.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    channels_first: bool
    place: int | NDArray[Any]

    @classmethod
    def open(cls, path: Path, key: str) -> NpzReader:
        """Reader of one array, which is loaded only where it cannot be read in place.

        Raises:
            DataError: Its shape or type is not that of images.
        """
        with (
            _reading(f"array '{key}' of {path} cannot be read"),
            zipfile.ZipFile(path) as archive,
            path.open("rb") as raw,
        ):
            info = archive.getinfo(f"{key}.npy")
            with archive.open(info) as member:
                is_first = np.lib.format.read_magic(member) == (1, 0)
                header = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = header(member)
                start = member.tell()
            raw.seek(info.header_offset + 26)  # Two lengths, after which the member's content begins.
            start += info.header_offset + 30 + sum(np.frombuffer(raw.read(4), "<u2").tolist())
        in_place = info.compress_type == zipfile.ZIP_STORED and not fortran
        channels_first = _is_channels_first(shape, f"array '{key}' of {path}")
        if dtype.kind not in "biuf":
            raise DataError(f"images of {path} ('{key}') must be uint8 or floats in [0, 1], got {dtype}; convert them")
        if not in_place:
            logger.warning("%s is compressed: its images are held in memory; numpy.savez avoids that", path)
        if dtype.kind == "f":
            logger.info("%s: floats in [0, 1] are rounded to 8 bits", path)
        return cls(path, key, shape, dtype, channels_first, start if in_place else load_array(path, key, math.inf))

    def read(self, row: int) -> Pixels:
        """Image ``row``: uint8, height × width × channels.

        Raises:
            DataError: Its values are NaN or out of range, or the file was cut off.
        """
        image = self._row(row, self.place) if isinstance(self.place, int) else self.place[row]
        if image.dtype != np.uint8:
            image = self._to_bytes(image, row)
        if image.ndim == 2:
            return np.array(image[:, :, None])
        return np.array(image.transpose(1, 2, 0) if self.channels_first else image, order="C")

    def _row(self, row: int, offset: int) -> NDArray[Any]:
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        with self.path.open("rb") as handle:
            handle.seek(offset + row * size)
            data = handle.read(size)
        if len(data) < size:
            raise DataError(f"{self.path} ends before image {row}; fetch or write it again")
        return np.frombuffer(data, self.dtype).reshape(self.shape[1:])

    def _to_bytes(self, image: NDArray[Any], row: int) -> Pixels:
        top = 255 if image.dtype.kind in "iu" else 1
        if image.dtype.kind == "f":
            note_scaled()
        low = image.min()
        high = image.max()
        if not (low >= 0 and high <= top):  # False for NaN, too.
            raise DataError(
                f"image {row} of {self.path} ('{self.key}') has values from {low} to {high}, expected 0 to {top} "
                f"for {image.dtype}; scale them, or store uint8"
            )
        return np.rint(image.astype(np.float64) * (255 // top)).astype(np.uint8)


def _is_channels_first(shape: tuple[int, ...], what: str) -> bool:
    first = len(shape) == 4 and shape[1] in range(1, 5)
    last = len(shape) == 4 and shape[3] in range(1, 5)
    if first and last:
        raise DataError(
            f"{what} has shape {shape}, where channels may be first or last; store N×H×W×C of larger images"
        )
    if not (first or last or len(shape) == 3) or 0 in shape[1:]:
        raise DataError(f"{what} must be N×H×W, N×H×W×C or N×C×H×W with 1 to 4 channels, got {shape}; reshape it")
    return first
