"""Attack that trains on images behind another random filter in every step; test images stay."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from uge.attacks.augment import drawn, luma
from uge.attacks.base import Entry, stored
from uge.attacks.compression import jpeg
from uge.attacks.preprocess import gaussian_blur, posterise, resize_down_up
from uge.learning.objectives import augmented

#: uint8 pixels of some images and a number from 0 to 1 to pixels of the same shape and type.
Filter = Callable[[Tensor, float], Tensor]
GROUP = 16  # Images of a batch that go through one filter.
QUALITIES = (8, 50)
SIGMAS = (0.5, 1.2)
GAIN = 0.2  # Largest relative change of a channel.
SHIFT = 20.0  # Largest change of brightness in levels.


def _between(ends: tuple[float, float], place: float) -> float:
    return ends[0] + place * (ends[1] - ends[0])


def _gray(pixels: Tensor, place: float) -> Tensor:
    return pixels if pixels.shape[1] == 1 else stored(luma(pixels.float())).expand_as(pixels)


#: Filters by name with the share of the images that each one gets.
FILTERS: dict[str, tuple[float, Filter]] = {
    "none": (0.20, lambda pixels, place: pixels),
    "jpeg": (0.30, lambda pixels, place: jpeg(pixels, round(_between(QUALITIES, place)))),
    "gray": (0.12, _gray),
    "blur": (0.12, lambda pixels, place: gaussian_blur(pixels, _between(SIGMAS, place))),
    "half size": (0.10, lambda pixels, place: resize_down_up(pixels)),
    "bits": (0.06, lambda pixels, place: posterise(pixels, 2 if place < 0.5 else 3)),
}


def random_filters(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images behind random filters, one for every :data:`GROUP` images of the batch.

    Filters are those of :data:`FILTERS`; what their shares leave gets another gain in every channel and another
    brightness in every image.

    Args:
        x: Pixels in [0, 1], batch × channels × height × width.
        generator: Source of filters and their settings, on the CPU.

    Returns:
        Pixels of the same shape.
    """
    out = torch.empty_like(x)
    for rows in torch.split(torch.randperm(len(x), generator=generator), GROUP):
        which, place = torch.rand(2, generator=generator).tolist()
        part = x[rows.to(x.device)]
        for share, change in FILTERS.values():
            which -= share
            if which < 0:
                part = change(stored(255 * part), place).to(x.dtype) / 255
                break
        else:
            part = _toned(part, generator)
        out[rows.to(x.device)] = part
    return out


def _toned(x: Tensor, generator: torch.Generator) -> Tensor:
    gain = 1 + GAIN * (2 * torch.rand((len(x), x.shape[1], 1, 1), generator=generator) - 1)
    shift = SHIFT / 255 * (2 * torch.rand((len(x), 1, 1, 1), generator=generator) - 1)
    return (x * gain.to(x.device) + shift.to(x.device)).clamp(0, 1)


FILTERING: dict[str, Entry] = {
    "random-filters": Entry(
        drawn("random-filters", functools.partial(augmented, random_filters)),
        "augment",
        "trains behind another random filter in every step: JPEG, gray, blur, half size, few levels or other tones",
        cost=1.2,
        expected=25.0,
    )
}
