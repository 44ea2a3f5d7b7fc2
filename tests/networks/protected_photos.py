"""Photographs of the embedded set, and their form protected with a wave key."""

import numpy as np
import torch
from torch import Tensor

from uge.budget import Budget
from uge.data import load_images
from uge.methods.keyed.wave_code import WaveCode
from uge.networks import WaveKey, weights_hash
from uge.runtime import stream


def photos(key: WaveKey, count: int = 100, *, gray: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Clean and protected images (count, 3, 32, 32) in [0, 1], and which pattern each protected one has.

    Labels are the row numbers modulo 10; where ``gray``, there is one channel.
    """
    images = load_images("photos").take(count)
    code = WaveCode(key, Budget(int(key.levels) / 255), [str(number) for number in range(len(key.waves))])
    pixels = [images.read(row) for row in range(count)]
    if gray:
        pixels = [image.mean(2, keepdims=True).round().astype(np.uint8) for image in pixels]
    labels = [int(label) for label in images.labels]
    levels = code.levels(pixels, labels, images.ids)
    stored = [code.budget.add(image, own) for image, own in zip(pixels, levels, strict=True)]
    clean, protected = (torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2) / 255 for part in (pixels, stored))
    secret = weights_hash(key)
    drawn = [key.random_number(label, stream(0, secret, name)) for label, name in zip(labels, images.ids, strict=True)]
    return clean, protected, torch.tensor(drawn)


def clipped(x: Tensor, key: WaveKey) -> Tensor:
    """What a key is to make of originals: images (B, channels, H, W) without the ends of the range of pixels."""
    levels = int(key.levels)
    return (255 * x).round().clamp(levels, 255 - levels) / 255
