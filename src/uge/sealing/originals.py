"""Bytes of an original image that are sealed: its own file without metadata, pixel for pixel."""

import contextlib
import io
import re
import struct
import zlib

from PIL import ExifTags, Image

from uge.data.codec import PNG_MAGIC, encode, storable
from uge.data.images import Pixels, Strips
from uge.errors import DataError

_JPEG_MAGIC = b"\xff\xd8"
_MAGIC = {
    _JPEG_MAGIC: "jpg",
    PNG_MAGIC: "png",
    b"RIFF": "webp",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II": "tif",
    b"MM": "tif",
    b"P": "ppm",
}
# Fill bytes and a marker; neither a stuffed zero nor a restart marker, which belong to coded pixels.
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_END = 0xD9
_SCAN = 0xDA
_BARE = {0x01, 0xD8}  # Markers without a length.
_TABLES = (set(range(0xC0, 0xD0)) - {0xC8}) | set(range(0xDA, 0xE0))  # Frames, tables and scans.
_JFIF = 0xE0
_EXIF = 0xE1
_ICC = 0xE2
_ADOBE = 0xEE
_PNG_END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
_PNG_KEPT = {b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"sBIT", b"cICP"}
_PNG_TURNING = {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}
_PNG_MOVING = {b"acTL", b"fcTL", b"fdAT"}
_WEBP_KEPT = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ICCP"}
_WEBP_TURNING = {b"EXIF", b"XMP "}
_WEBP_MOVING = {b"ANIM", b"ANMF"}
_WEBP_FLAGS = 0x0C  # EXIF and XMP, in the first byte of VP8X.


class _CutError(ValueError):
    """File that ends before its image does."""


def original_bytes(
    encoded: bytes | None, pixels: Pixels | Strips, *, keep_metadata: bool = False, name: str = "the image"
) -> tuple[bytes, str]:
    """Bytes to seal for one original, and their file ending without its dot.

    A JPEG, PNG or WebP file stays the file that it is: its coded pixels are copied and not decoded. The parts that
    decoders need stay (JFIF and Adobe marks, tables, palette, transparency, colour profile, and the orientation of a
    JPEG). EXIF, XMP, comments, thumbnails, further pictures and bytes after the end go. PNG and WebP files that are
    turned by their metadata or hold an animation, files of other formats, and arrays become lossless WebP of their
    upright pixels, or PNG where WebP cannot hold them.

    Args:
        encoded: The image as its source holds it, see :meth:`uge.data.ImageSet.encoded`; None for an array.
        pixels: The same image decoded, upright, uint8, height × width × channels.
        keep_metadata: Keep every byte of ``encoded``.
        name: Name of the image in an error.

    Raises:
        DataError: The file is cut off, or is no well-formed JPEG, PNG or WebP although it begins like one.

    Example:
        >>> import numpy as np
        >>> data, kind = original_bytes(None, np.zeros((8, 8, 3), np.uint8))
        >>> kind, data[:4]
        ('webp', b'RIFF')
    """
    if encoded is not None:
        kind = ending(encoded)
        if keep_metadata:
            return encoded, kind
        try:
            kept = _WALKS[kind](encoded) if kind in _WALKS else None
        except (_CutError, struct.error):
            raise DataError(
                f"cannot seal {name}: its {kind.upper()} file is cut off or damaged; replace or remove it"
            ) from None
        if kept is not None:
            return kept, kind
    codec = storable(pixels, "webp")
    return encode(pixels, codec, quick=True)[:], codec


def ending(encoded: bytes) -> str:
    """Ending of a file name, without its dot, by an image's first bytes; ``"bin"`` for no known format."""
    return next((kind for magic, kind in _MAGIC.items() if encoded.startswith(magic)), "bin")


def _jpeg(data: bytes) -> bytes:
    """JPEG file of the same coded pixels, tables, marks, colour profile and orientation."""
    parts = [_JPEG_MAGIC]
    turned = 0  # Place of the orientation among the parts.
    at = 2
    scanning = False
    while True:
        match = _MARKER.search(data, at)
        if match is None:
            raise _CutError
        if scanning:
            parts.append(data[at : match.start()])
            scanning = False
        marker = data[match.end() - 1]
        at = match.end()
        if marker == _END:
            break
        if marker in _BARE:
            continue
        (length,) = struct.unpack_from(">H", data, at)
        content = data[at + 2 : at + length]
        at += length
        if length < 2 or at > len(data):
            raise _CutError
        scanning = marker == _SCAN
        if marker == _EXIF and not turned:
            turned = len(parts)
        kept = _segment(marker, content)
        if kept is not None:
            parts.append(struct.pack(">BBH", 0xFF, marker, len(kept) + 2) + kept)
    orientation = _orientation(data) if turned else 1
    if orientation != 1:
        parts.insert(turned, _exif(orientation))
    return b"".join([*parts, bytes([0xFF, _END])])


def _segment(marker: int, content: bytes) -> bytes | None:
    """Content of a segment that stays; None for one that goes."""
    if marker in _TABLES or (marker == _ICC and content.startswith(b"ICC_PROFILE\0")):
        return content
    if marker == _JFIF and content.startswith(b"JFIF\0") and len(content) >= 14:
        return content[:12] + b"\0\0"  # The size of a thumbnail, and the thumbnail.
    if marker == _ADOBE and content.startswith(b"Adobe") and len(content) >= 12:
        return content[:12]
    return None


def _exif(orientation: int) -> bytes:
    """Segment of EXIF that holds an orientation (2 to 8) alone."""
    entry = struct.pack(">HHIHH", ExifTags.Base.Orientation, 3, 1, orientation, 0)
    content = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)
    return struct.pack(">BBH", 0xFF, _EXIF, len(content) + 2) + content


def _png(data: bytes) -> bytes | None:
    """PNG file of the chunks that make its pixels; None where its pixels must be written anew."""
    parts = [PNG_MAGIC]
    kinds = set()
    at = len(PNG_MAGIC)
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise _CutError
        kinds.add(kind)
        if kind == b"IEND":
            break
        if kind in _PNG_KEPT:
            parts.append(data[at:end])
        at = end
    unknown = any(kind[:1].isupper() for kind in kinds - _PNG_KEPT - {b"IEND"})
    if unknown or kinds & _PNG_MOVING or (kinds & _PNG_TURNING and _orientation(data) != 1):
        return None
    return b"".join([*parts, _PNG_END])


def _webp(data: bytes) -> bytes | None:
    """WebP file of the chunks that make its pixels; None where its pixels must be written anew."""
    parts = []
    kinds = set()
    (size,) = struct.unpack_from("<I", data, 4)
    if size + 8 > len(data):
        raise _CutError
    at = 12
    while at < size + 8:
        kind, length = struct.unpack_from("<4sI", data, at)
        content = data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
        if len(content) < length or at > size + 9:  # Some programs leave the last byte of padding out.
            raise _CutError
        kinds.add(kind)
        if kind == b"VP8X":
            content = bytes([content[0] & ~_WEBP_FLAGS]) + content[1:]
        if kind in _WEBP_KEPT:
            parts += [struct.pack("<4sI", kind, length), content, bytes(length % 2)]
    if not kinds & {b"VP8 ", b"VP8L"} and not kinds & _WEBP_MOVING:
        raise _CutError
    if kinds & _WEBP_MOVING or (kinds & _WEBP_TURNING and _orientation(data) != 1):
        return None
    body = b"".join(parts)
    return struct.pack("<4sI4s", b"RIFF", len(body) + 4, b"WEBP") + body


def _orientation(data: bytes) -> int:
    """Orientation by EXIF or XMP as decoding applies it, 1 (upright) to 8."""
    with contextlib.suppress(Exception):  # Damaged EXIF turns nothing.
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            found = image.getexif().get(ExifTags.Base.Orientation, 1)
        return found if found in range(2, 9) else 1
    return 1


_WALKS = {"jpg": _jpeg, "png": _png, "webp": _webp}
