"""The perturbation generator G (Eq. 3, 13, Table 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from uge.budget import Budget
from uge.data.images import Pixels
from uge.errors import UsageError

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

    Two things that Table 4 does not have can be switched on. ``skips``: both transposed convolutions' outputs
    are joined by what the encoder had at that resolution, as in a U-Net. ``classes``: the bottleneck is scaled and
    shifted by numbers that are learned for every class, so that the perturbation can depend on the label.

    Args:
        channels: Colour channels of the images, 1 or 3.
        budget: Bound on the stored change.
        width: Channels after the first convolution.
        blocks: Residual blocks (Table 4: 6).
        dropout: Probability inside the residual blocks.
        skips: Skip connections.
        classes: Names of classes in the order of their numbers; with none, labels play no part.
    """

    def __init__(
        self,
        channels: int,
        budget: Budget,
        *,
        width: int = 32,
        blocks: int = 6,
        dropout: float = 0.1,
        skips: bool = False,
        classes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.channels, self.budget, self.skips, self.classes = channels, budget, skips, tuple(classes)
        self.options: dict[str, Any] = {"channels": channels, "width": width, "blocks": blocks, "dropout": dropout}
        self.options |= {"skips": skips, "classes": list(classes)}
        # Receptive field: each block reaches 2 pixels at a quarter of the resolution, the other layers 15.
        self.halo = 16 + 8 * blocks
        wide = 4 * width
        self.encoder = nn.Sequential(
            *_convolution(nn.Conv2d(channels, width, 7, padding=3, bias=False)),
            *_convolution(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)),
            *_convolution(nn.Conv2d(2 * width, wide, 3, stride=2, padding=1, bias=False)),
        )
        self.blocks = nn.Sequential(*(_Residual(wide, dropout) for _ in range(blocks)))
        joined = 2 if skips else 1
        self.decoder = nn.Sequential(
            *_convolution(_upsample(wide, 2 * width)),
            *_convolution(_upsample(joined * 2 * width, width)),
            nn.Conv2d(joined * width, channels, 7, padding=3),
        )
        self.of_class = nn.Embedding(len(self.classes), 2 * wide) if self.classes else None
        last = self.decoder[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Perturbation δ of ``x`` in [0, 1] units, bounded by floor(255 ρ)/255.

        Args:
            x: Pixels in [0, 1], batch × channels × height × width, any size.
            y: int64 labels, batch; needed, and used, by a generator with classes only.

        Returns:
            float32 of the shape of ``x``.
        """
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % 4, 0, -height % 4), mode="replicate")
        full = self.encoder[:3](padded * 4 - 2)
        half = self.encoder[3:6](full)
        quarter = self.encoder[6:](half)
        if self.of_class is not None:
            scale, shift = self.of_class(y)[..., None, None].to(quarter.dtype).chunk(2, dim=1)
            quarter = quarter * (1 + scale) + shift
        raw = self.decoder[:3](self.blocks(quarter))
        raw = self.decoder[3:6](torch.cat([raw, half], 1) if self.skips else raw)
        raw = self.decoder[6:](torch.cat([raw, full], 1) if self.skips else raw)
        delta: Tensor = torch.tanh(raw[..., :height, :width].float()) * (self.budget.levels / 255)
        return delta

    def numbers(self, names: Sequence[str]) -> list[int]:
        """Numbers under which this generator knows classes, by name; without classes of its own any will do.

        Raises:
            UsageError: It was trained for other classes.
        """
        if not self.classes:
            return list(range(len(names)))
        return class_numbers(self.classes, names, "generator was trained for")

    def levels(self, images: Sequence[Pixels], labels: Sequence[int], ids: Sequence[str]) -> Iterator[Levels]:
        """Perturbation of stored images at their own size; see :func:`perturb_images`. Ids play no part."""
        return perturb_images(self, images, labels)


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


def class_numbers(known: Sequence[str], names: Sequence[str], whose: str) -> list[int]:
    """Numbers of the classes ``names`` among those that are known: other images may have fewer, in another order.

    Args:
        known: Names in the order of their numbers.
        names: Whose numbers are wanted.
        whose: For the message: what knows them, and how.

    Raises:
        UsageError: One is not known.
    """
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UsageError(
            f"the {whose} the classes {', '.join(known)}, got '{unknown[0]}'; protect these images by a run of "
            "their own"
        )
    return [known.index(name) for name in names]


@torch.no_grad()
def perturb_images(
    generator: Generator, images: Sequence[Pixels], labels: Sequence[int] | None = None
) -> Iterator[Levels]:
    """Perturbation of stored images at their native size, in order.

    Neighbours of one shape go through the generator together; large images go in tiles with
    an overlap of its receptive field. Gray images get the mean over colours, alpha gets none.

    Args:
        generator: In eval mode.
        images: uint8 height × width × (1, 2, 3 or 4).
        labels: Number of each one's class, see :meth:`Generator.numbers`; needed by a generator with classes only.

    Yields:
        Perturbation in 8-bit levels, of each image's shape and the budget's :func:`level_type`.
    """
    for _, group in groupby(range(len(images)), key=lambda row: images[row].shape):
        same = list(group)
        height, width = images[same[0]].shape[:2]
        step = max(1, -(-_GROUP * 1024 // (height * width)))
        for few in (same[start : start + step] for start in range(0, len(same), step)):
            y = None if labels is None else torch.tensor([labels[row] for row in few])
            yield from _perturb_same_shape(generator, np.stack([images[row] for row in few]), y)


def _perturb_same_shape(generator: Generator, images: Pixels, y: Tensor | None) -> Iterator[Levels]:
    device = next(generator.parameters()).device
    colours = 1 if images.shape[3] <= 2 else 3
    x = torch.from_numpy(images[..., :colours]).to(device).permute(0, 3, 1, 2)
    y = None if y is None else y.to(device)
    delta = _match_channels(_tiled(generator, _match_channels(x.float() / 255, generator.channels), y), colours)
    moved = (delta * 255).round().to(level_type(generator.budget)).permute(0, 2, 3, 1).cpu().numpy()
    levels: Levels = np.zeros(images.shape, moved.dtype)
    levels[..., :colours] = moved
    yield from levels


def _match_channels(x: Tensor, channels: int) -> Tensor:
    if x.shape[1] == channels:
        return x
    return x.expand(-1, channels, -1, -1) if x.shape[1] == 1 else x.mean(1, keepdim=True)


def _tiled(generator: Generator, x: Tensor, y: Tensor | None) -> Tensor:
    height, width = x.shape[-2:]
    if height <= _TILE and width <= _TILE:
        return generator(x, y)  # type: ignore[no-any-return]
    out, halo = torch.empty_like(x), generator.halo
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            bottom, right = min(top + _TILE, height), min(left + _TILE, width)
            above, before = max(top - halo, 0), max(left - halo, 0)
            piece = generator(x[..., above : bottom + halo, before : right + halo], y)
            out[..., top:bottom, left:right] = piece[..., top - above :, left - before :][
                ..., : bottom - top, : right - left
            ]
    return out
