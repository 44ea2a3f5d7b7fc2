"""Lossless image bytes without metadata, and a decoder that accepts nothing else."""

import contextlib
import io
import struct
import sys
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from uge.data.images import Codec, Pixels, Strips, is_large, strip_rows, strips_of
from uge.errors import DataError
from uge.files import Region, reader_of

Encoded: TypeAlias = bytes | Region
"""Encoded image in memory; a large one in a file."""
MODES = ("L", "LA", "RGB", "RGBA")
WEBP_SIDE = 16383
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# Values per pixel of PNG's colour types.
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PNG_COLOURS = {channels: colour for colour, channels in PNG_CHANNELS.items() if colour != 3}
# Lengths of chunks of a large PNG, and of pieces of compressed bytes that are unpacked at once.
CHUNK = 2**18
PIECE = 2**14
ALLOWED = {"png": {"IHDR", "IDAT", "IEND"}, "webp": {"VP8L"}}
OPTIONS: dict[Codec, dict[str, Any]] = {
    "png": {"format": "PNG", "compress_level": 6},
    # Within 2 % of the size that Pillow's default (method 4, quality 80) reaches, in a third of its time.
    # exact: colours under alpha 0 are data too, and would otherwise change by more than the budget.
    "webp": {"format": "WEBP", "lossless": True, "exact": True, "method": 3, "quality": 50},
}
QUICK = {"method": 0, "quality": 0}


def storable(pixels: Pixels | Strips, codec: Codec) -> Codec:
    """Codec that holds these pixels unchanged: WebP has no gray, drops opaque alpha, and ends at 16383 pixels.

    Large images become PNG, too: lossless WebP needs 30 bytes of memory for each pixel, and three times the time.
    """
    if isinstance(pixels, Strips) or is_large(pixels.shape):
        return "png"
    opaque = pixels.shape[2] == 4 and bool((pixels[..., 3] == 255).all())
    return "png" if pixels.shape[2] <= 2 or opaque or max(pixels.shape) > WEBP_SIDE else codec


def encode(pixels: Pixels | Strips, codec: Codec, scratch: Path | None = None, *, quick: bool = False) -> Encoded:
    """Lossless bytes of one image, with no metadata; those of a large one in a temporary file without a name.

    Args:
        pixels: uint8, height × width × 1 to 4.
        codec: Its format; :func:`storable` says which one holds it unchanged.
        scratch: Folder of the temporary file; None for the system's.
        quick: Write WebP in a third of the time, 4 % larger.
    """
    if isinstance(pixels, Strips) or (codec == "png" and is_large(pixels.shape)):
        whole = Region.temporary(scratch)
        for part in _png_by_strips(pixels):
            whole.append(part)
        return whole
    buffer = io.BytesIO()
    options = OPTIONS[codec] | (QUICK if quick and codec == "webp" else {})
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, **options)
    return buffer.getvalue()


def _png_by_strips(pixels: Pixels | Strips) -> Iterator[bytes]:
    """Parts of a PNG of differences to the row above, packed as they come."""
    height, width, channels = pixels.shape
    yield from _png_start(width, height, channels)
    packer = zlib.compressobj(3, memLevel=9)
    waiting = bytearray()
    above = np.zeros((1, width * channels), np.uint8)
    for strip in strips_of(pixels):
        rows = np.concatenate([above, strip.reshape(len(strip), -1)])
        filtered = np.full((len(strip), 1 + width * channels), 2, np.uint8)  # PNG's filter type 2 is "up".
        np.subtract(rows[1:], rows[:-1], out=filtered[:, 1:])
        above = rows[-1:].copy()
        waiting += packer.compress(filtered.tobytes())
        while len(waiting) >= CHUNK:
            yield from _png_chunk(b"IDAT", waiting[:CHUNK])
            del waiting[:CHUNK]
    yield from _png_chunk(b"IDAT", waiting + packer.flush())
    yield from _png_chunk(b"IEND", b"")


def _png(width: int, height: int, channels: int, filtered: bytes) -> Iterator[bytes]:
    """Parts of a PNG of filtered rows, unpacked."""
    yield from _png_start(width, height, channels)
    yield from _png_chunk(b"IDAT", zlib.compress(filtered, 0))
    yield from _png_chunk(b"IEND", b"")


def _png_start(width: int, height: int, channels: int) -> Iterator[bytes]:
    yield PNG_MAGIC
    yield from _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, PNG_COLOURS[channels], 0, 0, 0))


def _png_chunk(kind: bytes, content: bytes | bytearray) -> Iterator[bytes]:
    ends = struct.pack(">I4s", len(content), kind), struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
    yield bytes(content).join(ends)


def decode(data: Encoded) -> Pixels:
    """Pixels of a published image: uint8, height × width × channels.

    Raises:
        DataError: The bytes are no PNG or WebP, are damaged, or are not 8-bit gray or colour.
    """
    with _opened(data) as image:
        pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def decode_strips(data: Encoded) -> Pixels | Strips:
    """Pixels of a published image; of a large PNG as strips, which are unpacked one after another.

    Raises:
        DataError: As :func:`decode`; while strips are unpacked, too.
    """
    with _opened(data) as image:
        shape = (image.height, image.width, len(image.getbands()))
        # Raw modes of other names have fewer or more than 8 bits, or a palette.
        plain = image.format == "PNG" and "interlace" not in image.info and vars(image)["tile"][0][3] == image.mode
    return Strips(shape, lambda: _decoded_strips(data, shape)) if plain and is_large(shape) else decode(data)


@contextlib.contextmanager
def _opened(data: Encoded) -> Iterator[Image.Image]:
    try:
        with Image.open(reader_of(data), formats=("PNG", "WEBP")) as image:
            if image.mode not in MODES:
                raise DataError(f"expected 8-bit gray or colour pixels ({', '.join(MODES)}), got {image.mode}")
            yield image
    except (OSError, EOFError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise DataError(f"cannot be decoded as PNG or WebP ({error})") from error


def _decoded_strips(data: Encoded, shape: tuple[int, int, int]) -> Iterator[Pixels]:
    """Strips of a PNG, each decoded by Pillow as a PNG of its own below the last row of the strip before."""
    height, width, channels = shape
    length = 1 + width * channels
    above = bytes(length)  # Filter type 0 and zeros, to which the first row of an image refers.
    rows = strip_rows(width)
    waiting = bytearray()
    done = 0
    try:
        for part in _png_rows(data, height * length):
            waiting += part
            while done < height and len(waiting) >= (count := min(rows, height - done)) * length:
                strip = decode(b"".join(_png(width, count + 1, channels, above + waiting[: count * length])))[1:]
                del waiting[: count * length]
                above = b"\0" + strip[-1].tobytes()
                done += count
                yield strip
    except (struct.error, ValueError, zlib.error) as error:
        raise DataError(f"cannot be decoded as PNG or WebP ({error})") from error
    if done < height:
        raise DataError(f"cannot be decoded as PNG or WebP (it ends after {done} of {height} rows)")


def kind_of(data: Encoded) -> Codec:
    """Codec that the first bytes of a published image claim."""
    return "png" if data[: len(PNG_MAGIC)] == PNG_MAGIC else "webp"


def metadata_problem(data: Encoded) -> str | None:
    """Description of what an image holds beyond lossless pixels (EXIF, colour profile, text); ``None`` if clean."""
    kind = kind_of(data)
    try:
        names = list(_png_chunks(data) if kind == "png" else _webp_chunks(data))
    except (struct.error, ValueError, zlib.error) as error:
        return f"is no well-formed {kind.upper()} file ({error})"
    extra = [name for name in dict.fromkeys(names) if name not in ALLOWED[kind]]
    if "VP8 " in extra:
        return "is stored as lossy WebP, which destroys the protection"
    return f"holds more than pixels ({', '.join(extra)})" if extra else None


def _png_chunks(data: Encoded) -> Iterator[str]:
    header = b""
    for name, start, end in _png_contents(data):
        header += data[start:end] if name == "IHDR" else b""
        yield name
    if end + 4 != len(data):
        yield f"{len(data) - end - 4} bytes after the end"
    if start < end:
        yield f"{end - start} bytes in its last chunk"
    width, height, depth, colour, *_, interlaced = struct.unpack(">IIBBBBB", header)
    if interlaced or colour not in PNG_CHANNELS or width * height > 2 * (Image.MAX_IMAGE_PIXELS or sys.maxsize):
        raise ValueError("its pixels are interlaced, of an unknown kind, or too many")
    try:
        deque(_png_rows(data, height * (1 + (width * depth * PNG_CHANNELS[colour] + 7) // 8)), maxlen=0)
    except _ExcessError:
        yield "bytes after its pixels"


def _png_contents(data: Encoded) -> Iterator[tuple[str, int, int]]:
    """Name of every chunk of a PNG, and where its content begins and ends."""
    at = len(PNG_MAGIC)
    name = ""
    while name != "IEND":
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        name = kind.decode("latin-1")
        yield name, at + 8, at + 8 + length
        at += 12 + length


class _ExcessError(ValueError):
    """Bytes after the pixels of an image."""


def _png_rows(data: Encoded, size: int) -> Iterator[bytes]:
    """Parts of the filtered rows of a PNG, ``size`` bytes together, without holding them all.

    Raises:
        _ExcessError: There are more.
    """
    stream = zlib.decompressobj()
    for name, first, end in _png_contents(data):
        for start in range(first, end if name == "IDAT" else first, PIECE):
            part = stream.decompress(data[start : min(start + PIECE, end)], size + 1)
            size -= len(part)
            if size < 0 or stream.unused_data or stream.unconsumed_tail:
                raise _ExcessError("bytes after its pixels")
            yield part


def _webp_chunks(data: Encoded) -> Iterator[str]:
    riff, size, kind = struct.unpack("<4sI4s", data[:12])
    if riff != b"RIFF" or kind != b"WEBP":
        raise ValueError("no WebP header")
    at = 12
    while at < size + 8:
        name, length = struct.unpack("<4sI", data[at : at + 8])
        at += 8 + length + length % 2
        yield name.decode("latin-1")
    if at != len(data):
        yield f"{len(data) - at} bytes after the end"
