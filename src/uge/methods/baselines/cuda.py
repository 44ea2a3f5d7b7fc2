"""CUDA: a random convolution for every class.

Sadasivan, Soltanolkotabi and Feizi, CVPR 2023, arXiv 2303.04278.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from uge.data.store import Records
from uge.methods.baselines.base import Baseline, Material, Settings
from uge.runtime import stream


class CudaSettings(Settings):
    """Settings of CUDA.

    Attributes:
        blur: Filter entries are uniform in [0, ``blur``].
        centre: Value of one random entry of each filter.
        kernel: Side of the filters in pixels.
    """

    blur: float = Field(0.3, gt=0)
    centre: float = Field(1.0, gt=0)
    kernel: int = Field(3, ge=1)


def class_filters(classes: int, settings: CudaSettings, seed: int) -> Tensor:
    """One filter per class, classes × kernel × kernel: the key is the seed."""
    generator = stream(seed, "cuda-filters")
    entries = settings.kernel**2
    filters = settings.blur * torch.rand(classes, entries, generator=generator)
    centre = torch.randint(entries, (classes, 1), generator=generator)
    return filters.scatter(1, centre, settings.centre).reshape(classes, settings.kernel, settings.kernel)


def blurred(x: Tensor, filters: Tensor) -> Tensor:
    """conv(x) / max(conv(x)) of every image with its own filter, the same for all channels.

    Args:
        x: Pixels in [0, 1], batch × channels × height × width; outside are zeros.
        filters: batch × kernel × kernel.

    Returns:
        Pixels in [0, 1], same shape; a black image stays black.
    """
    weight = filters.repeat_interleave(x.shape[1], 0)[:, None]
    around = filters.shape[1] - 1
    padded = F.pad(x, (around // 2, around - around // 2) * 2).flatten(0, 1)[None]
    out = F.conv2d(padded, weight, groups=len(weight)).reshape(x.shape)
    return out / out.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)


def _class_blur(material: Material, settings: CudaSettings) -> Records:
    filters = class_filters(len(material.store.classes), settings, material.seed).to(material.store.device)
    return material.filled(lambda indices, x, labels: blurred(x, filters[labels]) - x)


CUDA = Baseline(
    _class_blur,
    norm="none",
    rho=1.0,
    scope="class",
    about=(
        "CUDA: every image is convolved with the random filter of its class (Sadasivan, Soltanolkotabi and Feizi, "
        "CVPR 2023)."
    ),
    settings=CudaSettings,
    alone=True,
)
