"""One size and one number of channels for networks that need it; published images are never resized."""

from __future__ import annotations

import numpy as np
from PIL import Image

from uge.data.images import Pixels
from uge.errors import UsageError

# ITU-R 601 luminance in 16-bit fixed point, as Pillow computes it.
_LUMINANCE = np.array([19595, 38470, 7471], dtype=np.uint32)


def resize(pixels: Pixels, size: int) -> Pixels:
    """The centre square of an image, scaled to ``size`` by antialiased bilinear interpolation.

    The same as scaling the shorter side to ``size`` and cropping the centre. Alpha is weighed in,
    so that hidden colours do not bleed.

    Args:
        pixels: uint8, height × width × channels (1, 2, 3 or 4).
        size: Side length of the result.

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
    left, top = (width - side) // 2, (height - side) // 2
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    box = (left, top, left + side, top + side)
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR, box=box)).reshape(size, size, channels)


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
