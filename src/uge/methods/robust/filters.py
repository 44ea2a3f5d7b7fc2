"""Random filters that pixels pass on their way to a network: differentiable, one for each image of a batch.

A filter takes pixels in [0, 1], batch × channels × height × width, and uniform numbers, batch × :data:`NUMBERS`, to
pixels of the same shape. Everything that is drawn comes in by these numbers, so an image's filter depends on no other
image. One channel (gray) and any side length work; rounding passes gradients as if it were not there.
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from uge.methods.robust.settings import FilterShares

NUMBERS = 6
"""Uniform numbers for one image: which filter, how strong, gain of three channels, brightness."""
QUALITIES = (8, 50)
SIGMAS = (0.5, 1.2)
_RADIUS = math.ceil(3 * SIGMAS[1])
#: Table K.1 of the JPEG standard (ITU-T T.81) for brightness, and K.2 for colour: quality 50.
_BRIGHTNESS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_COLOUR = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))
#: From RGB to brightness and two differences of colour (JFIF).
_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))

Filter = Callable[[Tensor, Tensor], Tensor]


def straight_through(x: Tensor, changed: Tensor) -> Tensor:
    """Values of ``changed`` with the gradient of ``x``."""
    return x + (changed - x).detach()


def jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """JPEG, coded and decoded, with halved resolution of colour.

    Args:
        x: Pixels in [0, 1], batch × (1 or 3) × height × width.
        quality: Whole numbers from 1 to 100, (batch,), as libjpeg scales its tables by them.

    Returns:
        Pixels of the same shape, within [0, 1], not rounded. The coefficients' rounding passes gradients.
    """
    height, width = x.shape[2:]
    side = 16 if x.shape[1] == 3 else 8
    levels = F.pad(255 * x, (0, -width % side, 0, -height % side), mode="replicate")
    if x.shape[1] == 1:
        return (_coded(levels - 128, quality, _tables()[0]) + 128)[:, :, :height, :width].clamp(0, 255) / 255
    matrix = levels.new_tensor(_YCC)
    ycc = torch.einsum("ij,bjhw->bihw", matrix, levels)
    brightness = _coded(ycc[:, :1] - 128, quality, _tables()[0]) + 128
    colour = _coded(F.avg_pool2d(ycc[:, 1:], 2), quality, _tables()[1])
    colour = F.interpolate(colour, scale_factor=2, mode="bilinear", align_corners=False)
    rgb = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(matrix), torch.cat([brightness, colour], 1))
    return rgb[:, :, :height, :width].clamp(0, 255) / 255


@functools.cache
def _tables() -> tuple[Tensor, Tensor]:
    """Quantisation tables of brightness and colour at quality 50, (64,) each."""
    colour = torch.full((8, 8), 99.0)
    colour[:4, :4] = torch.tensor(_COLOUR)
    return torch.tensor(_BRIGHTNESS, dtype=torch.float32).flatten(), colour.flatten()


@functools.cache
def _cosines() -> Tensor:
    """Orthonormal cosine transform of a flattened block of 8 × 8 values, 64 × 64."""
    place = torch.arange(8, dtype=torch.float64)
    rows = torch.cos(math.pi / 8 * (place + 0.5) * place[:, None]) / 2
    rows[0] /= math.sqrt(2)
    return torch.kron(rows, rows).float()


def _coded(planes: Tensor, quality: Tensor, table: Tensor) -> Tensor:
    """Planes around 0 (batch × planes × height × width, sides multiples of 8) after rounding of their coefficients."""
    with torch.no_grad():
        scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)[:, None]
        steps = ((table * scale + 50) / 100).floor().clamp(1, 255)[:, None].to(planes.device)
        batch, count, height, width = planes.shape
        cosines = _cosines().to(planes.device)
        blocks = planes.view(batch, count, height // 8, 8, width // 8, 8).transpose(3, 4).reshape(batch, -1, 64)
        decoded = ((blocks @ cosines.T / steps).round() * steps) @ cosines
        decoded = decoded.view(batch, count, height // 8, width // 8, 8, 8).transpose(3, 4).reshape(planes.shape)
    return straight_through(planes, decoded)  # The cosine transform is orthonormal: its gradient comes back as it was.


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of ``sigma`` pixels, (batch,), each up to 1.2; borders are continued."""
    height, width = x.shape[2:]
    place = torch.arange(-_RADIUS, _RADIUS + 1)
    weights = torch.exp(-(place**2) / (2 * sigma[:, None] ** 2))
    weights = (weights / weights.sum(1, keepdim=True)).to(x.device)[:, :, None, None, None]
    padded = F.pad(x, (_RADIUS,) * 4, mode="replicate")
    # A few sums of shifted images: quicker on a CPU than a convolution with a kernel of its own for every image.
    x = sum((weights[:, k] * padded[:, :, k : k + height] for k in range(len(place))), padded.new_zeros(()))
    return sum((weights[:, k] * x[:, :, :, k : k + width] for k in range(len(place))), padded.new_zeros(()))


def gray(x: Tensor) -> Tensor:
    """Brightness (BT.601) in every channel."""
    if x.shape[1] == 1:
        return x
    return torch.einsum("bchw,c->bhw", x, x.new_tensor(_YCC[0]))[:, None].expand_as(x)


def half(x: Tensor) -> Tensor:
    """Half the size by antialiased bilinear interpolation, and back."""
    height, width = x.shape[2:]
    small = F.interpolate(x, size=(max(1, height // 2), max(1, width // 2)), mode="bilinear", antialias=True)
    return F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)


def bits(x: Tensor, count: Tensor) -> Tensor:
    """The nearest of 2^count evenly spaced values, (batch,) counts."""
    steps = (2.0 ** count.to(x.device) - 1)[:, None, None, None]
    return straight_through(x, (x * steps).round() / steps)


def colour(x: Tensor, gains: Tensor, brightness: Tensor) -> Tensor:
    """Channels by their gains, batch × channels, plus a brightness, (batch,); within [0, 1]."""
    return (x * gains[:, :, None, None].to(x.device) + brightness[:, None, None, None].to(x.device)).clamp(0, 1)


def _between(bounds: tuple[float, float], numbers: Tensor) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * numbers


def _random_jpeg(x: Tensor, numbers: Tensor) -> Tensor:
    low, high = map(math.log, QUALITIES)
    return jpeg(x, _between((low, high), numbers[:, 1]).exp().round())


def _random_colour(x: Tensor, numbers: Tensor) -> Tensor:
    return colour(x, _between((0.8, 1.2), numbers[:, 2 : 2 + x.shape[1]]), _between((-20, 20), numbers[:, 5]) / 255)


FILTERS: dict[str, Filter] = {
    "none": lambda x, numbers: x,
    "jpeg": _random_jpeg,
    "gray": lambda x, numbers: gray(x),
    "blur": lambda x, numbers: blur(x, _between(SIGMAS, numbers[:, 1])),
    "half": lambda x, numbers: half(x),
    "bits": lambda x, numbers: bits(x, torch.where(numbers[:, 1] < 0.5, 2, 3)),
    "colour": _random_colour,
}
"""Filters by their names in :class:`~uge.methods.robust.settings.FilterShares`."""


def filtered(x: Tensor, numbers: Tensor, shares: FilterShares) -> Tensor:
    """Every image through one filter, which its numbers choose.

    Args:
        x: Pixels in [0, 1], batch × channels × height × width.
        numbers: Uniform numbers in [0, 1), batch × :data:`NUMBERS`, on the CPU.
        shares: Frequency of each filter.

    Returns:
        Pixels in [0, 1] of the same shape; differentiable.
    """
    frequency = torch.tensor([getattr(shares, name) for name in FILTERS], dtype=torch.float64)
    edges = (frequency.cumsum(0) / frequency.sum())[:-1]
    choice = torch.bucketize(numbers[:, 0].double(), edges, right=True)
    order = choice.argsort(stable=True)
    counts = choice.bincount(minlength=len(FILTERS)).tolist()
    rows = order.to(x.device)
    parts = zip(FILTERS.values(), torch.split(x[rows], counts), torch.split(numbers[order], counts), strict=True)
    return torch.cat([apply(own, drawn) for apply, own, drawn in parts if len(own)])[rows.argsort()]
