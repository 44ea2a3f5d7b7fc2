"""CUDA: one random blur per class (Sadasivan, Soltanolkotabi and Feizi, CVPR 2023, arXiv 2303.04278)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from uge.data.store import Records
from uge.methods.baselines.base import Baseline, Material, Settings, unit_batches
from uge.runtime import stream


class CudaSettings(Settings):
    """CUDA's settings.

    Attributes:
        blur: Filter entries are uniform in [0, ``blur``].
        centre: Value of the one random entry that stands out.
        kernel: Side of the filters in pixels.
    """

    blur: float = Field(0.3, gt=0)
    centre: float = Field(1.0, gt=0)
    kernel: int = Field(3, ge=1)


def class_filters(classes: int, settings: CudaSettings, seed: int) -> Tensor:
    """One filter per class, classes × kernel × kernel: the key is the seed."""
    generator, side = stream(seed, "cuda-filters"), settings.kernel
    filters = settings.blur * torch.rand(classes, side, side, generator=generator)
    tap = torch.randint(side * side, (classes, 1), generator=generator)
    return filters.flatten(1).scatter(1, tap, settings.centre).reshape(classes, side, side)


def blurred(x: Tensor, filters: Tensor) -> Tensor:
    """conv(x) / max(conv(x)), every image by its own filter, which its channels share.

    Args:
        x: Pixels in [0, 1], batch × channels × height × width.
        filters: batch × kernel × kernel; outside the image are zeros.

    Returns:
        Pixels in [0, 1], same shape; a black image stays black.
    """
    (batch, channels), side = x.shape[:2], filters.shape[1]
    weight = filters.repeat_interleave(channels, 0)[:, None]
    before = (side - 1) // 2
    padded = F.pad(x, (before, side - 1 - before) * 2).flatten(0, 1)[None]
    out = F.conv2d(padded, weight, groups=batch * channels).reshape(x.shape)
    return out / out.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)


def _make(material: Material) -> Records:
    settings = material.settings(CudaSettings)
    filters = class_filters(len(material.store.classes), settings, material.seed).to(material.store.device)
    records = material.records()
    for indices, pixels, x, labels in unit_batches(material):
        records.write(indices, material.stored(pixels, blurred(x, filters[labels]) - x))
    return records


CUDA = Baseline(
    _make,
    norm="none",
    rho=1.0,
    scope="class",
    about=(
        "CUDA: every image is convolved with the random filter of its class (Sadasivan, Soltanolkotabi and Feizi, "
        "CVPR 2023)."
    ),
    settings=CudaSettings,
)
