"""Batched geometric augmentation from an explicit generator; differentiable for float pixels."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from uge.errors import UnknownNameError

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


def crop_flip(x: Tensor, generator: torch.Generator, *, crop: bool = True, flip: bool = True) -> Tensor:
    """Random crop with zero padding of size/8 (4 at 32 px), and random horizontal flip, in one gather.

    Args:
        x: Pixels of any type, batch × channels × size × size.
        generator: Source of offsets and flips, on the CPU.
        crop: Whether to shift.
        flip: Whether to flip half of the images.

    Returns:
        Pixels of the same shape and type, in channels-last memory.
    """
    batch, channels, height, width = x.shape
    pad_y, pad_x = (height // 8, width // 8) if crop else (0, 0)
    rows = torch.arange(height) + torch.randint(0, 2 * pad_y + 1, (batch, 1), generator=generator)
    columns = torch.arange(width).expand(batch, width)
    if flip:
        flipped = torch.rand((batch, 1), generator=generator) < 0.5
        columns = torch.where(flipped, columns.flip(1), columns)
    columns = columns + torch.randint(0, 2 * pad_x + 1, (batch, 1), generator=generator)
    padded = F.pad(x, (pad_x, pad_x, pad_y, pad_y)) if crop else x
    rows = rows + torch.arange(batch)[:, None] * (height + 2 * pad_y)
    index = rows[:, :, None] * (width + 2 * pad_x) + columns[:, None, :]
    # Whole pixels are picked: half the time of picking values, and channels come last, as convolutions want them.
    pixels = padded.permute(0, 2, 3, 1).reshape(-1, channels)
    picked = pixels.index_select(0, index.flatten().to(x.device))
    return picked.view(batch, height, width, channels).permute(0, 3, 1, 2)


def rotate_flip(x: Tensor, generator: torch.Generator, *, degrees: float = 20.0) -> Tensor:
    """Random rotation by up to ``degrees`` (bilinear, zeros outside) and random horizontal flip.

    Args:
        x: Pixels, batch × channels × size × size; uint8 comes back rounded to uint8.
        generator: Source of angles and flips, on the CPU.
        degrees: Largest angle either way.
    """
    batch = len(x)
    angle = (torch.rand(batch, generator=generator) * 2 - 1) * math.radians(degrees)
    mirror = torch.where(torch.rand(batch, generator=generator) < 0.5, -1.0, 1.0)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(batch)
    matrix = torch.stack([torch.stack([cos * mirror, -sin, zero], 1), torch.stack([sin * mirror, cos, zero], 1)], 1)
    grid = F.affine_grid(matrix.to(x.device), list(x.shape), align_corners=False)
    turned = F.grid_sample(x.float(), grid, padding_mode="zeros", align_corners=False)
    return turned.round().to(torch.uint8) if x.dtype == torch.uint8 else turned.to(x.dtype)


def cutout(x: Tensor, generator: torch.Generator, *, side: float = 0.5) -> Tensor:
    """A gray square at a random place of every image, cut at the border (DeVries and Taylor, 2017).

    Args:
        x: Float pixels in [0, 1], batch × channels × height × width.
        generator: Source of places, on the CPU.
        side: Of the square, as a part of the image's side (16 of 32 pixels).
    """
    inside = []
    for length in x.shape[2:]:
        centre = torch.randint(0, length, (len(x), 1), generator=generator).to(x.device)
        place, half = torch.arange(length, device=x.device)[None], round(length * side / 2)
        inside.append((place >= centre - half) & (place < centre + half))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return x.masked_fill(hole, 0.5)


def _none(x: Tensor, generator: torch.Generator) -> Tensor:
    return x


def _crop(x: Tensor, generator: torch.Generator) -> Tensor:
    return crop_flip(x, generator, flip=False)


def _flip(x: Tensor, generator: torch.Generator) -> Tensor:
    return crop_flip(x, generator, crop=False)


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": _none,
    "crop": _crop,
    "flip": _flip,
    "crop-flip": crop_flip,
    "rotate-flip": rotate_flip,
}
"""What a recipe may name: CIFAR recipes use ``crop-flip``, TinyImageNet ``rotate-flip``."""


def augmentation(name: str) -> Augmentation:
    """Look an augmentation up by name.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if name not in AUGMENTATIONS:
        raise UnknownNameError("augmentation", name, AUGMENTATIONS)
    return AUGMENTATIONS[name]
