"""Bytes that lie in a file and are read where they are needed, so that a large image is not in memory twice."""

import io
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

PART = 1 << 20
"""Bytes that are read at once."""


class Region:
    """Bytes of a file, which can be measured and sliced like ``bytes``. Threads may share it.

    Args:
        handle: The open file; the region keeps it open.
        start: Place of the first byte.
        size: Number of bytes.

    Example:
        >>> region = Region(tempfile.TemporaryFile())
        >>> region.append(b"0123456789")
        >>> len(region), region[2:4]
        (10, b'23')
    """

    def __init__(self, handle: BinaryIO, start: int = 0, size: int = 0) -> None:
        self._handle = handle
        self._start = start
        self._size = size
        self._lock = threading.Lock()

    @classmethod
    def temporary(cls, folder: Path | None = None) -> "Region":
        """An empty region in a file without a name, which is gone when nothing refers to it, or after a kill.

        Args:
            folder: Place of the file; None for that of the system's temporary files.
        """
        return cls(tempfile.TemporaryFile(prefix="uge-", dir=folder))

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes to a temporary region."""
        with self._lock:
            self._handle.seek(self._start + self._size)
            self._handle.write(data)
            self._handle.flush()
            self._size += len(data)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: slice) -> bytes:
        first, last, step = place.indices(self._size)
        if step != 1:
            raise ValueError("expected a slice without a step")
        size = max(0, last - first)
        if hasattr(os, "pread"):
            return os.pread(self._handle.fileno(), size, self._start + first)
        with self._lock:
            self._handle.seek(self._start + first)
            return self._handle.read(size)

    def open(self) -> io.BufferedReader:
        """A new reader of these bytes, from their beginning."""
        return io.BufferedReader(_Reader(self), PART)


class _Reader(io.RawIOBase):
    def __init__(self, region: Region) -> None:
        self._region = region
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._region)}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._region[self._at : self._at + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def parts_of(data: bytes | Region) -> Iterator[bytes]:
    """Bytes of a file or of memory, piece by piece."""
    if isinstance(data, bytes):
        yield data
    else:
        yield from (data[at : at + PART] for at in range(0, len(data), PART))


def reader_of(data: bytes | Region) -> BinaryIO:
    """A new reader of bytes of a file or of memory."""
    return io.BytesIO(data) if isinstance(data, bytes) else data.open()
