"""One picture before and after, for the page: what a protection of some strength looks like."""

import base64
import functools
import io
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError

from uge.data.images import Pixels
from uge.errors import DataError
from uge.methods.apply import load_generator
from uge.methods.uge.generator import Generator
from uge.publishing.quality import compare

MADE_FOR = 0.04
"""ρ of the generator that comes with the package (``benchmarks/visible.py`` made it)."""
TRAINED = 64
"""Side in pixels at which the change is made."""
LARGEST = 1024
"""Side in pixels to which larger pictures are scaled for the page."""


@functools.cache
def _generator() -> Generator:
    path = Path(str(resources.files("uge.web") / "visible.safetensors"))
    return load_generator(path)


def look(data: bytes, strength: float) -> dict[str, Any]:
    """A picture before and after, with the figures of their difference.

    One picture has no labelled set to learn from: the change is that of a small generator. It shows what is visible,
    and says nothing of what a network learns.

    Args:
        data: Bytes of an image file.
        strength: ρ from 0 to 0.1.

    Returns:
        ``before`` and ``after`` as data addresses, ``width``, ``height``, ``psnr``, ``ssim``, ``levels``.

    Raises:
        DataError: It is no image that can be read.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError("this file is no picture that can be read; choose a JPEG, PNG or WebP file") from error
    picture.thumbnail((LARGEST, LARGEST))
    before = np.asarray(picture)
    after = changed(before, strength)
    figures = compare(before, after, with_ssim=True)
    return {
        "before": _address(before),
        "after": _address(after),
        "width": picture.width,
        "height": picture.height,
        "levels": int(figures.levels),
        "psnr": None if not figures.squared else round(figures.psnr, 1),
        "ssim": None if figures.ssim is None else round(figures.ssim, 3),
    }


def changed(pixels: Pixels, strength: float) -> Pixels:
    """Pixels with the generator's change, as strong as asked for.

    As for a folder of photographs, the change is made at the size at which networks train, and scaled to the picture's.
    """
    height, width = pixels.shape[:2]
    factor = min(1.0, TRAINED / min(height, width))
    small = Image.fromarray(pixels).resize((max(1, round(factor * width)), max(1, round(factor * height))))
    (levels,) = _generator().levels([np.asarray(small)], [0])
    change = torch.from_numpy(levels.astype(np.float32)).permute(2, 0, 1)[None]
    full = F.interpolate(change, (height, width), mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()
    after: Pixels = np.clip(pixels + np.rint(full * (strength / MADE_FOR)), 0, 255).astype(np.uint8)
    return after


def _address(pixels: Pixels) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", compress_level=3)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
