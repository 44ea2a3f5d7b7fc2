"""OPS: one-pixel shortcut (Wu, Chen, Xie and Huang, ICLR 2023, arXiv 2205.12141)."""

from __future__ import annotations

import itertools

import torch
from pydantic import Field
from torch import Tensor

from uge.data.store import Records
from uge.methods.baselines.base import Baseline, Material, Settings, unit_batches


class OpsSettings(Settings):
    """OPS's settings.

    Attributes:
        pixels: Pixels that are replaced in every image.
    """

    pixels: int = Field(1, ge=1)


def _moments(material: Material) -> tuple[Tensor, Tensor]:
    """Mean of x and of x² per class: each classes × channels × height × width, float64, x in [0, 1]."""
    store = material.store
    sums = torch.zeros(2, len(store.classes), *store.pixels.shape, dtype=torch.float64, device=store.device)
    for _, _, x, labels in unit_batches(material):
        wide = x.double()
        sums[0].index_add_(0, labels, wide)
        sums[1].index_add_(0, labels, wide * wide)
    counts = torch.bincount(store.labels, minlength=len(store.classes)).clamp_min(1)[:, None, None, None]
    return sums[0] / counts, sums[1] / counts


def corner_colours(channels: int) -> Tensor:
    """The colours that are tried: every channel at 0 or 1; 2^channels × channels."""
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=channels)), dtype=torch.float64)


def scores(mean: Tensor, square: Tensor) -> Tensor:
    """How consistently each pixel of a class differs from each colour: E|c - x| / std|c - x|.

    Mean and deviation are over the class's images and over channels; where all images agree, and differ
    from the colour, the score is infinite.

    Args:
        mean: E[x] per channel, height and width, x in [0, 1].
        square: E[x²], same shape.

    Returns:
        colours × height × width.
    """
    colours = corner_colours(len(mean)).to(mean.device)[:, :, None, None]
    # For c = 0 the distance is x, for c = 1 it is 1 - x: both moments follow from those of x.
    distance = torch.where(colours == 0, mean, 1 - mean).mean(1)
    squared = torch.where(colours == 0, square, 1 - 2 * mean + square).mean(1)
    deviation = (squared - distance * distance).clamp_min(0).sqrt()
    return torch.where(distance < 1e-9, torch.zeros_like(distance), distance / deviation.clamp_min(1e-9))


def choose(material: Material, pixels: int) -> list[list[tuple[int, int, Tensor]]]:
    """Row, column and colour (channels, 0 or 1) of every pixel to replace, per class; no two classes share one."""
    mean, square = _moments(material)
    colours = corner_colours(mean.shape[1])
    taken, found = torch.zeros(len(colours), *mean.shape[2:], dtype=torch.bool, device=mean.device), []
    for of_class, of_square in zip(mean, square, strict=True):
        score = scores(of_class, of_square).masked_fill(taken, -1.0)
        chosen = list[tuple[int, int, Tensor]]()
        for _ in range(min(pixels, score[0].numel())):
            colour, row, column = (int(i) for i in torch.unravel_index(score.flatten().argmax(), score.shape))
            chosen.append((row, column, colours[colour]))
            taken[colour, row, column] = True
            score[:, row, column] = -1.0  # Another colour for the same pixel would undo the first.
        found.append(chosen)
    return found


def _make(material: Material) -> Records:
    settings = material.settings(OpsSettings)
    chosen, records = choose(material, settings.pixels), material.records()
    for indices, pixels, x, labels in unit_batches(material):
        wanted = torch.zeros_like(x)
        for label in torch.unique(labels).tolist():
            rows = (labels == label).nonzero()[:, 0]
            for row, column, colour in chosen[label]:
                wanted[rows, :, row, column] = colour.to(x) - x[rows, :, row, column]
        records.write(indices, material.stored(pixels, wanted))
    return records


OPS = Baseline(
    _make,
    norm="none",
    rho=1.0,
    scope="class",
    about=(
        "OPS: in all images of a class one pixel is replaced by the colour from which it differs most consistently "
        "(Wu, Chen, Xie and Huang, ICLR 2023)."
    ),
    settings=OpsSettings,
)
