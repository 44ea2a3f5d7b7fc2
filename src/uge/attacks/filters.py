"""Filters of images: uint8 pixels, batch × channels × size × size, to pixels of the same shape and type.

One channel (gray) and odd sizes work like any others.
"""

from __future__ import annotations

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from uge.attacks.policies import chromatic, luma, without_direction
from uge.networks import WaveKey


def stored(values: Tensor) -> Tensor:
    """Levels from 0 to 255 as pixels."""
    return values.round().clamp(0, 255).to(torch.uint8)


def grayscale(pixels: Tensor) -> Tensor:
    """Brightness (BT.601) in every channel."""
    return pixels if pixels.shape[1] == 1 else stored(luma(pixels.float())).expand_as(pixels)


def jpeg(pixels: Tensor, quality: int) -> Tensor:
    """JPEG of a quality from 1 to 95, with the usual halved resolution of colour."""
    found = []
    for image in pixels.permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, "JPEG", quality=quality)
        found.append(np.asarray(Image.open(file)).reshape(image.shape))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).to(pixels.device)


def posterise(pixels: Tensor, bits: int) -> Tensor:
    """The nearest of 2^bits evenly spaced levels."""
    steps = 2**bits - 1
    return stored((pixels.float() * steps / 255).round() * 255 / steps)


def gaussian_blur(pixels: Tensor, sigma: float) -> Tensor:
    """Convolution with a Gaussian of ``sigma`` pixels; borders are continued."""
    radius = math.ceil(3 * sigma)
    place = torch.arange(-radius, radius + 1, device=pixels.device)
    kernel = torch.exp(-(place**2) / (2 * sigma**2))
    kernel, channels = (kernel / kernel.sum()).expand(pixels.shape[1], 1, 1, -1), pixels.shape[1]
    x = F.pad(pixels.float(), (radius,) * 4, mode="replicate")
    return stored(F.conv2d(F.conv2d(x, kernel, groups=channels), kernel.transpose(2, 3), groups=channels))


def median_blur(pixels: Tensor, side: int = 3) -> Tensor:
    """Median of a square of ``side`` (odd) around every pixel; borders are continued."""
    x = F.pad(pixels.float(), (side // 2,) * 4, mode="replicate")
    return x.unfold(2, side, 1).unfold(3, side, 1).flatten(4).median(4).values.to(torch.uint8)


def sharpen(pixels: Tensor, sigma: float = 1.0) -> Tensor:
    """Unsharp mask: twice the image less its Gaussian blur."""
    return stored(2 * pixels.float() - gaussian_blur(pixels, sigma))


def low_pass(pixels: Tensor, part: float = 0.5) -> Tensor:
    """Only the lowest ``part`` of the frequencies along each side (cosine transform, which needs no padding)."""
    size = pixels.shape[-1]
    place = torch.arange(size, device=pixels.device)
    waves = torch.cos(
        math.pi / size * (place + 0.5) * torch.arange(math.ceil(size * part), device=place.device)[:, None]
    )
    waves = F.normalize(waves, dim=1)
    projection = waves.T @ waves
    return stored(projection @ pixels.float() @ projection)


def resize_down_up(pixels: Tensor, part: float = 0.5) -> Tensor:
    """Down to ``part`` of the size (area means) and up again (bicubic)."""
    size = pixels.shape[-1]
    small = F.interpolate(pixels.float(), size=max(1, round(size * part)), mode="area")
    return stored(F.interpolate(small, size=size, mode="bicubic", align_corners=False))


def colour_projection(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Every image without the same random direction of colour; brightness stays."""
    if pixels.shape[1] != 3:
        return pixels
    return stored(without_direction(pixels.float(), chromatic(1, generator).to(pixels.device)))


def other_key(pixels: Tensor, classes: int, seed: int) -> Tensor:
    """What a keyed network with a key of this seed sees: the right construction with the wrong secret."""
    key, x = WaveKey(classes, seed=seed, size=pixels.shape[-1]).to(pixels.device), pixels.float() / 255
    return stored(255 * key.restore(x, key.match(x)))
