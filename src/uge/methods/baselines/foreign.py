"""Noise that other people's programs made, read from .npy, .npz and safetensors files; never from pickles."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from uge.budget import Budget
from uge.data.images import ImageSet, Pixels
from uge.errors import DataError, UnknownNameError, UsageError
from uge.methods.apply import place_delta

Scope = Literal["sample", "class"]
FORMATS = ".npy, .npz or .safetensors"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
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
        name: It, and the array where it has several.
        rows: count × C × H × W or count × H × W × C.
        scope: ``"sample"``: row i belongs to image i; ``"class"``: row k to class k.
        unit: ``"[0, 1]"`` or ``"levels"`` (of 255), as found.
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

    def levels(self, row: int) -> NDArray[np.int16]:
        """One row in whole 8-bit levels: C × H × W."""
        values = self.rows.read(row) * (255.0 if self.unit == "[0, 1]" else 1.0)
        found = np.rint(values).astype(np.int16)
        return found if self.channels_first else np.ascontiguousarray(found.transpose(2, 0, 1))

    def pairs(self, images: ImageSet, budget: Budget) -> Iterator[tuple[Pixels, Pixels]]:
        """Clean and perturbed pixels of every image, in order, within ``budget``.

        Noise of another size than an image is scaled onto its centre square.

        Raises:
            DataError: The noise is not square and of another size than an image.
        """
        for number in range(len(images)):
            clean = images.read(number)
            if self.size[0] != self.size[1] and self.size != clean.shape[:2]:
                raise DataError(
                    f"image '{images.ids[number]}' has {clean.shape[0]}×{clean.shape[1]} pixels, but the noise in "
                    f"{self.name} has {self.size[0]}×{self.size[1]}; give noise of the images' size, or square noise"
                )
            row = number if self.scope == "sample" else int(images.labels[number])
            delta = torch.from_numpy(self.levels(row))
            yield clean, budget.add(clean, place_delta(delta, clean, np.zeros(0, np.int8)))


def is_noise(place: str | Path) -> bool:
    """Whether a path names noise from elsewhere, judged by its ending; weights of this project say that they are."""
    ending = re.search(r"\.(npy|npz|safetensors)(:[^/]*)?$", str(place), re.IGNORECASE)
    if ending is None or ending[1].lower() != "safetensors" or ending[2]:
        return ending is not None
    with contextlib.suppress(*_DAMAGE), safe_open(Path(place), framework="pt") as handle:
        return not {"kind", "network"} & set(handle.metadata() or {})
    return False


def open_noise(place: str | Path, images: ImageSet, scope: Scope | None = None) -> ForeignNoise:
    """Open and check noise for a set of images.

    Args:
        place: A file in one of :data:`FORMATS`, or ``FILE:NAME`` for one array of several.
        images: What it is for.
        scope: One perturbation per image or per class; needed only where their numbers are equal.

    Raises:
        UsageError: There is no such file or array, or its type, shape, values or number of rows cannot be right.
        DataError: The file is damaged.
    """
    path, chosen = _split(str(place))
    with _damage(path):
        names = _NAMES[path.suffix.lower()](path)
        name = _choose(path, names, chosen)
        rows = _OPEN[path.suffix.lower()](path, name)
    label = str(path) if len(names) == 1 else f"{path}:{name}"
    if rows.dtype not in _FLOATS | _LEVELS:
        raise UsageError(
            f"the noise in {label} must be floats, int8 or int16, got {rows.dtype}; convert it (unsigned types have "
            "lost what is negative)"
        )
    if len(rows.shape) != 4 or 0 in rows.shape:
        raise UsageError(f"the noise in {label} must be N×H×W×C or N×C×H×W, got the shape {rows.shape}; reshape it")
    first = _channels_first(label, rows.shape, images)
    found_scope = _scope(label, rows.shape[0], images, scope)
    with _damage(path):
        largest = _largest(label, rows)
    unit = "[0, 1]" if rows.dtype in _FLOATS and largest <= 1 else "levels"
    levels = round(largest * (255 if unit == "[0, 1]" else 1))
    if levels > 255:
        raise UsageError(f"the noise in {label} changes values by {largest:g}, more than 255 levels; scale it")
    if levels < 1:
        raise UsageError(
            f"the noise in {label} is at most {largest:g}, less than one 8-bit level; nothing would change"
        )
    noise = ForeignNoise(path, label, rows, found_scope, unit, first, levels)
    _check_size(noise, images)
    return noise


def _split(place: str) -> tuple[Path, str | None]:
    """File and name of the array, if one is given after a colon."""
    before, _, after = place.rpartition(":")
    path, name = (Path(before), after) if before and after and not Path(place).exists() else (Path(place), None)
    if not path.is_file():
        raise UsageError(
            f"there is no noise file at {path}; give a {FORMATS} file, with :NAME for one array of several"
        )
    if path.suffix.lower() not in _OPEN:
        raise UsageError(f"the noise must be a {FORMATS} file, got {path}; convert it")
    return path, name


def _choose(path: Path, names: Sequence[str], chosen: str | None) -> str:
    if chosen is None and len(names) == 1:
        return names[0]
    if chosen is None:
        listed = ", ".join(names) or "none"
        raise UsageError(f"{path} holds {len(names)} arrays ({listed}); name one, as {path}:NAME")
    if chosen not in names:
        raise UnknownNameError(f"array in {path}", chosen, names)
    return chosen


def _scope(label: str, count: int, images: ImageSet, scope: Scope | None) -> Scope:
    """What a row stands for, from the numbers of rows, images and classes."""
    wanted: dict[Scope, int] = {"sample": len(images), "class": len(images.classes)}
    if scope is None:
        fitting = [name for name, number in wanted.items() if number == count]
        if len(fitting) == 2:
            raise UsageError(
                f"the noise in {label} has {count} rows, as many as there are images and classes; give --scope sample "
                "or --scope class"
            )
        scope = fitting[0] if fitting else None
    if scope is None or wanted[scope] != count:
        meant = f"{wanted[scope]} (--scope {scope})" if scope else f"{wanted['sample']} (images) or {wanted['class']}"
        tail = "" if scope else " (classes)"
        raise UsageError(f"the noise in {label} has {count} rows, expected {meant}{tail}; give noise for these images")
    return scope


def _channels_first(label: str, shape: tuple[int, ...], images: ImageSet) -> bool:
    """Where the channels of a row are; the images' own size settles what could be both."""
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if first and last:
        sizes = {image.shape[:2] for image in images.probe()}
        first, last = shape[2:] in sizes, shape[1:3] in sizes
    if first == last:
        raise UsageError(
            f"the noise in {label} must be N×H×W×C or N×C×H×W with 1 or 3 channels, got the shape {shape}; reshape it"
        )
    return first


def _largest(label: str, rows: _Rows) -> float:
    """The largest absolute value, after every row was read once."""
    largest = 0.0
    for number in range(rows.shape[0]):
        row = np.abs(rows.read(number))
        top = float(row.max())
        if not np.isfinite(top):
            raise UsageError(f"row {number} of the noise in {label} holds NaN or infinity; make it again")
        largest = max(largest, top)
    return largest


def _check_size(noise: ForeignNoise, images: ImageSet) -> None:
    """Refuse before any work what :meth:`ForeignNoise.pairs` would refuse in the midst of it."""
    height, width = noise.size
    for image in images.probe():
        if height != width and image.shape[:2] != noise.size:
            raise UsageError(
                f"the noise in {noise.name} has {height}×{width} pixels, but an image has {image.shape[0]}×"
                f"{image.shape[1]}; give noise of the images' size, or square noise"
            )


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split())}); fetch or write it again") from error


def _map_npy(handle: IO[bytes]) -> _Rows:
    """The array of an .npy file, mapped; pickled objects are refused."""
    version = np.lib.format.read_magic(handle)
    if version not in _HEADERS:
        raise ValueError(f"format version {version} is unknown")
    shape, fortran, dtype = _HEADERS[version](handle)
    if dtype.hasobject:
        raise UsageError("the noise must be numbers, got pickled objects, which can run code when opened; convert it")
    if not shape or 0 in shape:
        return _Rows(shape, dtype.name, lambda row: np.zeros(0))
    order: Literal["F", "C"] = "F" if fortran else "C"
    array = np.memmap(handle, dtype, mode="r", offset=handle.tell(), shape=shape, order=order)
    return _Rows(shape, dtype.name, lambda row: np.asarray(array[row], np.float64))


def _open_npy(path: Path, name: str) -> _Rows:
    with path.open("rb") as handle:
        return _map_npy(handle)


def _open_npz(path: Path, name: str) -> _Rows:
    """One array, copied to a temporary file, since a compressed one cannot be mapped."""
    with tempfile.TemporaryFile(prefix="uge-") as handle:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
            shutil.copyfileobj(member, handle)
        handle.seek(0)
        return _map_npy(handle)


def _open_safetensors(path: Path, name: str) -> _Rows:
    handle: Any = safe_open(path, framework="pt")
    part = handle.get_slice(name)
    shape = tuple(part.get_shape())
    dtype = str(part[:1].dtype).removeprefix("torch.") if shape else "scalar"
    return _Rows(shape, dtype, lambda row: part[row : row + 1][0].double().numpy())


def _npz_names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def _safetensors_names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as handle:
        return sorted(handle.keys())


_NAMES: dict[str, Callable[[Path], list[str]]] = {
    ".npy": lambda path: [path.stem],
    ".npz": _npz_names,
    ".safetensors": _safetensors_names,
}
_OPEN: dict[str, Callable[[Path, str], _Rows]] = {
    ".npy": _open_npy,
    ".npz": _open_npz,
    ".safetensors": _open_safetensors,
}
