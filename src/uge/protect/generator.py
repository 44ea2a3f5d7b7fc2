"""The perturbation generator G (Eq. 3, 13, Table 4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from uge.budget import Budget
from uge.data.images import Pixels

Levels = NDArray[np.signedinteger[Any]]

_TILE = 512
_GROUP = 256


class Generator(nn.Module):
    """ResNet-style encoder-decoder that maps an image to its perturbation (Table 4).

    Convolution 7×7; two 3×3 convolutions that halve the resolution; residual blocks with
    dropout; two transposed 3×3 convolutions; a last convolution. Table 4 gives no widths:
    they are ``width``, 2 ``width``, 4 ``width``. The last convolution starts at zero, so G
    starts as the identity, and the bound is a tanh: a hard clamp, or an ordinary start, has
    no gradient after a few steps (docs/method.md).

    Args:
        channels: Colour channels of the images, 1 or 3.
        budget: Bound on the stored change.
        width: Channels after the first convolution.
        blocks: Residual blocks (Table 4: 6).
        dropout: Probability inside the residual blocks.
    """

    def __init__(
        self, channels: int, budget: Budget, *, width: int = 32, blocks: int = 6, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.channels, self.budget = channels, budget
        self.options = {"channels": channels, "width": width, "blocks": blocks, "dropout": dropout}
        # Receptive field: each block reaches 2 pixels at a quarter of the resolution, the other layers 15.
        self.halo = 16 + 8 * blocks
        wide = 4 * width
        self.encoder = nn.Sequential(
            *_convolution(nn.Conv2d(channels, width, 7, padding=3, bias=False)),
            *_convolution(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)),
            *_convolution(nn.Conv2d(2 * width, wide, 3, stride=2, padding=1, bias=False)),
        )
        self.blocks = nn.Sequential(*(_Residual(wide, dropout) for _ in range(blocks)))
        self.decoder = nn.Sequential(
            *_convolution(_upsample(wide, 2 * width)),
            *_convolution(_upsample(2 * width, width)),
            nn.Conv2d(width, channels, 7, padding=3),
        )
        last = self.decoder[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Perturbation δ of ``x`` in [0, 1] units, bounded by floor(255 ρ)/255.

        Args:
            x: Pixels in [0, 1], batch × channels × height × width, any size.

        Returns:
            float32 of the same shape.
        """
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % 4, 0, -height % 4), mode="replicate")
        raw = self.decoder(self.blocks(self.encoder(padded * 4 - 2)))
        delta: Tensor = torch.tanh(raw[..., :height, :width].float()) * (self.budget.levels / 255)
        return delta

    def numbers(self, names: Sequence[str]) -> list[int]:
        """Numbers of classes by name; here any will do."""
        return list(range(len(names)))

    def levels(self, images: Sequence[Pixels], labels: Sequence[int], ids: Sequence[str]) -> Iterator[Levels]:
        """Perturbation of stored images at their own size; see :func:`perturb_images`. Labels and ids play no part."""
        return perturb_images(self, images)


class _Residual(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(nn.Conv2d(width, width, 3, padding=1, bias=False)),
            nn.Dropout(dropout),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def _upsample(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False)


def _convolution(layer: nn.Conv2d | nn.ConvTranspose2d) -> tuple[nn.Module, ...]:
    return layer, nn.BatchNorm2d(layer.out_channels), nn.LeakyReLU(0.2)


def add_perturbation(x: Tensor, delta: Tensor) -> Tensor:
    """x_u = x + δ on the 8-bit grid, in [0, 1]; gradients pass through the rounding unchanged.

    Args:
        x: Clean pixels in [0, 1] on the 8-bit grid.
        delta: Perturbation in [0, 1] units within the budget.
    """
    x_u = (x + delta).clamp(0, 1)
    stored = (x_u.detach() * 255).round() / 255
    return x_u + (stored - x_u).detach()


def level_type(budget: Budget) -> torch.dtype:
    """The smallest type that holds every perturbation within ``budget``, in 8-bit levels."""
    return torch.int8 if budget.levels <= 127 else torch.int16


@torch.no_grad()
def perturb_images(generator: Generator, images: Iterable[Pixels]) -> Iterator[Levels]:
    """Perturbation of stored images at their native size, in order, streaming.

    Neighbours of one shape go through the generator together; large images go in tiles with
    an overlap of its receptive field. Gray images get the mean over colours, alpha gets none.

    Args:
        generator: In eval mode.
        images: uint8 height × width × (1, 2, 3 or 4).

    Yields:
        Perturbation in 8-bit levels, of each image's shape and the budget's :func:`level_type`.
    """
    for _, group in groupby(images, key=lambda image: image.shape):
        chunk: list[Pixels] = []
        for image in group:
            chunk.append(image)
            if len(chunk) * image.shape[0] * image.shape[1] >= _GROUP * 1024:
                yield from _perturb_same_shape(generator, np.stack(chunk))
                chunk = []
        if chunk:
            yield from _perturb_same_shape(generator, np.stack(chunk))


def _perturb_same_shape(generator: Generator, images: Pixels) -> Iterator[Levels]:
    device = next(generator.parameters()).device
    colours = 1 if images.shape[3] <= 2 else 3
    x = torch.from_numpy(images[..., :colours]).to(device).permute(0, 3, 1, 2)
    delta = _match_channels(_tiled(generator, _match_channels(x.float() / 255, generator.channels)), colours)
    moved = (delta * 255).round().to(level_type(generator.budget)).permute(0, 2, 3, 1).cpu().numpy()
    levels: Levels = np.zeros(images.shape, moved.dtype)
    levels[..., :colours] = moved
    yield from levels


def _match_channels(x: Tensor, channels: int) -> Tensor:
    if x.shape[1] == channels:
        return x
    return x.expand(-1, channels, -1, -1) if x.shape[1] == 1 else x.mean(1, keepdim=True)


def _tiled(generator: Generator, x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    if height <= _TILE and width <= _TILE:
        return generator(x)  # type: ignore[no-any-return]
    out, halo = torch.empty_like(x), generator.halo
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            bottom, right = min(top + _TILE, height), min(left + _TILE, width)
            above, before = max(top - halo, 0), max(left - halo, 0)
            piece = generator(x[..., above : bottom + halo, before : right + halo])
            out[..., top:bottom, left:right] = piece[..., top - above :, left - before :][
                ..., : bottom - top, : right - left
            ]
    return out
