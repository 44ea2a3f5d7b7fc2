"""The perturbation generator G (Eq. 3 and 13, Table 4), and its application to stored images."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from uge.budget import Budget
from uge.data.images import Pixels
from uge.data.store import PixelStore, Records
from uge.errors import UsageError

Levels = NDArray[np.signedinteger[Any]]

_TILE = 512  # Side of a tile, in pixels.
_GROUP = 256 * 1024  # Pixels that go through the generator together, at most.


class Generator(nn.Module):
    """ResNet-style encoder-decoder that maps an image to its perturbation (Table 4).

    Convolution 7×7; two 3×3 convolutions that halve the resolution; residual blocks with
    dropout; two transposed 3×3 convolutions; a last convolution. Table 4 gives no widths:
    they are ``width``, 2 ``width``, 4 ``width``. The last convolution starts at zero, so G
    starts as the identity, and the bound is a tanh: a hard clamp, or an ordinary start, has
    no gradient after a few steps (docs/method.md).

    Two readings differ from that. ``stride`` 4: the first convolution goes to a quarter of the resolution at once, as
    the sizes of Table 4 say, and the two after it keep it. ``output`` ``"image"``: the last convolution, from an
    ordinary start, gives an image through a sigmoid, and δ is its difference from x, clamped (Eq. 3 as written); a
    value outside the budget then has no gradient.

    Two options are not in Table 4. ``skips``: both transposed convolutions' outputs are joined by the encoder's
    values at that resolution, as in a U-Net (Ronneberger et al., MICCAI 2015). ``classes``: the bottleneck is scaled
    and shifted by numbers that are learned for every class, so that the perturbation can depend on the label.

    Args:
        channels: Colour channels of the images, 1 or 3.
        budget: Bound on the stored change.
        width: Channels after the first convolution.
        blocks: Residual blocks (Table 4: 6).
        dropout: Probability inside the residual blocks.
        skips: Skip connections.
        classes: Names of classes in the order of their numbers; with none, labels play no part.
        size: Side in pixels at which images are perturbed, whatever their own size
            (:func:`uge.methods.apply.protected_images`); 0 for their own size.
        output: ``"residual"`` or ``"image"``.
        stride: Of the first convolution, 1 or 4.

    Raises:
        UsageError: Skip connections are asked for with a stride of 4, which leaves no finer resolution to join.
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
        size: int = 0,
        output: str = "residual",
        stride: int = 1,
    ) -> None:
        super().__init__()
        if skips and stride != 1:
            raise UsageError(f"skip connections need a stride of 1, got {stride}; leave out one of the two")
        self.channels = channels
        self.budget = budget
        self.skips = skips
        self.classes = tuple(classes)
        self.size = size
        self.output = output
        self.options: dict[str, Any] = {
            "channels": channels,
            "width": width,
            "blocks": blocks,
            "dropout": dropout,
            "skips": skips,
            "classes": list(classes),
            **({"size": size} if size else {}),
            **({"output": output} if output != "residual" else {}),
            **({"stride": stride} if stride != 1 else {}),
        }
        # Receptive field: each block reaches 2 pixels at a quarter of the resolution, the other layers 15, or 20.
        self.halo = (16 if stride == 1 else 20) + 8 * blocks
        step = 2 if stride == 1 else 1
        wide = 4 * width
        self.encoder = nn.Sequential(
            *_convolution(nn.Conv2d(channels, width, 7, stride=stride, padding=3, bias=False)),
            *_convolution(nn.Conv2d(width, 2 * width, 3, stride=step, padding=1, bias=False)),
            *_convolution(nn.Conv2d(2 * width, wide, 3, stride=step, padding=1, bias=False)),
        )
        self.blocks = nn.Sequential(*(_Residual(wide, dropout) for _ in range(blocks)))
        joined = 2 if skips else 1
        self.decoder = nn.Sequential(
            *_convolution(_upsample(wide, 2 * width)),
            *_convolution(_upsample(joined * 2 * width, width)),
            nn.Conv2d(joined * width, channels, 7, padding=3),
        )
        self.of_class = nn.Embedding(len(self.classes), 2 * wide) if self.classes else None
        for parameter in self.decoder[-1].parameters() if output == "residual" else ():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Perturbation δ of ``x`` in [0, 1] units, bounded by floor(255 ρ)/255.

        Args:
            x: Pixels in [0, 1], batch × channels × height × width, any size.
            y: int64 labels, batch; used by a generator with classes only, which needs them.

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
        raw = raw[..., :height, :width].float()
        bound = self.budget.levels / 255
        return torch.tanh(raw) * bound if self.output == "residual" else (torch.sigmoid(raw) - x).clamp(-bound, bound)

    def numbers(self, names: Sequence[str]) -> list[int]:
        """This generator's numbers of the classes ``names``; 0, 1, ... for a generator without classes.

        Raises:
            UsageError: The generator was trained for other classes.
        """
        return class_numbers(self.classes or names, names, "generator was trained for")

    @torch.no_grad()
    def levels(
        self, images: Sequence[Pixels], labels: Sequence[int] | None = None, ids: Sequence[str] = ()
    ) -> Iterator[Levels]:
        """Perturbations of stored images at their native size, in order; for a generator in eval mode.

        Neighbours of one shape go through the generator together; large images go in tiles with
        an overlap of its receptive field. Gray images get the mean over colours, alpha gets none.

        Args:
            images: uint8 height × width × (1, 2, 3 or 4).
            labels: Class numbers of the images, see :meth:`numbers`; for a generator with classes only.
            ids: Play no part.

        Yields:
            Perturbation in 8-bit levels, of each image's shape and the budget's :func:`level_type`.
        """
        device = next(self.parameters()).device
        for _, group in groupby(range(len(images)), key=lambda row: images[row].shape):
            same = torch.tensor(list(group))
            height, width = images[int(same[0])].shape[:2]
            for rows in torch.split(same, max(1, -(-_GROUP // (height * width)))):
                y = None if labels is None else torch.tensor([labels[row] for row in rows], device=device)
                same_shape = np.stack([images[row] for row in rows])
                colours = 1 if same_shape.shape[3] <= 2 else 3
                x = torch.from_numpy(same_shape[..., :colours]).to(device).permute(0, 3, 1, 2).float() / 255
                delta = _match_channels(_tiled(self, _match_channels(x, self.channels), y), colours)
                coloured = (delta * 255).round().to(level_type(self.budget)).permute(0, 2, 3, 1).cpu().numpy()
                levels: Levels = np.zeros(same_shape.shape, coloured.dtype)
                levels[..., :colours] = coloured
                yield from levels


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
        return torch.add(x, self.body(x))


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


def delta_records(store: PixelStore, budget: Budget, path: Path | None = None) -> Records:
    """Records of perturbations of ``store`` within ``budget``, zeros; the ending of their file is their type."""
    dtype = level_type(budget)
    path = path and path.with_suffix(f".{str(dtype).removeprefix('torch.')}")
    return Records(len(store), store.pixels.shape, dtype, device=store.device, path=path)


def class_numbers(known: Sequence[str], names: Sequence[str], whose: str) -> list[int]:
    """Numbers of the classes ``names`` among the ``known`` ones: other images may have fewer, in another order.

    Args:
        known: Names in the order of their numbers.
        names: Classes whose numbers are returned.
        whose: Start of the message, for instance ``"generator was trained for"``.

    Raises:
        UsageError: A class is not known, or the images have none.
    """
    if known and not names:
        raise UsageError(f"the {whose} the classes {', '.join(known)}, got images without labels; sort them into these")
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UsageError(
            f"the {whose} the classes {', '.join(known)}, got '{unknown[0]}'; protect these images by a run of "
            "their own"
        )
    return [known.index(name) for name in names]


def _match_channels(x: Tensor, channels: int) -> Tensor:
    return x.expand(-1, channels, -1, -1) if x.shape[1] in (1, channels) else x.mean(1, keepdim=True)


def _tiled(generator: Generator, x: Tensor, y: Tensor | None) -> Tensor:
    """Perturbation of ``x``, tile by tile; every tile sees as much around it as the generator's receptive field."""
    delta = torch.empty_like(x)
    for top in range(0, x.shape[2], _TILE):
        for left in range(0, x.shape[3], _TILE):
            above = max(top - generator.halo, 0)
            before = max(left - generator.halo, 0)
            reach = _TILE + generator.halo
            seen = generator(x[..., above : top + reach, before : left + reach], y)
            tile = seen[..., top - above :, left - before :][..., :_TILE, :_TILE]
            delta[..., top : top + _TILE, left : left + _TILE] = tile
    return delta
