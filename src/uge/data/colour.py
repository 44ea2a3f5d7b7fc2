"""Colours as seen: images with an embedded ICC profile are converted to sRGB, which readers of a copy assume."""

import functools
import io
import logging

import numpy as np
from PIL import Image, ImageCms

logger = logging.getLogger(__name__)

_SAME = 2  # Levels by which the conversion of an sRGB profile rounds.
_GRID = np.array(np.meshgrid(*[np.arange(0, 256, 15)] * 3), np.uint8).reshape(3, -1).T[None]
_RAMP = np.arange(256, dtype=np.uint8)[None]


def to_srgb(image: Image.Image) -> Image.Image:
    """Image of 8 bits in sRGB; the same image where its profile is sRGB, damaged or of other channels, or missing.

    Colours are changed in place, so that a large photograph needs no second copy; alpha stays.
    """
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not profile:
        return image
    if image.mode in {"P", "PA"} or (image.mode == "RGB" and "transparency" in image.info):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    converted = None
    if image.mode in {"RGB", "RGBA"}:
        transform = _colour_transform(profile, image.mode)
        if transform is not None:
            ImageCms.applyTransform(image, transform, inPlace=True)
            converted = image
    elif image.mode == "CMYK":
        transform = _transform(profile, "CMYK", "RGB")
        converted = None if transform is None else ImageCms.applyTransform(image, transform)
    elif image.mode in {"L", "LA"}:
        curve = _gray_curve(profile)
        if curve is not None:
            converted = image.point(curve + (list(range(256)) if image.mode == "LA" else []))
    if converted is None:
        return image
    _note_once("some images have a colour profile other than sRGB; they are converted to sRGB and published so")
    return converted


@functools.lru_cache(16)
def _colour_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    transform = _transform(profile, mode, mode)
    if transform is None:
        return None
    colours = Image.fromarray(_GRID).convert(mode)
    moved = np.asarray(ImageCms.applyTransform(colours, transform)).astype(int) - np.asarray(colours)
    return transform if np.abs(moved).max() > _SAME else None


@functools.lru_cache(16)
def _gray_curve(profile: bytes) -> list[int] | None:
    transform = _transform(profile, "L", "RGB")
    if transform is None:
        return None
    # Red, green and blue of a neutral gray are equal.
    curve = np.asarray(ImageCms.applyTransform(Image.fromarray(_RAMP), transform))[0, :, 1]
    return curve.tolist() if np.abs(curve.astype(int) - _RAMP).max() > _SAME else None


def _transform(profile: bytes, mode: str, to: str) -> ImageCms.ImageCmsTransform | None:
    """Conversion from a profile to sRGB; None, with a warning, for profiles of other channels and damaged ones."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, to)
    except Exception as error:  # Damage raises nearly anything, and must not lose an image that is fine.
        logger.debug("colour profile: %s", error)
        _note_once("some images have a colour profile that cannot be used; their colours are published as stored")
        return None


@functools.cache
def _note_once(message: str) -> None:
    logger.warning(message)
