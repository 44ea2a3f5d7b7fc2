"""Pixels of one image: decoded with every channel kept, and brought to one size and number of channels for networks.

A published image must look like its original, so only what a network sees is resized or loses alpha.
"""

import contextlib
import functools
import hashlib
import logging
from pathlib import Path, PurePath

import numpy as np
import pyarrow as pa
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, _imaging

from uge.data.colour import to_srgb
from uge.data.depth import note_scaled
from uge.data.images import Pixels, Strips, is_large
from uge.errors import DataError, UsageError
from uge.files import Region, reader_of
from uge.heap import given_back

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = frozenset(
    [".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"]
)

# Pillow would also try formats that start other programs (EPS); only these are ever opened.
Image.init()  # Image.open takes names of registered formats only.
_CODECS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")

# Modes that NumPy sees as uint8 channels already; every other 8-bit mode becomes RGB or RGBA.
_PLAIN = {"L", "LA", "RGB", "RGBA"}
_VIEWED = {"L": 1, "RGB": 3, "RGBA": 4}
_CONVERT = {"1": "L", "La": "LA", "RGBa": "RGBA", "PA": "RGBA"}
# Modes with colours weighed by alpha, in which Pillow scales.
_WEIGHING = {"LA": "La", "RGBA": "RGBa"}
_WEIGHED = {"La": "LA", "RGBa": "RGBA"}
_WIDE = {"I", "I;16", "I;16L", "I;16B", "I;16N", "F"}

# ITU-R 601 luminance in 16-bit fixed point, as Pillow computes it.
_LUMINANCE = np.array([19595, 38470, 7471], dtype=np.uint32)


def is_image_name(name: str) -> bool:
    """True for a file name that ends like an image; hidden files are none."""
    return not name.startswith(".") and PurePath(name).suffix.lower() in IMAGE_EXTENSIONS


def public_id(id: str) -> str:
    """Sample id under which an image is published: that of a file, which is its name, becomes a digest.

    Other ids stay. The digest is the first half of the sha256, so that somebody who has the originals finds them again;
    a name that somebody guesses can be confirmed by it.

    Example:
        >>> public_id("train/00000007")
        'train/00000007'
        >>> len(public_id("cat/grandmother.jpg"))
        32
    """
    if PurePath(id).suffix.lower() not in IMAGE_EXTENSIONS:
        return id
    return hashlib.sha256(id.encode()).hexdigest()[:32]


def added_id(id: str, addition: int) -> str:
    """Sample id of an image that is added to a published folder, which no image has that was published before.

    Args:
        id: Its id in the source.
        addition: Number of the addition; ids of the first publication, 0, stay.

    Example:
        >>> added_id("train/00000007", 2)
        'added-2/train/00000007'
    """
    return f"added-{addition}/{id}" if addition else id


def decode(source: bytes | Region | Path, name: str) -> Pixels:
    """Pixels of one encoded image; of an animation or a file of several pages the first one, with a warning.

    The EXIF orientation is applied; colours with a profile become sRGB, with a warning; a palette becomes RGB, or RGBA
    when it has transparency; alpha is kept; 16-bit values are scaled to 8 bits with a warning; CMYK becomes RGB; gray
    stays one channel.

    Args:
        source: Encoded bytes in memory or in a file, or the file.
        name: Name of the image in an error.

    Returns:
        uint8, height × width × channels (1 gray, 2 gray+alpha, 3 RGB, 4 RGBA).

    Raises:
        DataError: The image is damaged, cut off, of no known format, or has more pixels than
            ``PIL.Image.MAX_IMAGE_PIXELS`` (a decompression bomb).
    """
    if isinstance(source, Path) and source.exists() and not source.is_file():
        raise DataError(f"cannot read image {name}: it is no regular file; replace or remove it")
    limit = Image.MAX_IMAGE_PIXELS
    try:
        with Image.open(source if isinstance(source, Path) else reader_of(source), formats=_CODECS) as image:
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError  # Pillow itself only warns up to twice the limit.
            # Pillow drops the low byte of 16-bit colour while loading; only the raw mode of a tile still says so.
            raw_modes = [str(tile[3]) for tile in getattr(image, "tile", []) if image.format in {"PNG", "TIFF"}]
            deep = image.mode in _WIDE or any(";16" in mode for mode in raw_modes)
            with contextlib.suppress(Exception):  # Damage in a later page must not lose the first.
                if image.format in {"TIFF", "GIF", "WEBP", "PNG"} and getattr(image, "is_animated", False):
                    _warn_once(f"some {image.format} files hold several images; the first of each is used")
            pixels = _large_pixels(image)
            if pixels is None:
                image.load()
                with contextlib.suppress(Exception):  # Damaged EXIF must not lose an image that is fine.
                    ImageOps.exif_transpose(image, in_place=True)
                pixels = _pixels(to_srgb(image), name)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(
            f"image {name} has more than {limit} pixels (a decompression bomb?); shrink or remove it, "
            "or allow more by --max-image-pixels"
        ) from None
    except UnidentifiedImageError:
        raise DataError(
            f"cannot decode image {name}: it is no PNG, JPEG, WebP, BMP, TIFF, GIF or PPM image; replace or remove it"
        ) from None
    except FileNotFoundError:
        raise DataError(f"cannot read image {name}: the file is gone; put it back and run again") from None
    except Exception as error:  # A damaged file makes the decoders raise nearly anything.
        raise DataError(f"cannot decode image {name}: {error}; replace or remove it") from error
    if deep:
        note_scaled()
        logger.debug("%s has more than 8 bits a channel", name)
        _warn_once("some images have more than 8 bits a channel; they are scaled to 8 bits and published so")
    return pixels


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _large_pixels(image: Image.Image) -> Pixels | None:
    """Pixels of a large image as a view of Pillow's own memory; None for images that take the common way.

    The common way would need twice the memory, and three times to turn an image upright.
    """
    share = getattr(_imaging, "set_use_block_allocator", None)  # Pillow 11.2 has it.
    viewed = image.mode in _VIEWED and "transparency" not in image.info and is_large((image.height, image.width))
    if share is None or not viewed:
        return None
    share(1)  # One block of memory for an image, which arrow can share.
    try:
        with given_back():
            image.load()
            colours = to_srgb(image)
    finally:
        share(0)
    pixels = _view(colours)
    orientation = 1
    with contextlib.suppress(Exception):
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def _view(image: Image.Image) -> Pixels:
    """Pixels of an image that lies in one block, as they are there; a copy of another one."""
    try:
        values = pa.array(image)
    except ValueError:  # Another thread changed the allocator meanwhile.
        return np.asarray(image).reshape(image.height, image.width, -1)
    if pa.types.is_fixed_size_list(values.type):
        values = values.flatten()
    # Pillow gives RGB a fourth byte.
    pixels: Pixels = values.to_numpy().reshape(image.height, image.width, -1)[..., : _VIEWED[image.mode]]
    return pixels


def _pixels(image: Image.Image, name: str) -> Pixels:
    if image.mode in _WIDE:
        return _narrow(np.asarray(image), name)[:, :, None]
    mode = _CONVERT.get(image.mode, image.mode)
    if "transparency" in image.info and mode not in {"LA", "RGBA"}:
        mode = "LA" if mode == "L" else "RGBA"
    elif mode not in _PLAIN:
        mode = "RGBA" if image.has_transparency_data else "RGB"
    pixels = np.array(image if mode == image.mode else image.convert(mode))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _narrow(values: np.ndarray, name: str) -> Pixels:
    low = values.min()
    high = values.max()
    top = 1.0 if values.dtype.kind == "f" else 65535.0
    if not (low >= 0 and high <= top):  # False for NaN, too.
        raise DataError(f"image {name} has values from {low} to {high}, expected 0 to {top:g}; convert it to 8 bits")
    return np.rint(values.astype(np.float64) * (255 / top)).astype(np.uint8)


def resize(pixels: Pixels, size: int) -> Pixels:
    """Centre square of an image, scaled to ``size`` by antialiased bilinear interpolation.

    The same as scaling the shorter side to ``size`` and cropping the centre. Alpha is weighed in,
    so that hidden colours do not bleed.

    Args:
        pixels: uint8, height × width × channels (1, 2, 3 or 4).
        size: Side length of the result in pixels.

    Returns:
        uint8, size × size × channels; the same array if it has that size already.

    Raises:
        UsageError: ``size`` is below 1.
    """
    if size < 1:
        raise UsageError(f"the image size must be at least 1, got {size}")
    height, width, channels = pixels.shape
    if height == width == size:
        return pixels
    side = min(height, width)
    left = (width - side) // 2
    top = (height - side) // 2
    box = (left, top, left + side, top + side)
    if is_large(pixels.shape):
        image = _narrowed(pixels, size, box)
        box = (0, top, size, top + side)
    else:
        image = _as_image(pixels)
    small = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    if small.mode in _WEIGHED:
        small = small.convert(_WEIGHED[small.mode])
    return np.array(small).reshape(size, size, channels)


def _narrowed(pixels: Pixels, size: int, box: tuple[int, int, int, int]) -> Image.Image:
    """Image scaled across only, as Pillow does it; strip by strip, since Pillow copies all that it scales."""
    column = None
    top = 0
    for strip in Strips.of(pixels):
        image = _as_image(strip)
        image = image.convert(_WEIGHING.get(image.mode, image.mode))
        column = column or Image.new(image.mode, (size, len(pixels)))
        part = (box[0], 0, box[2], len(strip))
        column.paste(image.resize((size, len(strip)), Image.Resampling.BILINEAR, box=part), (0, top))
        top += len(strip)
    assert column is not None
    return column


def _as_image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def to_channels(pixels: Pixels, channels: int) -> Pixels:
    """Gray or RGB pixels without alpha, for a network.

    Alpha is dropped, as ``Image.convert("RGB")`` does: training code elsewhere sees the stored colours,
    so these are what must be measured. Gray is repeated; RGB becomes gray by its luminance (ITU-R 601).

    Args:
        pixels: uint8, (...) × channels (1, 2, 3 or 4).
        channels: 1 or 3.

    Returns:
        uint8, (...) × ``channels``.

    Raises:
        UsageError: ``channels`` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise UsageError(f"channels must be 1 (gray) or 3 (RGB), got {channels}")
    colour = pixels[..., : 1 if pixels.shape[-1] <= 2 else 3]
    if colour.shape[-1] == channels:
        return colour
    if channels == 3:
        return np.repeat(colour, 3, axis=-1)
    return ((colour @ _LUMINANCE + 0x8000) >> 16).astype(np.uint8)[..., None]
