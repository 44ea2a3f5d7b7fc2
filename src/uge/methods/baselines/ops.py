"""OPS: one pixel shortcut for every class.

Wu, Chen, Xie and Huang, ICLR 2023, arXiv 2205.12141.
"""

import itertools

import torch
from pydantic import Field
from torch import Tensor

from uge.data.loader import fetch
from uge.data.store import Records
from uge.methods.baselines.base import Baseline, Material, Settings


class OpsSettings(Settings):
    """Settings of OPS.

    Attributes:
        pixels: Pixels that are replaced in every image.
    """

    pixels: int = Field(1, ge=1)


def corner_colours(channels: int) -> Tensor:
    """Colours with every channel at 0 or 1; 2^channels × channels."""
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=channels)), dtype=torch.float64)


def scores(mean: Tensor, square: Tensor) -> Tensor:
    """Scores of all colours at every pixel of a class: E|c - x| / std|c - x|.

    Mean and deviation are over the class's images and over channels. The score is infinite where all images agree
    with one another and differ from the colour.

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


def choose(material: Material, pixels: int) -> Tensor:
    """Colours of the pixels to replace, per class; no two classes replace the same pixel by the same colour.

    Returns:
        classes × channels × height × width, 0 or 1; NaN for all pixels that stay.
    """
    store = material.store
    # Mean of x and of x² per class: each classes × channels × height × width, x in [0, 1].
    moments = torch.zeros(2, len(store.classes), *store.pixels.shape, dtype=torch.float64, device=store.device)
    for batch in (fetch(store, indices) for indices in material.chunks()):
        x = batch.x.double()
        moments.index_add_(1, batch.y, torch.stack([x, x * x]))
    moments /= torch.bincount(store.labels, minlength=len(store.classes)).clamp_min(1)[:, None, None, None]
    mean, square = moments
    colours = corner_colours(mean.shape[1]).to(mean.device)
    taken = torch.zeros(len(colours), *mean.shape[2:], dtype=torch.bool, device=mean.device)
    replacements = torch.full_like(mean, torch.nan)
    for class_mean, class_square, replacement in zip(mean, square, replacements, strict=True):
        score = scores(class_mean, class_square).masked_fill(taken, -1.0)
        for _ in range(min(pixels, score[0].numel())):
            colour, row, column = (int(i) for i in torch.unravel_index(score.flatten().argmax(), score.shape))
            replacement[:, row, column] = colours[colour]
            taken[colour, row, column] = True
            score[:, row, column] = -1.0  # Another colour for the same pixel would undo the first.
    return replacements


def _pixel_shortcut(material: Material, settings: OpsSettings) -> Records:
    replacements = choose(material, settings.pixels).float()
    return material.filled(lambda indices, x, labels: (replacements[labels] - x).nan_to_num())


OPS = Baseline(
    _pixel_shortcut,
    norm="none",
    rho=1.0,
    scope="class",
    about=(
        "OPS: in all images of a class one pixel is replaced by the colour from which it differs most consistently "
        "(Wu, Chen, Xie and Huang, ICLR 2023)."
    ),
    settings=OpsSettings,
)
