"""The original CIFAR-10 and CIFAR-100 files ("python version"), as a folder or as the .tar.gz archive.

They are pickles, and unpickling runs whatever the file says. Here nothing of the sort can happen: the only
names a file may mention are those of NumPy arrays, and inert stand-ins take their places. The sets have a
fixed size (180 MB at most), so the pixels of the split are held in memory.
"""

from __future__ import annotations

import functools
import math
import pickle
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from uge.data.formats.base import Splits, label_values, row_ids
from uge.data.images import ImageSet, Pixels
from uge.errors import DataError

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


def detect(path: Path) -> bool:
    """Whether the path is a CIFAR folder, one that holds it, or a compressed archive."""
    return _is_archive(path) if path.is_file() else _find(path) is not None


def splits(path: Path) -> Splits:
    """Training and test split, if their files are there."""
    if _is_archive(path):
        return {split: functools.partial(_open, path, split) for split in ("train", "test")}
    folder, layout = _find(path) or (path, _LAYOUTS[0])
    there = [split for split, files in layout.files.items() if (folder / files[0]).is_file()]
    return {split: functools.partial(_open, path, split) for split in there}


def _is_archive(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith((".tar.gz", ".tgz"))


def _find(path: Path) -> tuple[Path, _Layout] | None:
    for layout in _LAYOUTS:
        for folder in (path, path / layout.folder):
            first = [folder / files[0] for files in layout.files.values()]
            if (folder / layout.meta).is_file() and any(file.is_file() for file in first):
                return folder, layout
    return None


def _open(path: Path, split: str) -> ImageSet:
    loaded: dict[str, dict[str, Any]] = {}
    wanted = {name for layout in _LAYOUTS for name in (layout.meta, *layout.files[split])}
    for name, handle in _archive(path, wanted) if _is_archive(path) else _folder(path, wanted):
        loaded[name] = load_pickle(handle, f"'{name}' of {path}")
    layout = next((layout for layout in _LAYOUTS if layout.meta in loaded), None)
    missing = "batches.meta" if layout is None else next((n for n in layout.files[split] if n not in loaded), None)
    if layout is None or missing:
        raise DataError(f"{path} is no complete CIFAR set: '{missing}' is missing; fetch it again")
    batches = [loaded[name] for name in layout.files[split]]
    names = loaded[layout.meta].get(layout.names)
    if not isinstance(names, list) or any(layout.labels not in batch for batch in batches):
        raise DataError(f"{path} lacks '{layout.names}' or '{layout.labels}' in its files; fetch it again")
    pixels = np.concatenate([_images(batch.get("data"), path) for batch in batches])
    labels = np.concatenate([label_values(batch[layout.labels], str(path)) for batch in batches])
    if len(labels) != len(pixels) or labels.dtype != np.int64:
        raise DataError(f"{path} has {len(pixels)} images but {len(labels)} number labels; fetch it again")
    return ImageSet(
        name=path.name.removesuffix(".tgz").removesuffix(".tar.gz"),
        split=split,
        classes=tuple(_text(name) for name in names),
        labels=labels,
        ids=row_ids(split, len(pixels)),
        reader=CifarReader(pixels),
        rows=np.arange(len(pixels), dtype=np.int64),
        root=path,
    )


@dataclass(frozen=True)
class CifarReader:
    """Images held as uint8, N × 3072 (red, green, blue planes)."""

    pixels: NDArray[np.uint8]

    def read(self, row: int) -> Pixels:
        """Image ``row``: uint8, 32 × 32 × 3."""
        return np.ascontiguousarray(self.pixels[row].reshape(3, 32, 32).transpose(1, 2, 0))


def _folder(path: Path, wanted: set[str]) -> Iterator[tuple[str, IO[bytes]]]:
    folder = (_find(path) or (path, None))[0]
    for name in sorted(wanted):
        if (folder / name).is_file():
            with (folder / name).open("rb") as handle:
                yield name, handle


def _archive(path: Path, wanted: set[str]) -> Iterator[tuple[str, IO[bytes]]]:
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                handle = archive.extractfile(member) if member.isreg() and name in wanted else None
                if handle is not None:
                    yield name, handle
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f"archive {path} cannot be read: {error}; fetch it again, and unpack it if it is not CIFAR"
        ) from error


def _images(data: Any, path: Path) -> NDArray[np.uint8]:
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _PIXELS:
        raise DataError(f"{path}: 'data' must be bytes of N×{_PIXELS}; fetch the original files again")
    return data


def load_pickle(handle: IO[bytes], name: str) -> dict[str, Any]:
    """A dictionary of numbers, texts, lists and uint8 arrays from a pickle, without running anything.

    Args:
        handle: The pickle, as Python 2 or 3 and any NumPy wrote it.
        name: What to call it in an error.

    Raises:
        DataError: It is damaged, or mentions anything but NumPy arrays.
    """
    try:
        value = _plain(_restricted(handle).load())
    except _Refused as error:
        raise DataError(
            f"{name} asks to run '{error}', which no CIFAR file does; nothing was run; fetch it anew from a safe place"
        ) from None
    except Exception as error:  # a damaged pickle makes the machine raise nearly anything
        raise DataError(f"{name} is no CIFAR file: {error}; fetch it again") from error
    if not isinstance(value, dict):
        raise DataError(f"{name} is no CIFAR file: expected a dictionary, got {type(value).__name__}; fetch it again")
    return value


class _Refused(Exception):  # noqa: N818 - never leaves this module
    pass


class _ArrayState:
    """What a pickle says of an array."""

    state: Any = None


def _restricted(handle: IO[bytes]) -> pickle.Unpickler:
    # Made anew for each file: a pickle may change the objects it gets, and must not change the next file's.
    class Array(_ArrayState):
        def __setstate__(self, state: Any) -> None:
            self.state = state

    class Dtype:
        def __init__(self, code: Any = None, *_: Any) -> None:
            self.code = code

        def __setstate__(self, state: Any) -> None:
            pass

    def reconstruct(*_: Any) -> Array:
        return Array()

    def encode(text: str, *_: Any) -> bytes:
        return text.encode("latin1")

    stand_ins = {
        ("numpy.core.multiarray", "_reconstruct"): reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): reconstruct,
        ("numpy", "ndarray"): Array,
        ("numpy", "dtype"): Dtype,
        ("_codecs", "encode"): encode,
    }

    class Restricted(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in stand_ins:
                raise _Refused(f"{module}.{name}")
            return stand_ins[module, name]

    return Restricted(handle, encoding="latin1")


def _plain(value: Any) -> Any:
    """The value with text keys and real arrays."""
    if isinstance(value, dict):
        return {_text(key): _plain(item) for key, item in value.items()}
    if isinstance(value, _ArrayState):
        _, shape, dtype, fortran, data = value.state
        raw = data.encode("latin1") if isinstance(data, str) else data
        if str(dtype.code).lstrip("|") not in {"u1", "B"} or fortran or len(raw) != math.prod(shape):
            raise ValueError("an array is not of bytes in C order")
        return np.frombuffer(raw, np.uint8).reshape(shape)
    return value


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
