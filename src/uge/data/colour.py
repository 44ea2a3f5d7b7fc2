"""Colours as seen: pixels with an embedded ICC profile are converted to sRGB, which readers of a copy assume."""

import functools
import io
import logging

import numpy as np
from PIL import Image, ImageCms

from uge.data.images import Pixels

logger = logging.getLogger(__name__)

_SAME = 2  # Levels by which the conversion of an sRGB profile rounds.
_GRID = np.array(np.meshgrid(*[np.arange(0, 256, 15)] * 3), np.uint8).reshape(3, -1).T[None]
_RAMP = np.arange(256, dtype=np.uint8)


def profile_of(image: Image.Image) -> bytes:
    """Embedded ICC profile of an image; empty where it has none."""
    profile = image.info.get("icc_profile")
    return profile if isinstance(profile, bytes) else b""


def from_ink(image: Image.Image) -> Image.Image:
    """RGB image of a CMYK image with a profile of its inks; any other image as it is."""
    transform = _transform(profile_of(image), "CMYK") if image.mode == "CMYK" else None
    if transform is None:
        return image
    _note_once("some images have a profile of inks; they are converted to sRGB and published so")
    return ImageCms.applyTransform(image, transform) or image


def to_srgb(pixels: Pixels, profile: bytes) -> Pixels:
    """Pixels in sRGB; the same array for an sRGB profile, none, or one that is damaged or of other channels.

    Args:
        pixels: uint8, height × width × channels (1 gray, 2 gray+alpha, 3 RGB, 4 RGBA); alpha stays.
        profile: ICC profile of the colours, empty for none.
    """
    if not profile:
        return pixels
    gray = pixels.shape[2] <= 2
    curve = _gray_curve(profile) if gray else None
    transform = None if gray else _colour_transform(profile)
    if curve is None and transform is None:
        return pixels
    _note_once("some images have a colour profile other than sRGB; they are converted to sRGB and published so")
    converted = pixels.copy()
    if curve is not None:
        converted[:, :, 0] = curve[pixels[:, :, 0]]
    elif transform is not None:
        converted[:, :, :3] = _applied(transform, pixels[:, :, :3])
    return converted


def _applied(transform: ImageCms.ImageCmsTransform, colours: Pixels) -> Pixels:
    return np.asarray(ImageCms.applyTransform(Image.fromarray(np.ascontiguousarray(colours)), transform))


@functools.lru_cache(16)
def _colour_transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    transform = _transform(profile, "RGB")
    if transform is None:
        return None
    moved = np.abs(_applied(transform, _GRID).astype(int) - _GRID).max()
    return transform if moved > _SAME else None


@functools.lru_cache(16)
def _gray_curve(profile: bytes) -> Pixels | None:
    transform = _transform(profile, "L")
    if transform is None:
        return None
    gray = ImageCms.applyTransform(Image.fromarray(_RAMP[None]), transform)
    curve = np.asarray(gray)[0, :, 1]  # Red, green and blue of a neutral gray are equal.
    return curve if np.abs(curve.astype(int) - _RAMP).max() > _SAME else None


def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Conversion from a profile to sRGB; None, with a warning, for profiles of other channels and damaged ones."""
    if not profile:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except Exception as error:  # Damage raises nearly anything, and must not lose an image that is fine.
        logger.debug("colour profile: %s", error)
        _note_once("some images have a colour profile that cannot be used; their colours are published as stored")
        return None


@functools.cache
def _note_once(message: str) -> None:
    logger.warning(message)
