"""Fixed-size records with random access, in memory or in a file, so that memory stays flat."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uge.data.images import ImageSet
from uge.data.pixels import resize, to_channels
from uge.errors import DataError, UsageError
from uge.files import canonical_json, owners_alone, storage_errors

RESIDENT_BYTES = 512 * 2**20
"""Size in bytes above which a set is kept in a file and read batch by batch."""

_CHUNK = 256


class Records:
    """``count`` tensors of one shape, read and written by index.

    With ``path`` they live in that file (created with zeros where absent); with a size above
    ``resident_bytes`` in an anonymous temporary file; else in one tensor on ``device``.
    Files are read with ``pread``, not mapped: what was read does not count as memory in use.

    Args:
        count: Number of records.
        shape: Shape of one record.
        dtype: ``torch.uint8`` (pixels), ``torch.int8`` or ``torch.int16`` (perturbations in 8-bit levels).
        device: Device of what is read, and of a resident tensor.
        path: File that outlives this object.
        resident_bytes: Largest total size that is kept in memory when there is no path.

    Raises:
        StorageError: The file cannot be written.
    """

    def __init__(
        self,
        count: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        *,
        device: torch.device | str = "cpu",
        path: Path | None = None,
        resident_bytes: int = RESIDENT_BYTES,
    ) -> None:
        self.count = count
        self.shape = shape
        self.dtype = dtype
        self.device = torch.device(device)
        self._bytes = int(np.prod(shape)) * dtype.itemsize
        self._tensor: Tensor | None = None
        if path is None and count * self._bytes <= resident_bytes:
            self._tensor = torch.zeros((count, *shape), dtype=dtype, device=self.device)
            return
        self._place = path or Path(tempfile.gettempdir())
        with storage_errors(self._place):
            if path is None:
                self._file: Any = tempfile.TemporaryFile(prefix="uge-")  # noqa: SIM115 - open as long as the records are
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(path, "r+b" if path.exists() else "w+b", opener=owners_alone)  # noqa: SIM115
            self._file.truncate(count * self._bytes)

    @property
    def resident(self) -> bool:
        """True if the records are one tensor in memory."""
        return self._tensor is not None

    def read(self, indices: Tensor) -> Tensor:
        """Records at ``indices`` (int64, on the CPU or the device): len(indices) × shape, on the device.

        Raises:
            DataError: The file was cut off.
        """
        if self._tensor is not None:
            return self._tensor[indices.to(self.device)]
        records = torch.empty((len(indices), *self.shape), dtype=self.dtype)
        content = records.view(torch.uint8).numpy()
        for row, index in enumerate(indices.tolist()):
            if os.preadv(self._file.fileno(), [content[row]], index * self._bytes) != self._bytes:
                raise DataError(
                    f"the records in {self._place} end before number {index}; the file was cut off, write it again"
                )
        return records.to(self.device)

    def write(self, indices: Tensor, values: Tensor) -> None:
        """Replace the records at ``indices`` by ``values`` (len(indices) × shape).

        Raises:
            StorageError: The disk is full.
        """
        if self._tensor is not None:
            self._tensor[indices.to(self.device)] = values.to(self.device, self.dtype)
            return
        array = values.to("cpu", self.dtype).numpy()
        with storage_errors(self._place):
            for row, index in enumerate(indices.tolist()):
                content = array[row].tobytes()
                place = index * self._bytes
                while content:  # A nearly full disk takes a part of it first, and says so only at the next call.
                    written = os.pwrite(self._file.fileno(), content, place)
                    content = content[written:]
                    place += written

    def copy(self, source: Records) -> None:
        """Replace all records by those of ``source``, which holds as many of the same shape."""
        for indices in torch.split(torch.arange(self.count), _CHUNK):
            self.write(indices, source.read(indices))

    def flush(self) -> None:
        """Make a file's records durable; nothing for resident ones."""
        if self._tensor is None:
            os.fsync(self._file.fileno())


@dataclass(frozen=True)
class PixelStore:
    """Images of one size as records of uint8 pixels, channels × size × size, with their labels.

    Attributes:
        pixels: The records.
        labels: int64, one per image, on the records' device.
        classes: Class names.
        exact: True if every image is known to be as it was read, not resized and with the channels it had.
    """

    pixels: Records
    labels: Tensor
    classes: tuple[str, ...]
    exact: bool = False

    def __len__(self) -> int:
        return self.pixels.count

    @property
    def channels(self) -> int:
        """Colour channels of an image."""
        return self.pixels.shape[0]

    @property
    def size(self) -> int:
        """Height and width of an image in pixels."""
        return self.pixels.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Size and channels at which another set must be read to go with this one."""
        return self.size, self.channels

    @property
    def device(self) -> torch.device:
        """Device of what is read."""
        return self.pixels.device

    def digest(self) -> str:
        """Hexadecimal sha256 of class names, labels and pixels: of all that training on them depends on."""
        digest = hashlib.sha256(canonical_json([self.classes, self.pixels.shape]).encode())
        digest.update(self.labels.cpu().numpy().tobytes())
        for indices in torch.split(torch.arange(len(self)), _CHUNK):
            digest.update(self.pixels.read(indices).cpu().numpy().tobytes())
        return digest.hexdigest()

    def empty_like(self) -> PixelStore:
        """Store with the same labels and with pixels of zeros, to be written."""
        return PixelStore(self._records(len(self)), self.labels, self.classes)

    def subset(self, rows: Tensor) -> PixelStore:
        """Store of the images at ``rows`` (int64, on the CPU; a row may occur several times)."""
        pixels = self._records(len(rows))
        for places in torch.split(torch.arange(len(rows)), _CHUNK):
            pixels.write(places, self.pixels.read(rows[places]))
        return PixelStore(pixels, self.labels[rows.to(self.device)], self.classes)

    def _records(self, count: int) -> Records:
        source = self.pixels
        limit = RESIDENT_BYTES if source.resident else 0
        return Records(count, source.shape, source.dtype, device=source.device, resident_bytes=limit)


def load_pixels(
    images: ImageSet,
    *,
    size: int | None = None,
    channels: int | None = None,
    device: torch.device | str = "cpu",
    resident_bytes: int = RESIDENT_BYTES,
    progress: Callable[[int], None] | None = None,
) -> PixelStore:
    """Store of all images of a set, each decoded once, at one size.

    Args:
        images: The set; memory in use does not depend on its length beyond ``resident_bytes``.
        size: Side length in pixels; by default the native one, if every image is square and of one size.
        channels: 1 or 3; by default 1 if every probed image is gray.
        device: Device of what is read.
        resident_bytes: Size in bytes of the largest set that is kept in memory.
        progress: Called with the number of images decoded since the last call.

    Raises:
        UsageError: Sizes are mixed and no ``size`` was given.
        DataError: An image cannot be decoded, or the set is empty.
    """
    if not len(images):
        raise DataError(f"{images.name} ({images.split}): no image was found")
    size = size or images.native_size()
    if size is None:
        raise UsageError(f"the images of {images.name} have mixed or non-square sizes; give --size N (for instance 64)")
    channels = channels or images.channels()
    records = Records(len(images), (channels, size, size), torch.uint8, device=device, resident_bytes=resident_bytes)
    exact = True
    for start in range(0, len(images), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(images)))
        block = np.empty((len(rows), size, size, channels), np.uint8)
        for place, row in zip(block, rows, strict=True):
            pixels = images.read(row)
            exact &= pixels.shape == place.shape
            place[...] = to_channels(resize(pixels, size), channels)
            del pixels  # Not kept while the next one is decoded.
        records.write(torch.arange(rows.start, rows.stop), torch.from_numpy(block).permute(0, 3, 1, 2))
        if progress:
            progress(len(rows))
    labels = torch.from_numpy(images.labels.astype(np.int64)).to(device)
    return PixelStore(records, labels, images.classes, exact)
