"""Perturbations made by other programs, read from .npy, .npz and safetensors files; never from pickles."""

import contextlib
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from uge.budget import Budget
from uge.data.depth import probed
from uge.data.formats.npz import check_member, load_array
from uge.data.images import ImageSet, Pixels, Strips
from uge.data.pixels import resize, to_channels
from uge.errors import DataError, UnknownNameError, UsageError
from uge.files import open_regular
from uge.methods.apply import add_delta

Scope = Literal["sample", "class"]
Unit = Literal["[0, 1]", "levels"]
IDS = "ids"
"""Array of an .npz file with the sample id of every row."""
FORMATS = ".npy, .npz or .safetensors"
_DAMAGE = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, SafetensorError)
_FLOATS = {"float16", "float32", "float64", "bfloat16"}
_LEVELS = {"int8", "int16"}
_PROBES = 16
_ALIKE = 0.5
"""Correlation with an image, and share of its contrast, from which a row counts as a whole image."""


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
        places: Row of every image, or None where row i belongs to image i or the scope is a class.
        perturbed: True where rows are whole perturbed images, of which the difference to the originals is taken.
        largest: Largest change in whole 8-bit levels.
    """

    path: Path
    name: str
    rows: _Rows
    scope: Scope
    unit: Unit
    channels_first: bool
    places: Sequence[int] | None = None
    perturbed: bool = False
    largest: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.rows.shape[2:] if self.channels_first else self.rows.shape[1:3]
        return height, width

    def fits(self, image: Pixels) -> bool:
        """True for images of the perturbations' size, and for all images if perturbations are square."""
        return image.shape[:2] == self.size or (self.size[0] == self.size[1] and not self.perturbed)

    def row(self, number: int, label: int) -> int:
        """Row of image ``number`` of class ``label``."""
        return label if self.scope == "class" else number if self.places is None else self.places[number]

    def levels(self, row: int) -> NDArray[np.int16]:
        """One row in whole 8-bit levels: C × H × W."""
        values = self.rows.read(row) * (255.0 if self.unit == "[0, 1]" else 1.0)
        levels = np.rint(values).astype(np.int16)
        return levels if self.channels_first else np.ascontiguousarray(levels.transpose(2, 0, 1))

    def delta(self, row: int, clean: Pixels) -> NDArray[np.int16]:
        """Perturbation of an image in whole 8-bit levels: C × H × W."""
        levels = self.levels(row)
        if not self.perturbed:
            return levels
        return np.asarray(levels - to_channels(clean, len(levels)).transpose(2, 0, 1), np.int16)

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
            delta = torch.from_numpy(self.delta(self.row(number, int(images.labels[number])), clean))
            pair = add_delta(clean, delta, budget)
            del clean  # Not kept while the next one is read.
            yield pair


def is_noise(place: str | Path) -> bool:
    """True if a path names perturbations made elsewhere, by its ending; False for weights of this project."""
    ending = re.search(r"\.(npy|npz|safetensors)(:[^/]*)?$", str(place), re.IGNORECASE)
    if ending is None or ending[1].lower() != "safetensors" or ending[2]:
        return ending is not None
    with contextlib.suppress(*_DAMAGE), open_regular(place), safe_open(Path(place), framework="pt") as handle:
        return not {"kind", "network"} & set(handle.metadata() or {})
    return False


def open_noise(
    place: str | Path,
    images: ImageSet,
    scope: Scope | None = None,
    *,
    unit: Unit | None = None,
    perturbed: bool = False,
    of: int | None = None,
) -> ForeignNoise:
    """Open and check the perturbations of a set of images.

    The unit of floats follows from their distribution: values up to 1 of which less than half reach 0.5 are in [0, 1],
    values beyond 2 of which at least half reach 0.5 are levels, and for all others the unit must be given.

    Args:
        place: A file in one of :data:`FORMATS`, or ``FILE:NAME`` for one array of several. An .npz file may hold an
            array ``ids`` beside it: then a row belongs to the image of its id.
        images: The images to perturb.
        scope: One perturbation per image or per class; needed only where their numbers are equal.
        unit: Unit of floats; needed only where two readings are possible.
        perturbed: True for whole perturbed images, of which the difference to ``images`` is taken.
        of: Number of images in the source, where ``images`` are its first ones; a row for each of them is accepted.

    Raises:
        UsageError: There is no such file or array; its type, shape, values or number of rows cannot be right; its unit
            is unclear; or it holds images and not perturbations.
        DataError: The file is damaged.
    """
    path, chosen = _file_and_name(str(place))
    with _damage(path):
        arrays = _ARRAYS[path.suffix.lower()](path)
        ids = _ids(path) if IDS in arrays and chosen != IDS else None
        arrays = {name: array for name, array in arrays.items() if ids is None or name != IDS}
        name = _choose(path, arrays, chosen)
        rows = arrays[name]()
    label = str(path) if len(arrays) == 1 else f"{path}:{name}"
    _require(
        rows.dtype in _FLOATS | _LEVELS | ({"uint8"} if perturbed else set()),
        f"the noise in {label} must be floats, int8 or int16, got {rows.dtype}; convert it (unsigned types have lost "
        "what is negative)",
    )
    _require(
        len(rows.shape) == 4 and 0 not in rows.shape,
        f"the noise in {label} must be N×H×W×C or N×C×H×W, got the shape {rows.shape}; reshape it",
    )
    channels_first = _channels_first(label, rows.shape, images)
    places = None if ids is None else _places(label, ids, rows.shape[0], images)
    scope = "sample" if places else _scope(label, rows.shape[0], images, scope, of)
    _require(scope == "sample" or not perturbed, f"--perturbed takes one image for each image, but {label} has classes")
    with _damage(path):
        spread = _Spread.of(label, rows)
        noise = ForeignNoise(path, label, rows, scope, "levels", channels_first, places, perturbed)
        for image in probed(images):
            _require(
                noise.fits(image),
                f"the noise in {label} has {noise.size[0]}×{noise.size[1]} pixels, but an image has {image.shape[0]}×"
                f"{image.shape[1]}; give noise of the images' size" + ("" if perturbed else ", or square noise"),
            )
        correlation, slope = _likeness(noise, images) if scope == "sample" else (0.0, 0.0)
        _check_kind(label, spread, correlation, perturbed=perturbed)
        noise = replace(noise, unit=_unit(label, rows.dtype, spread, unit, perturbed=perturbed))
        scale = 255 if noise.unit == "[0, 1]" else 1
        levels = round(spread.largest * scale)
        _require(
            levels <= 255, f"the noise in {label} changes values by {spread.largest:g}, more than 255 levels; scale it"
        )
        whole = correlation >= _ALIKE and slope * scale >= _ALIKE
        other = spread.least >= 0 and spread.mean * scale > 25 and spread.largest * scale > 127
        _require(perturbed or not (whole or other), _not_noise(label))
        levels = _largest(noise, images) if perturbed else levels
    _require(
        levels >= 1,
        f"the noise in {label} is at most {spread.largest:g}, less than one 8-bit level; nothing would change",
    )
    return replace(noise, largest=levels)


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


def _scope(label: str, count: int, images: ImageSet, scope: Scope | None, of: int | None) -> Scope:
    expected: dict[Scope, set[int]] = {"sample": {len(images), of or len(images)}, "class": {len(images.classes)}}
    fitting = [name for name, numbers in expected.items() if count in numbers and scope in (None, name)]
    _require(
        len(fitting) < 2,
        f"the noise in {label} has {count} rows, as many as there are images and classes; give --scope sample or "
        "--scope class",
    )
    listed = " or ".join(
        f"{number} ({'images' if name == 'sample' else 'classes'})" if scope is None else f"{number} (--scope {scope})"
        for name, numbers in expected.items()
        for number in sorted(numbers)
        if scope in (None, name)
    )
    _require(bool(fitting), f"the noise in {label} has {count} rows, expected {listed}; give noise for these images")
    return fitting[0]


def _ids(path: Path) -> list[str]:
    return [str(name) for name in np.ravel(load_array(path, IDS))]


def _places(label: str, ids: Sequence[str], count: int, images: ImageSet) -> list[int]:
    place = {name: number for number, name in enumerate(ids)}
    _require(
        len(place) == count, f"{label} has {count} rows but {len(place)} different ids; give each row an id of its own"
    )
    missing = [name for name in images.ids if name not in place]
    _require(
        not missing,
        f"the ids of {label} lack {len(missing)} of {len(images)} images, such as '{(missing or [''])[0]}'; give noise "
        "for these images",
    )
    return [place[name] for name in images.ids]


@dataclass(frozen=True)
class _Spread:
    """Distribution of all values.

    Attributes:
        largest: Largest absolute value.
        least: Smallest value.
        mean: Mean of absolute values.
        above_half: Share of those that are not 0 whose absolute value reaches 0.5.
    """

    largest: float
    least: float
    mean: float
    above_half: float

    @classmethod
    def of(cls, label: str, rows: _Rows) -> "_Spread":
        largest = least = total = 0.0
        above = other = count = 0
        for number in range(rows.shape[0]):
            values = rows.read(number)
            sizes = np.abs(values)
            top = float(sizes.max())
            _require(np.isfinite(top), f"row {number} of the noise in {label} holds NaN or infinity; make it again")
            largest = max(largest, top)
            least = min(least, float(values.min()))
            total += float(sizes.sum())
            above += int((sizes >= 0.5).sum())
            other += int((sizes > 0).sum())
            count += sizes.size
        return cls(largest, least, total / count, above / max(other, 1))


def _unit(label: str, dtype: str, spread: _Spread, given: Unit | None, *, perturbed: bool) -> Unit:
    """Unit of the values, where one reading alone makes sense."""
    if dtype not in _FLOATS:
        _require(given != "[0, 1]", f"the whole numbers in {label} are levels; leave --unit 1 out")
        return "levels"
    if given is not None:
        return given
    within = round(spread.largest * 255) <= 255
    beyond = spread.largest >= 2
    if within and (perturbed or spread.above_half < 0.5):
        return "[0, 1]"
    _require(
        beyond and (perturbed or spread.above_half >= 0.5),
        f"the floats in {label} reach {spread.largest:g}, and {spread.above_half:.0%} of those that are not 0 reach "
        "0.5: they may be in [0, 1] or in levels of 255; say which by --unit 1 or --unit 255",
    )
    return "levels"


def _likeness(noise: ForeignNoise, images: ImageSet) -> tuple[float, float]:
    """Correlation of rows with their images, and their contrast in units of the images'; medians of some rows."""
    pairs = []
    for number in np.unique(np.linspace(0, len(images) - 1, _PROBES).astype(np.int64)).tolist():
        values = noise.rows.read(noise.row(number, 0))
        values = values if noise.channels_first else values.transpose(2, 0, 1)
        clean = images.read(number)
        clean = clean if clean.shape[:2] == noise.size else resize(clean, noise.size[0])
        pixels = to_channels(clean, len(values)).transpose(2, 0, 1).astype(np.float64)
        if pixels.std() and values.std():
            correlation = float(np.corrcoef(values.ravel(), pixels.ravel())[0, 1])
            pairs.append((correlation, correlation * float(values.std() / pixels.std())))
    if not pairs:
        return 0.0, 0.0
    correlation, slope = np.median(pairs, axis=0).tolist()
    return correlation, slope


def _check_kind(label: str, spread: _Spread, correlation: float, *, perturbed: bool) -> None:
    """Refuse images that are given as noise, and noise that is given as images."""
    if not perturbed:
        _require(spread.least < 0 or correlation < _ALIKE, _not_noise(label))
        return
    _require(spread.least >= 0, f"{label} holds negative values, so no images; leave --perturbed out")
    _require(
        correlation >= _ALIKE,
        f"the images in {label} do not look like those of the source at the same places (correlation "
        f"{correlation:.2f}); give them in the order of the source, or an array '{IDS}' with their ids",
    )


def _not_noise(label: str) -> str:
    return (
        f"{label} seems to hold whole images and no perturbations; give --perturbed for perturbed images in the order "
        "of the source, or subtract the originals"
    )


def _largest(noise: ForeignNoise, images: ImageSet) -> int:
    deltas = (noise.delta(noise.row(number, 0), images.read(number)) for number in range(len(images)))
    return max(int(np.abs(delta).max()) for delta in deltas)


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
    if path.stat().st_size != array.offset + array.nbytes:
        raise ValueError("it has bytes after its array")
    return _Rows(array.shape, array.dtype.name, lambda row: np.asarray(array[row], np.float64))


def _unpacked(path: Path, member: str) -> _Rows:
    """An array of an .npz file, copied to a temporary file, since a compressed array cannot be mapped."""
    with tempfile.NamedTemporaryFile(prefix="uge-") as handle:
        with zipfile.ZipFile(path) as archive:
            check_member(archive.getinfo(member))
            with archive.open(member) as packed:
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
