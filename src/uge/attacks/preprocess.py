"""Filters of images, and the attacks that change published and test images by one of them before training.

A filter takes uint8 pixels, batch × channels × size × size, to pixels of the same shape and type. One channel (gray)
and odd sizes work like any others.
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from uge.attacks.augment import chromatic, luma, without_direction
from uge.attacks.base import BOTH_TESTS, Context, Entry, Transform, changing, prepared, stored
from uge.attacks.compression import jpeg
from uge.attacks.notch import notch, running_median
from uge.attacks.waves import wave_terms, without_waves
from uge.networks import WaveKey
from uge.runtime import stream, stream_seed


def grayscale(pixels: Tensor) -> Tensor:
    """Brightness (BT.601) in every channel."""
    return pixels if pixels.shape[1] == 1 else stored(luma(pixels.float())).expand_as(pixels)


def posterise(pixels: Tensor, bits: int) -> Tensor:
    """The nearest of 2^bits evenly spaced levels."""
    steps = 2**bits - 1
    return stored((pixels.float() * steps / 255).round() * 255 / steps)


def gaussian_blur(pixels: Tensor, sigma: float) -> Tensor:
    """Convolution with a Gaussian of ``sigma`` pixels; borders are continued."""
    radius = math.ceil(3 * sigma)
    place = torch.arange(-radius, radius + 1, device=pixels.device)
    weights = torch.exp(-(place**2) / (2 * sigma**2))
    channels = pixels.shape[1]
    kernel = (weights / weights.sum()).expand(channels, 1, 1, -1)
    x = F.pad(pixels.float(), (radius,) * 4, mode="replicate")
    return stored(F.conv2d(F.conv2d(x, kernel, groups=channels), kernel.transpose(2, 3), groups=channels))


def median_blur(pixels: Tensor, side: int = 3) -> Tensor:
    """Median of a square of ``side`` (odd) around every pixel; borders are continued."""
    padded = F.pad(pixels.float(), (side // 2,) * 4, mode="replicate")
    if side != 3:
        return running_median(padded, side).to(torch.uint8)
    # Sorted columns: the median of nine is that of the largest low, the middle mid and the smallest high value.
    values = padded.to(torch.uint8)
    low, mid, high = _sorted(values[..., :-2, :], values[..., 1:-1, :], values[..., 2:, :])
    of_lows = torch.maximum(torch.maximum(low[..., :-2], low[..., 1:-1]), low[..., 2:])
    of_mids = _sorted(mid[..., :-2], mid[..., 1:-1], mid[..., 2:])[1]
    of_highs = torch.minimum(torch.minimum(high[..., :-2], high[..., 1:-1]), high[..., 2:])
    return _sorted(of_lows, of_mids, of_highs)[1]


def _sorted(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The smallest, middle and largest of three values, each by each."""
    small, large = torch.minimum(a, b), torch.maximum(a, b)
    return torch.minimum(small, c), torch.maximum(small, torch.minimum(large, c)), torch.maximum(large, c)


def sharpen(pixels: Tensor, sigma: float = 1.0) -> Tensor:
    """Unsharp mask: twice the image less its Gaussian blur."""
    return stored(2 * pixels.float() - gaussian_blur(pixels, sigma))


def low_pass(pixels: Tensor, part: float = 0.5) -> Tensor:
    """The lowest ``part`` of the frequencies along each side (cosine transform, which needs no padding)."""
    size = pixels.shape[-1]
    place = torch.arange(size, device=pixels.device)
    numbers = torch.arange(math.ceil(size * part), device=place.device)[:, None]
    waves = F.normalize(torch.cos(math.pi / size * (place + 0.5) * numbers), dim=1)
    projection = waves.T @ waves
    return stored(projection @ pixels.float() @ projection)


def resize_down_up(pixels: Tensor, part: float = 0.5) -> Tensor:
    """Down to ``part`` of the size (area means) and up again (bicubic)."""
    size = pixels.shape[-1]
    small = F.interpolate(pixels.float(), size=max(1, round(size * part)), mode="area")
    return stored(F.interpolate(small, size=size, mode="bicubic", align_corners=False))


def colour_projection(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Every image without the same random direction of colour; brightness stays."""
    directions = chromatic(1, generator).to(pixels.device)
    return stored(without_direction(pixels.float(), directions)) if pixels.shape[1] == 3 else pixels


def other_key(pixels: Tensor, classes: int, seed: int) -> Tensor:
    """Input of a network behind a wave key of this seed: the right construction with the wrong secret."""
    key = WaveKey(classes, seed=seed, size=pixels.shape[-1]).to(pixels.device)
    x = pixels.float() / 255
    return stored(255 * key.restore(x, key.match(x)))


def _fixed(transform: Callable[..., Tensor], **settings: float) -> Callable[[Context], Transform]:
    return lambda context: functools.partial(transform, **settings)


_ROWS: dict[str, tuple[Callable[[Context], Transform], str, float, float]] = {
    "grayscale": (_fixed(grayscale), "turns every image gray", 1.0, 40.0),
    **{  # Only quality 10 was in the public benchmark.
        f"jpeg{quality}": (_fixed(jpeg, quality=quality), f"compresses as JPEG of quality {quality}", 1.0, gain)
        for quality, gain in ((10, 60.0), (30, 40.0), (50, 30.0), (75, 20.0), (90, 10.0))
    },
    "bdr2": (_fixed(posterise, bits=2), "keeps 4 of 256 levels (bit-depth reduction)", 1.0, 30.0),
    "bdr4": (_fixed(posterise, bits=4), "keeps 16 of 256 levels (bit-depth reduction)", 1.0, 10.0),
    "gaussian-blur": (_fixed(gaussian_blur, sigma=1.0), "blurs with a Gaussian of one pixel", 1.0, 10.0),
    "median-blur": (_fixed(median_blur, side=3), "takes the median of 3 × 3 pixels", 1.0, 10.0),
    "sharpen": (_fixed(sharpen, sigma=1.0), "sharpens by an unsharp mask of one pixel", 1.0, 5.0),
    "colour-projection": (
        lambda context: lambda pixels: colour_projection(pixels, stream(context.seed, "colour-projection")),
        "drops one random direction of colour",
        1.0,
        15.0,
    ),
    "low-pass": (_fixed(low_pass, part=0.5), "keeps the lower half of the frequencies along each side", 1.0, 10.0),
    "notch": (notch, "drops the frequencies that stand out of the published images' own spectrum", 1.0, 10.0),
    "resize": (_fixed(resize_down_up, part=0.5), "scales to half the size and up again", 1.0, 15.0),
    "wave-removal": (
        lambda context: functools.partial(without_waves, terms=wave_terms(len(context.store.classes))),
        "searches every image, without the key, for the waves of a wave key and takes them out",
        1.2,
        60.0,
    ),
    "other-key": (
        lambda context: functools.partial(
            other_key, classes=len(context.store.classes), seed=stream_seed(context.seed, "wave-key")
        ),
        "trains behind a wave key of the hacker's own",
        1.1,
        10.0,
    ),
}
_REVISIONS = {"other-key": 1}  # Attacks that once were something else; the first form of this one had a key of colours.

#: Makers of each transform for one context, by the attack's name.
TRANSFORMS = {name: row[0] for name, row in _ROWS.items()}
PREPROCESSING: dict[str, Entry] = {
    name: prepared(
        changing(transform),
        "preprocess",
        about,
        cost=cost,
        expected=expected,
        revision=BOTH_TESTS + _REVISIONS.get(name, 0),
    )
    for name, (transform, about, cost, expected) in _ROWS.items()
}
