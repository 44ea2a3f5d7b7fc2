"""Encoded images to uint8 pixels, every channel kept: what is published must look like what came in."""

from __future__ import annotations

import functools
import io
import logging
from pathlib import Path, PurePath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from uge.data.images import Pixels
from uge.errors import DataError

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = frozenset(
    [".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"]
)

# Pillow would also try formats that start other programs (EPS); only these are ever opened.
Image.init()  # a format named to Image.open must be registered already
_CODECS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")

# Modes that NumPy sees as uint8 channels already; every other 8-bit mode becomes RGB or RGBA.
_PLAIN = {"L", "LA", "RGB", "RGBA"}
_CONVERT = {"1": "L", "La": "LA", "RGBa": "RGBA", "PA": "RGBA"}
_WIDE = {"I", "I;16", "I;16L", "I;16B", "I;16N", "F"}


def is_image_name(name: str) -> bool:
    """Whether a file name ends like an image (hidden files do not count)."""
    return not name.startswith(".") and PurePath(name).suffix.lower() in IMAGE_EXTENSIONS


def decode(source: bytes | Path, name: str) -> Pixels:
    """Decode one image; of an animation the first frame.

    The EXIF orientation is applied; a palette becomes RGB, or RGBA when it has transparency; alpha
    is kept; 16-bit values are scaled to 8 bits with a warning; CMYK becomes RGB; gray stays one channel.

    Args:
        source: The encoded bytes, or the file.
        name: What to call the image in an error.

    Returns:
        uint8, height × width × channels (1 gray, 2 gray+alpha, 3 RGB, 4 RGBA).

    Raises:
        DataError: The image is damaged, cut off, of no known format, or has more pixels than
            ``PIL.Image.MAX_IMAGE_PIXELS`` (a decompression bomb).
    """
    if isinstance(source, Path) and source.exists() and not source.is_file():
        raise DataError(f"cannot read image {name}: it is no regular file; replace or remove it")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_CODECS) as image:
            _refuse_bomb(image, name)
            deep = _is_deep(image)
            image.load()
            pixels = _pixels(_upright(image), name)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _bomb(name) from None
    except UnidentifiedImageError:
        raise DataError(
            f"cannot decode image {name}: it is no PNG, JPEG, WebP, BMP, TIFF, GIF or PPM image; replace or remove it"
        ) from None
    except FileNotFoundError:
        raise DataError(f"cannot read image {name}: the file is gone; put it back and run again") from None
    except Exception as error:  # a damaged file makes the decoders raise nearly anything
        raise DataError(f"cannot decode image {name}: {error}; replace or remove it") from error
    if deep:
        _warn_deep(name)
    return pixels


def _refuse_bomb(image: Image.Image, name: str) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise _bomb(name)


def _bomb(name: str) -> DataError:
    return DataError(
        f"image {name} has more than {Image.MAX_IMAGE_PIXELS} pixels (a decompression bomb?); shrink or remove it"
    )


def _is_deep(image: Image.Image) -> bool:
    # Pillow drops the low byte of 16-bit colour while loading; only the raw mode still tells.
    tiles = getattr(image, "tile", [])
    return image.mode in _WIDE or (image.format in {"PNG", "TIFF"} and any(";16" in str(tile[3]) for tile in tiles))


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _warn_deep(name: str) -> None:
    logger.debug("%s has more than 8 bits a channel", name)
    _warn_once("some images have more than 8 bits a channel; they are scaled to 8 bits and published so")


def _upright(image: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # damaged EXIF must not lose an image that is fine
        logger.debug("EXIF ignored: %s", error)
    return image


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
    """16-bit integers 0..65535, or floats in [0, 1], to 8 bits by rounding."""
    low, high = values.min(), values.max()
    top = 1.0 if values.dtype.kind == "f" else 65535.0
    if not (low >= 0 and high <= top):  # false for NaN too
        raise DataError(f"image {name} has values from {low} to {high}, expected 0 to {top:g}; convert it to 8 bits")
    return np.rint(values.astype(np.float64) * (255 / top)).astype(np.uint8)
