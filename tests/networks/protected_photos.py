"""Photographs of the embedded set, and their form protected with a colour key."""

import numpy as np
import torch
from torch import Tensor

from uge.budget import Budget
from uge.data import load_images
from uge.networks import ColourKey, weights_hash
from uge.networks.colour_key import Alignment
from uge.protect.colour_code import ColourCode
from uge.runtime import stream


def photos(key: ColourKey, count: int = 100, *, margin: int = 0) -> tuple[Tensor, Tensor, Alignment]:
    """Clean and protected images (count, 3, 32, 32) in [0, 1], and how the pattern lies over the protected ones.

    Labels are the row numbers modulo 10. With a ``margin`` of the budget's 10 levels no pixel is so near to black or
    white that the perturbation has to leave its axis.
    """
    images, budget = load_images("photos").take(count), Budget()
    code, pixels = (
        ColourCode(key, budget, images.classes),
        [images.read(row).clip(margin, 255 - margin) for row in range(count)],
    )
    levels = code.levels(pixels, images.labels.tolist(), images.ids)
    stored = [budget.add(image, own) for image, own in zip(pixels, levels, strict=True)]
    clean, protected = (torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2) / 255 for part in (pixels, stored))
    shifts = torch.stack([key.random_shift(stream(0, weights_hash(key), name)) for name in images.ids])
    return clean, protected, Alignment(torch.zeros(count, dtype=torch.bool), shifts)
