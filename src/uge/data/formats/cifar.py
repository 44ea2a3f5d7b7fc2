"""Original CIFAR-10 and CIFAR-100 files ("python version"), as a folder or as the .tar.gz archive.

They are pickles, and unpickling runs whatever the file says. Here nothing of the sort can happen: the only
names a file may mention are those of NumPy arrays, and inert stand-ins take their places. The sets have a
fixed size (180 MB at most), so the pixels of the split are held in memory.
"""

import functools
import io
import math
import pickle
import pickletools
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from uge.data.formats.base import Splits, data_errors, image_set, label_values
from uge.data.images import ImageSet, Pixels
from uge.errors import DataError
from uge.files import LARGEST, read_bytes

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Layout:
    folder: str
    meta: str
    names: str
    labels: str
    files: dict[str, tuple[str, ...]]


_LAYOUTS = (
    _Layout(
        folder="cifar-10-batches-py",
        meta="batches.meta",
        names="label_names",
        labels="labels",
        files={"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
    ),
    _Layout(
        folder="cifar-100-python",
        meta="meta",
        names="fine_label_names",
        labels="fine_labels",
        files={"train": ("train",), "test": ("test",)},
    ),
)


def splits(path: Path) -> Splits | None:
    """Splits of a CIFAR folder, of one that holds it, or of a compressed archive, which is taken to have both.

    None for any other path.
    """
    is_archive = path.is_file() and path.name.lower().endswith((".tar.gz", ".tgz"))
    names = ("train", "test") if is_archive else _present(path)
    return {split: functools.partial(_open, path, split) for split in names} or None


def _present(path: Path) -> dict[str, Path]:
    """Splits of a folder, each with the folder that holds its files."""
    for layout in _LAYOUTS:
        for folder in (path, path / layout.folder):
            present = {split: folder for split, files in layout.files.items() if (folder / files[0]).is_file()}
            if present and (folder / layout.meta).is_file():
                return present
    return {}


def _open(path: Path, split: str) -> ImageSet:
    wanted = {name for layout in _LAYOUTS for name in (layout.meta, *layout.files[split])}
    folder = _present(path).get(split)
    members = _archived(path, wanted) if folder is None else _unpacked(folder, wanted)
    loaded = {name: load_pickle(handle, f"'{name}' of {path}") for name, handle in members}
    layout = next((layout for layout in _LAYOUTS if layout.meta in loaded), _LAYOUTS[0])
    missing = next((name for name in (layout.meta, *layout.files[split]) if name not in loaded), None)
    if missing:
        raise DataError(f"{path} is no complete CIFAR set: '{missing}' is missing; fetch it again")
    batches = [loaded[name] for name in layout.files[split]]
    names = loaded[layout.meta].get(layout.names)
    if not isinstance(names, list) or any(layout.labels not in batch for batch in batches):
        raise DataError(f"{path} lacks '{layout.names}' or '{layout.labels}' in its files; fetch it again")
    pixels = np.concatenate([_planes(batch.get("data"), path) for batch in batches])
    labels = np.concatenate([label_values(batch[layout.labels], str(path)) for batch in batches])
    classes = [_text(name) for name in names]
    return image_set(path, split, labels, classes, CifarReader(pixels), count=len(pixels))


@dataclass(frozen=True)
class CifarReader:
    """Images held as uint8, N × 3072 (red, green, blue planes)."""

    pixels: NDArray[np.uint8]

    def read(self, row: int) -> Pixels:
        """Image ``row``: uint8, 32 × 32 × 3."""
        return np.ascontiguousarray(self.pixels[row].reshape(3, 32, 32).transpose(1, 2, 0))


def _unpacked(folder: Path, wanted: set[str]) -> Iterator[tuple[str, IO[bytes]]]:
    files = [folder / name for name in sorted(wanted)]
    return ((file.name, io.BytesIO(read_bytes(file, LARGEST))) for file in files if file.is_file())


def _archived(path: Path, wanted: set[str]) -> Iterator[tuple[str, IO[bytes]]]:
    advice = "fetch it again, and unpack it if it is not CIFAR"
    with (
        data_errors(f"archive {path} cannot be read", advice, (tarfile.TarError, EOFError, OSError)),
        tarfile.open(path, "r|*") as archive,
    ):
        for member in archive:
            name = PurePosixPath(member.name).name
            handle = archive.extractfile(member) if member.isreg() and name in wanted else None
            if handle is not None:
                if member.size > LARGEST:
                    raise tarfile.ReadError(
                        f"its member {name} has {member.size:,} bytes, at most {LARGEST:,} are read"
                    )
                yield name, io.BytesIO(handle.read())


def _planes(data: Any, path: Path) -> NDArray[np.uint8]:
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _PIXELS:
        raise DataError(f"{path}: 'data' must be bytes of N×{_PIXELS}; fetch the original files again")
    return data


def load_pickle(handle: IO[bytes], name: str) -> dict[str, Any]:
    """Dictionary of numbers, texts, lists and uint8 arrays, read from a pickle without running anything.

    Args:
        handle: The pickle, as Python 2 or 3 and any NumPy wrote it.
        name: Name of the file in an error.

    Raises:
        DataError: The pickle is damaged, or mentions anything but NumPy arrays.
    """
    # Made anew for each file: a pickle may set attributes of what it gets, and must not change the next file's.
    stand_ins = {
        ("numpy.core.multiarray", "_reconstruct"): lambda *arguments: _StandIn(arguments),
        ("numpy._core.multiarray", "_reconstruct"): lambda *arguments: _StandIn(arguments),
        ("numpy", "dtype"): lambda *arguments: _StandIn(arguments),
        ("numpy", "ndarray"): "ndarray",
        ("_codecs", "encode"): lambda text, *_: text.encode("latin1"),
    }

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, attribute: str) -> Any:
            if (module, attribute) not in stand_ins:
                raise DataError(
                    f"{name} asks to run '{module}.{attribute}', which no CIFAR file does; nothing was run; "
                    "fetch it anew from a safe place"
                )
            return stand_ins[module, attribute]

    with data_errors(f"{name} is no CIFAR file", "fetch it again", (Exception,)):  # Damage raises nearly anything.
        for opcode, argument, place in pickletools.genops(handle):
            if opcode.name.endswith("PUT") and int(argument or 0) > (
                place or 0
            ):  # Memory is taken for all places up to this.
                raise ValueError(f"its place {argument} for a value is out of all proportion")
        handle.seek(0)
        value = Unpickler(handle, encoding="latin1").load()
        if not isinstance(value, dict):
            raise TypeError(f"expected a dictionary, got {type(value).__name__}")
        # Not deeper: a dictionary that holds another twice, and so on, would grow without end.
        return {_text(key): _plain(item) for key, item in value.items()}


class _StandIn:
    """Arguments and state that a pickle gives an array or a type of arrays."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _plain(value: Any) -> Any:
    if isinstance(value, _StandIn):
        _, shape, dtype, fortran, data = value.state
        raw = data.encode("latin1") if isinstance(data, str) else data
        if str(dtype.arguments[0]).lstrip("|") not in {"u1", "B"} or fortran or len(raw) != math.prod(shape):
            raise ValueError("an array is not of bytes in C order")
        return np.frombuffer(raw, np.uint8).reshape(shape)
    return value


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
