"""Random geometric augmentation of batches, from an explicit generator; differentiable for float pixels."""

import functools
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
        generator: Generator of offsets and flips, on the CPU.
        crop: Shift the images.
        flip: Flip half of the images.

    Returns:
        Pixels of the same shape and type, in channels-last memory.
    """
    batch, _, height, width = x.shape
    pad_y = height // 8 if crop else 0
    pad_x = width // 8 if crop else 0
    down = torch.randint(0, 2 * pad_y + 1, (batch,), generator=generator)
    flipped = torch.rand(batch, generator=generator) < 0.5 if flip else torch.zeros(batch, dtype=torch.bool)
    across = torch.randint(0, 2 * pad_x + 1, (batch,), generator=generator)
    return moved(x, down - pad_y, across - pad_x, flipped)


def moved(x: Tensor, down: Tensor, across: Tensor, flipped: Tensor) -> Tensor:
    """Windows of images, of their size, with zeros beyond their borders, in one gather.

    Args:
        x: Pixels of any type, batch × channels × height × width.
        down: int64, batch: first row of each window, within a height of the image.
        across: int64, batch: first column of each window before flipping, within a width of the image.
        flipped: bool, batch: windows whose columns come in reverse order.

    Returns:
        Pixels of the same shape and type, in channels-last memory; differentiable.
    """
    batch, channels, height, width = x.shape
    pad_y = int(down.abs().max())
    pad_x = int(across.abs().max())
    columns = torch.arange(width).expand(batch, width)
    columns = torch.where(flipped[:, None], columns.flip(1), columns) + across[:, None] + pad_x
    padded = F.pad(x, (pad_x, pad_x, pad_y, pad_y)) if pad_y or pad_x else x
    rows = torch.arange(height) + (down + pad_y + torch.arange(batch) * (height + 2 * pad_y))[:, None]
    index = rows[:, :, None] * (width + 2 * pad_x) + columns[:, None, :]
    # Whole pixels are picked: half the time of picking values, and channels come last, as convolutions want them.
    pixels = padded.permute(0, 2, 3, 1).reshape(-1, channels)
    picked = pixels.index_select(0, index.flatten().to(x.device))
    return picked.view(batch, height, width, channels).permute(0, 3, 1, 2)


def rotate_flip(x: Tensor, generator: torch.Generator, *, degrees: float = 20.0) -> Tensor:
    """Random rotation by up to ``degrees`` (bilinear, zeros outside) and random horizontal flip.

    Args:
        x: Pixels, batch × channels × size × size; uint8 comes back rounded to uint8.
        generator: Generator of angles and flips, on the CPU.
        degrees: Largest angle either way.

    Returns:
        Pixels of the same shape and type.
    """
    batch = len(x)
    angle = (torch.rand(batch, generator=generator) * 2 - 1) * math.radians(degrees)
    mirror = torch.where(torch.rand(batch, generator=generator) < 0.5, -1.0, 1.0)
    cos = angle.cos()
    sin = angle.sin()
    matrix = torch.stack([cos * mirror, -sin, torch.zeros(batch), sin * mirror, cos, torch.zeros(batch)], 1)
    grid = F.affine_grid(matrix.view(batch, 2, 3).to(x.device), list(x.shape), align_corners=False)
    turned = F.grid_sample(x.float(), grid, padding_mode="zeros", align_corners=False)
    return turned.round().to(torch.uint8) if x.dtype == torch.uint8 else turned.to(x.dtype)


def cutout(x: Tensor, generator: torch.Generator, *, side: float = 0.5) -> Tensor:
    """Images with a gray square at a random place each, cut at the border (DeVries and Taylor, 2017).

    Args:
        x: Float pixels in [0, 1], batch × channels × height × width.
        generator: Generator of places, on the CPU.
        side: Side of the square as a part of the image's, in (0, 1]; 0.5 is 16 of 32 pixels.

    Returns:
        Pixels of the same shape.
    """
    inside = []
    for length in x.shape[2:]:
        centre = torch.randint(0, length, (len(x), 1), generator=generator).to(x.device)
        place = torch.arange(length, device=x.device)[None]
        half = round(length * side / 2)
        inside.append((place >= centre - half) & (place < centre + half))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return x.masked_fill(hole, 0.5)


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": lambda x, generator: x,
    "crop": functools.partial(crop_flip, flip=False),
    "flip": functools.partial(crop_flip, crop=False),
    "crop-flip": crop_flip,
    "rotate-flip": rotate_flip,
}
"""Augmentations that a recipe may name: CIFAR recipes use ``crop-flip``, TinyImageNet ``rotate-flip``."""


def augmentation(name: str) -> Augmentation:
    """Augmentation of a name.

    Raises:
        UnknownNameError: No augmentation has that name.
    """
    if name not in AUGMENTATIONS:
        raise UnknownNameError("augmentation", name, AUGMENTATIONS)
    return AUGMENTATIONS[name]
