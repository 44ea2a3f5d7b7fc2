"""Pages of Parquet files by their headers: sizes before anything is read, and one large value where it lies.

Arrow copies a value three times while it reads or writes it. The headers are in Thrift's compact protocol
(https://github.com/apache/parquet-format, https://github.com/apache/thrift/blob/master/doc/specs).
"""

import contextlib
import io
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from uge.files import Region, open_regular, parts_of

Struct: TypeAlias = dict[int, tuple[int, Any]]
"""Fields by number, each with its type; a list is a type and its values."""
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_NUMBERS = (4, 5, 6)
_MAGIC = b"PAR1"
_HEADER = 1 << 16  # Bytes in which a header of a page ends; Arrow allows 16 MiB for statistics.
_DEEP = 16
_PLAIN, _DELTA = 0, 7
_DATA, _DICTIONARY = 0, 2


def _unsigned(stream: BinaryIO) -> int:
    value = 0
    for place in range(10):
        byte = _exactly(stream, 1)[0]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value
    raise ValueError("a number has more than 64 bits")


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise ValueError("a header ends early")
    return data


def _signed(stream: BinaryIO) -> int:
    value = _unsigned(stream)
    return (value >> 1) ^ -(value & 1)


def _read_value(stream: BinaryIO, kind: int, deep: int) -> Any:
    if deep > _DEEP:
        raise ValueError("a header is nested too deeply")
    if kind in (_TRUE, _FALSE):
        return _exactly(stream, 1)
    if kind == _BYTE:
        return _exactly(stream, 1)
    if kind in _NUMBERS:
        return _signed(stream)
    if kind == _DOUBLE:
        return _exactly(stream, 8)
    if kind == _BINARY:
        return _exactly(stream, _unsigned(stream))
    if kind in (_LIST, _SET):
        first = _exactly(stream, 1)[0]
        count = first >> 4 if first >> 4 < 15 else _unsigned(stream)
        return first & 15, [_read_value(stream, first & 15, deep + 1) for _ in range(count)]
    if kind == _STRUCT:
        return _read_struct(stream, deep + 1)
    raise ValueError(f"a header has a field of the unknown type {kind}")


def _read_struct(stream: BinaryIO, deep: int = 0) -> Struct:
    fields: Struct = {}
    number = 0
    while first := _exactly(stream, 1)[0]:
        number = number + (first >> 4) if first >> 4 else _signed(stream)
        kind = first & 15
        fields[number] = kind, None if kind in (_TRUE, _FALSE) else _read_value(stream, kind, deep)
    return fields


def _number(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*parts, value))


def _written(kind: int, value: Any) -> bytes:
    if kind in _NUMBERS:
        return _number(value << 1 if value >= 0 else (-value << 1) - 1)
    if kind == _BINARY:
        return b"".join((_number(len(value)), value))
    if kind in (_LIST, _SET):
        inner, values = value
        count = len(values)
        head = bytes([count << 4 | inner]) if count < 15 else bytes([0xF0 | inner]) + _number(count)
        return head + b"".join(_written(inner, part) for part in values)
    if kind == _STRUCT:
        return _written_struct(value)
    other: bytes = value or b""
    return other


def _written_struct(fields: Struct) -> bytes:
    parts = []
    before = 0
    for number, (kind, value) in sorted(fields.items()):
        step = number - before
        parts.append(bytes([step << 4 | kind]) if 0 < step < 16 else bytes([kind]) + _written(_NUMBERS[0], number))
        parts.append(_written(kind, value))
        before = number
    return b"".join((*parts, b"\0"))


@dataclass(frozen=True)
class Page:
    """One page of a column.

    Attributes:
        header: Fields of its header.
        start: Place of the header in the file.
        body: Place of its content.
    """

    header: Struct
    start: int
    body: int

    def field(self, *path: int) -> int:
        """Number in the header, by the numbers of the fields that lead to it; -1 where there is none."""
        value: Any = self.header
        for number in path:
            value = value.get(number, (0, {}))[1] if isinstance(value, dict) else {}
        return value if isinstance(value, int) else -1

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.field(3)

    @property
    def unpacked(self) -> int:
        """Bytes in memory."""
        return self.field(2)


def pages(handle: BinaryIO, column: Any) -> Iterator[Page]:
    """Pages of a column of a row group, by their headers.

    Args:
        handle: The file.
        column: Metadata of the column, as pyarrow gives it.

    Raises:
        ValueError: A header is damaged, or a page leads out of the column.
    """
    at = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < at:
        at = column.dictionary_page_offset
    end = at + column.total_compressed_size
    values = 0
    while at < end and values < column.num_values:
        handle.seek(at)
        stream = io.BytesIO(handle.read(min(_HEADER, end - at)))
        page = Page(_read_struct(stream), at, at + stream.tell())
        if page.size < 0 or page.unpacked < 0 or page.body + page.size > end:
            raise ValueError(f"the page at {at} leads out of its column")
        yield page
        values += max(page.field(5, 1), page.field(8, 1), 0)
        at = page.body + page.size


@dataclass(frozen=True)
class Sizes:
    """Memory that a column of a row group takes.

    Attributes:
        unpacked: Bytes of all pages after decompression.
        shared: Bytes to which each value may expand, since it refers to a dictionary or to the value before; 0 where
            values are stored as they are.
    """

    unpacked: int
    shared: int

    @classmethod
    def of(cls, path: Path, column: Any) -> "Sizes":
        """Sizes by the headers of the pages.

        Raises:
            ValueError: The headers are damaged.
            OSError: The file cannot be read.
        """
        unpacked = shared = 0
        with open_regular(path) as handle:
            for page in pages(handle, column):
                unpacked += page.unpacked
                refers = page.field(1) == _DICTIONARY or _DELTA in (page.field(5, 2), page.field(8, 4))
                shared = max(shared, page.unpacked if refers else 0)
        return cls(unpacked, shared)


def only_value(path: Path, column: Any) -> Region | None:
    """Bytes of the only value of a column of a row group, in the file; None where they do not lie there as they are.

    Args:
        path: The file.
        column: Metadata of a column of optional bytes in an optional struct, as pyarrow gives it.

    Raises:
        OSError: The file cannot be read.
    """
    if column.num_values != 1 or column.compression != "UNCOMPRESSED" or column.has_dictionary_page:
        return None
    handle = open_regular(path)
    with contextlib.suppress(ValueError, struct.error):
        page = next(pages(handle, column))
        handle.seek(page.body)
        start = handle.read(64)
        (levels,) = struct.unpack_from("<I", start)
        (size,) = struct.unpack_from("<I", start, 4 + levels)
        plain = (page.field(1), page.field(5, 1), page.field(5, 2)) == (_DATA, 1, _PLAIN)
        if plain and page.size == page.unpacked == 8 + levels + size:
            return Region(handle, page.body + 8 + levels, size)
    handle.close()
    return None


def fill(path: Path, values: Mapping[int, Region]) -> None:
    """Put large values into a file that Arrow wrote with empty ones in their places.

    The result has the bytes that Arrow would have written.

    Args:
        path: The file: uncompressed, without dictionaries, statistics and indexes of pages.
        values: Bytes of the first column by row group; each of these groups has one row.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with path.open("rb") as old, part.open("wb") as new:
        old.seek(-8, os.SEEK_END)
        footer = old.tell() - struct.unpack("<I", old.read(4))[0]
        old.seek(footer)
        metadata = _read_struct(old)
        at = 0
        shift = 0
        for number, group in enumerate(metadata[4][1][1]):
            _moved(group, 5, shift)
            before = shift
            for place, chunk in enumerate(group[1][1][1]):
                column: Struct = chunk[3][1]
                start: int = column[9][1]
                _moved(column, 9, shift)
                if chunk[2][1]:  # Zero where Arrow says nothing.
                    _moved(chunk, 2, shift)
                if place or number not in values:
                    continue
                _copy(old, new, at, start)
                at = start + column[7][1]
                grown = _fill_page(old, new, start, values[number])
                for field in (6, 7):
                    _moved(column, field, grown)
                if 16 in column:
                    _moved(column[16][1], 1, len(values[number]))
                shift += grown
            for field in (2, 6):
                _moved(group, field, shift - before)
        _copy(old, new, at, footer)
        text = _written_struct(metadata)
        new.write(text + struct.pack("<I", len(text)) + _MAGIC)
    part.replace(path)


def _moved(fields: Struct, number: int, by: int) -> None:
    if number in fields:
        kind, value = fields[number]
        fields[number] = kind, value + by


def _copy(old: BinaryIO, new: BinaryIO, start: int, end: int) -> None:
    for part in parts_of(Region(old, start, end - start)):
        new.write(part)


def _fill_page(old: BinaryIO, new: BinaryIO, start: int, value: Region) -> int:
    """Write the page at ``start`` with a value; gives the number of bytes by which it grew."""
    old.seek(start)
    header = _read_struct(old)
    body = old.read(header[3][1])
    length = old.tell() - start
    for field in (2, 3):
        header[field] = header[field][0], header[field][1] + len(value)
    text = _written_struct(header)
    new.write(text + body[:-4] + struct.pack("<I", len(value)))
    for part in parts_of(value):
        new.write(part)
    return len(text) + len(body) + len(value) - length
