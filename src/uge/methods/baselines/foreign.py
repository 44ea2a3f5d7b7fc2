"""Perturbations made by other programs, read from .npy, .npz and safetensors files; never from pickles."""

import contextlib
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from uge.budget import Budget
from uge.data.images import ImageSet, Pixels, Strips
from uge.errors import DataError, UnknownNameError, UsageError
from uge.methods.apply import add_delta

Scope = Literal["sample", "class"]
FORMATS = ".npy, .npz or .safetensors"
_DAMAGE = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, SafetensorError)
_FLOATS = {"float16", "float32", "float64", "bfloat16"}
_LEVELS = {"int8", "int16"}


@dataclass(frozen=True)
class _Rows:
    """An array of which single rows are read; no more than one is in memory."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[int], NDArray[Any]]


@dataclass(frozen=True)
class ForeignNoise:
    """Perturbations made elsewhere.

    Attributes:
        path: The file.
        name: The file, and the array in it where there are several.
        rows: count × C × H × W or count × H × W × C.
        scope: ``"sample"``: row i belongs to image i; ``"class"``: row k to class k.
        unit: Unit of the stored values, ``"[0, 1]"`` or ``"levels"`` (of 255).
        channels_first: Layout of a row.
        largest: Largest change in whole 8-bit levels.
    """

    path: Path
    name: str
    rows: _Rows
    scope: Scope
    unit: str
    channels_first: bool
    largest: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.rows.shape[2:] if self.channels_first else self.rows.shape[1:3]
        return height, width

    def fits(self, image: Pixels) -> bool:
        """True for images of the perturbations' size, and for all images if perturbations are square."""
        return self.size[0] == self.size[1] or image.shape[:2] == self.size

    def levels(self, row: int) -> NDArray[np.int16]:
        """One row in whole 8-bit levels: C × H × W."""
        values = self.rows.read(row) * (255.0 if self.unit == "[0, 1]" else 1.0)
        levels = np.rint(values).astype(np.int16)
        return levels if self.channels_first else np.ascontiguousarray(levels.transpose(2, 0, 1))

    def pairs(self, images: ImageSet, budget: Budget) -> Iterator[tuple[Pixels | Strips, Pixels | Strips]]:
        """Clean and perturbed pixels of every image, in order, within ``budget``.

        A perturbation of another size than the image is scaled onto the image's centre square and mirrored beyond.

        Raises:
            DataError: The perturbations are not square and of another size than an image.
        """
        for number in range(len(images)):
            clean = images.read(number)
            if not self.fits(clean):
                raise DataError(
                    f"image '{images.ids[number]}' has {clean.shape[0]}×{clean.shape[1]} pixels, but the noise in "
                    f"{self.name} has {self.size[0]}×{self.size[1]}; give noise of the images' size, or square noise"
                )
            row = number if self.scope == "sample" else int(images.labels[number])
            delta = torch.from_numpy(self.levels(row))
            pair = add_delta(clean, delta, budget)
            del clean  # Not kept while the next one is read.
            yield pair


def is_noise(place: str | Path) -> bool:
    """True if a path names perturbations made elsewhere, by its ending; False for weights of this project."""
    ending = re.search(r"\.(npy|npz|safetensors)(:[^/]*)?$", str(place), re.IGNORECASE)
    if ending is None or ending[1].lower() != "safetensors" or ending[2]:
        return ending is not None
    with contextlib.suppress(*_DAMAGE), safe_open(Path(place), framework="pt") as handle:
        return not {"kind", "network"} & set(handle.metadata() or {})
    return False


def open_noise(place: str | Path, images: ImageSet, scope: Scope | None = None) -> ForeignNoise:
    """Open and check the perturbations of a set of images.

    Args:
        place: A file in one of :data:`FORMATS`, or ``FILE:NAME`` for one array of several.
        images: The images to perturb.
        scope: One perturbation per image or per class; needed only where their numbers are equal.

    Raises:
        UsageError: There is no such file or array, or its type, shape, values or number of rows cannot be right.
        DataError: The file is damaged.
    """
    path, chosen = _file_and_name(str(place))
    with _damage(path):
        arrays = _ARRAYS[path.suffix.lower()](path)
        name = _choose(path, arrays, chosen)
        rows = arrays[name]()
    label = str(path) if len(arrays) == 1 else f"{path}:{name}"
    _require(
        rows.dtype in _FLOATS | _LEVELS,
        f"the noise in {label} must be floats, int8 or int16, got {rows.dtype}; convert it (unsigned types have lost "
        "what is negative)",
    )
    _require(
        len(rows.shape) == 4 and 0 not in rows.shape,
        f"the noise in {label} must be N×H×W×C or N×C×H×W, got the shape {rows.shape}; reshape it",
    )
    channels_first = _channels_first(label, rows.shape, images)
    scope = _scope(label, rows.shape[0], images, scope)
    with _damage(path):
        largest = _largest(label, rows)
    unit = "[0, 1]" if rows.dtype in _FLOATS and largest <= 1 else "levels"
    levels = round(largest * (255 if unit == "[0, 1]" else 1))
    _require(levels <= 255, f"the noise in {label} changes values by {largest:g}, more than 255 levels; scale it")
    _require(
        levels >= 1, f"the noise in {label} is at most {largest:g}, less than one 8-bit level; nothing would change"
    )
    noise = ForeignNoise(path, label, rows, scope, unit, channels_first, levels)
    for image in images.probe():
        _require(
            noise.fits(image),
            f"the noise in {label} has {noise.size[0]}×{noise.size[1]} pixels, but an image has {image.shape[0]}×"
            f"{image.shape[1]}; give noise of the images' size, or square noise",
        )
    return noise


def _file_and_name(place: str) -> tuple[Path, str | None]:
    before, _, after = place.rpartition(":")
    path, name = (Path(before), after) if before and after and not Path(place).exists() else (Path(place), None)
    _require(
        path.is_file(), f"there is no noise file at {path}; give a {FORMATS} file, with :NAME for one array of several"
    )
    _require(path.suffix.lower() in _ARRAYS, f"the noise must be a {FORMATS} file, got {path}; convert it")
    return path, name


def _choose(path: Path, names: Collection[str], chosen: str | None) -> str:
    listed = ", ".join(names) or "none"
    _require(
        chosen is not None or len(names) == 1,
        f"{path} holds {len(names)} arrays ({listed}); name one, as {path}:NAME",
    )
    if chosen is not None and chosen not in names:
        raise UnknownNameError(f"array in {path}", chosen, names)
    return chosen or next(iter(names))


def _scope(label: str, count: int, images: ImageSet, scope: Scope | None) -> Scope:
    expected: dict[Scope, int] = {"sample": len(images), "class": len(images.classes)}
    fitting = [name for name, number in expected.items() if number == count and scope in (None, name)]
    _require(
        len(fitting) < 2,
        f"the noise in {label} has {count} rows, as many as there are images and classes; give --scope sample or "
        "--scope class",
    )
    either = f"{len(images)} (images) or {len(images.classes)} (classes)"
    numbers = f"{expected[scope]} (--scope {scope})" if scope else either
    _require(bool(fitting), f"the noise in {label} has {count} rows, expected {numbers}; give noise for these images")
    return fitting[0]


def _channels_first(label: str, shape: tuple[int, ...], images: ImageSet) -> bool:
    """True for rows of C × H × W; where both layouts are possible, the size of the images decides."""
    first = shape[1] in (1, 3)
    last = shape[3] in (1, 3)
    if first and last:
        sizes = {image.shape[:2] for image in images.probe()}
        first = shape[2:] in sizes
        last = shape[1:3] in sizes
    _require(
        first != last,
        f"the noise in {label} must be N×H×W×C or N×C×H×W with 1 or 3 channels, got the shape {shape}; reshape it",
    )
    return first


def _largest(label: str, rows: _Rows) -> float:
    largest = 0.0
    for number in range(rows.shape[0]):
        top = float(np.abs(rows.read(number)).max())
        _require(np.isfinite(top), f"row {number} of the noise in {label} holds NaN or infinity; make it again")
        largest = max(largest, top)
    return largest


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UsageError(message)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split())}); fetch or write it again") from error


def _mapped(path: Path) -> _Rows:
    """The array of an .npy file, mapped; pickled objects are refused."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        if "Python objects" not in str(error):
            raise
        raise UsageError(
            "the noise must be numbers, got pickled objects, which can run code when opened; convert it"
        ) from error
    return _Rows(array.shape, array.dtype.name, lambda row: np.asarray(array[row], np.float64))


def _unpacked(path: Path, member: str) -> _Rows:
    """An array of an .npz file, copied to a temporary file, since a compressed array cannot be mapped."""
    with tempfile.NamedTemporaryFile(prefix="uge-") as handle:
        with zipfile.ZipFile(path) as archive, archive.open(member) as packed:
            shutil.copyfileobj(packed, handle)
        handle.flush()
        return _mapped(Path(handle.name))


def _npz(path: Path) -> dict[str, Callable[[], _Rows]]:
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
    return {member.removesuffix(".npy"): partial(_unpacked, path, member) for member in members}


def _sliced(part: Any) -> _Rows:
    shape = tuple(part.get_shape())
    dtype = str(part[:1].dtype).removeprefix("torch.") if shape else "scalar"
    return _Rows(shape, dtype, lambda row: part[row : row + 1][0].double().numpy())


def _safetensors(path: Path) -> dict[str, Callable[[], _Rows]]:
    handle: Any = safe_open(path, framework="pt")
    return {name: partial(_sliced, handle.get_slice(name)) for name in sorted(handle.keys())}


_ARRAYS: dict[str, Callable[[Path], dict[str, Callable[[], _Rows]]]] = {
    ".npy": lambda path: {path.stem: partial(_mapped, path)},
    ".npz": _npz,
    ".safetensors": _safetensors,
}
"""Names of the arrays in a file, each with a function that opens it, by the file's ending."""
