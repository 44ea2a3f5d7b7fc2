"""A secret of colour axes: what a keyed protection writes along, and a keyed network takes out again.

Every pixel has one of three axes u = (1, 1, -1), (1, -1, 1), (-1, 1, 1). Which one is ruled by a secret
pattern of cells that lies over each image at an offset of its own. A protection changes pixels by
s·u with whole numbers s; the network moves every pixel along its u to where its colour agrees with
the colours around it. A pixel and its protected form lie on one line along u, so both end at the
same point, whatever s was, and after any crop or flip: the perturbation leaves no trace.

Cells and waves are measured in parts of the side of an image's centre square (32 units), not in
pixels, so that they survive a cut to that square and a change of size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNITS = 32
"""Units of length along each side of an image."""
CELL, CELLS = 16, 4
PERIOD = CELL * CELLS
STRIPS = UNITS // CELL + 1
"""Cells that an image can touch along a side."""
WAVES = range(1, 7)
"""Cycles per image that a class's wave may have along each side."""
AXES = ((1.0, 1.0, -1.0), (1.0, -1.0, 1.0), (-1.0, 1.0, 1.0))
MARKED = (0.2, 0.3, 0.37)
"""Part of the colour contrast that one class's waves must explain for an image to count as protected.

By the number of waves that make a class's pattern (the last for more): the more classes there are and the more waves
each has, the more of any picture the best of them explains. With these, about 1 clean image in 100 at most gets no
answer (docs/method.md).
"""
_RADIUS = 0.03


@dataclass(frozen=True)
class Alignment:
    """How the pattern of cells lies over each image of a batch.

    Attributes:
        flips: (B,) bool, whether it is mirrored left to right.
        shifts: (B, 2) int64, down and right, in units from 0 to ``PERIOD`` - 1.
    """

    flips: Tensor
    shifts: Tensor


class ColourKey(nn.Module):
    """The secret and what can be done with it.

    Args:
        classes: How many classes have a wave of their own.
        seed: Makes the pattern of cells and the waves.
    """

    tile: Tensor
    waves: Tensor
    phases: Tensor
    axes: Tensor
    kept: Tensor
    _strips: Tensor
    lost: Tensor

    def __init__(self, classes: int, *, seed: int) -> None:
        super().__init__()
        draw = torch.Generator("cpu").manual_seed(seed)
        self.register_buffer("tile", torch.randint(0, 3, (CELLS, CELLS), generator=draw, device="cpu"))
        self.register_buffer("waves", _distinct_waves(classes, draw))
        phases = torch.rand(self.waves.shape[:2], generator=draw, device="cpu") * 2 * math.pi
        self.register_buffer("phases", phases)
        axes = torch.tensor(AXES, device="cpu")
        lost = F.normalize(axes - axes.mean(1, keepdim=True), dim=1)
        self.register_buffer("axes", axes, persistent=False)
        # Two directions of colour without brightness: along the axis (lost), and across it (kept).
        self.register_buffer("lost", lost, persistent=False)
        places = torch.arange(UNITS, device="cpu")[None] + torch.arange(CELL, device="cpu")[:, None]
        strips = F.one_hot(places // CELL, STRIPS).permute(0, 2, 1).float()  # offset × strip × unit
        self.register_buffer("_strips", strips, persistent=False)
        self.register_buffer("kept", torch.linalg.cross(lost, torch.ones_like(lost) / math.sqrt(3)), persistent=False)

    def axis_map(self, at: Alignment, height: int, width: int) -> Tensor:
        """Number of each pixel's axis, (B, height, width) int64 from 0 to 2."""
        cells = torch.stack([self.tile, self.tile.flip(1)]).repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
        down, across = _from_corner(height, width, at.shifts)
        rows = (down * UNITS // min(height, width) + at.shifts[:, :1]) % PERIOD
        columns = (across * UNITS // min(height, width) + at.shifts[:, 1:]) % PERIOD
        return cells[at.flips.long()[:, None, None], rows[:, :, None], columns[:, None, :]]

    @staticmethod
    def random_shift(draw: torch.Generator) -> Tensor:
        """Where the pattern may lie over an image: (2,) int64, down and right, in units."""
        return torch.randint(0, PERIOD, (2,), generator=draw)

    def signs(self, labels: Tensor, height: int, width: int) -> Tensor:
        """The waves of the images' classes as +1 and -1, (B, height, width); mirror images of themselves."""
        y, x = ((place + 0.5) / min(height, width) for place in _from_corner(height, width, self.phases))
        across = torch.cos(2 * math.pi * self.waves[labels, :, 0, None] * (x - 0.5))
        down = torch.cos(2 * math.pi * self.waves[labels, :, 1, None] * y + self.phases[labels, :, None])
        total = torch.einsum("bth,btw->bhw", down, across)
        return torch.where(total < 0, -1.0, 1.0)

    def directions(self, labels: Tensor, shifts: Tensor, height: int, width: int) -> Tensor:
        """sign · u of every pixel: what one level of perturbation adds, (B, 3, height, width) of +1 and -1."""
        at = Alignment(torch.zeros(len(shifts), dtype=torch.bool, device=shifts.device), shifts)
        axes = self.axes[self.axis_map(at, height, width)].permute(0, 3, 1, 2)
        return axes * self.signs(labels, height, width)[:, None]

    @torch.no_grad()
    def align(self, x: Tensor) -> Alignment:
        """Find the pattern over images (B, 3, H, W) in [0, 1]: where the kept colours are smoothest.

        A protection adds contrast along every axis, so colours that cross a wrong axis are rough.
        """
        rough = torch.einsum("ac,bchw->bahw", self.kept.to(x.dtype), _contrast(x, 3)).abs().sqrt()
        rough = _on_units(rough)
        # Sums over the strips that cells make of an image, for every offset of the first cell.
        sums = torch.einsum("oci,baij,pdj->bopcda", self._strips.to(x.dtype), rough, self._strips.to(x.dtype))
        tiles = torch.stack([self.tile, self.tile.flip(1)])
        rolled = torch.stack([tiles.roll((-row, -column), (1, 2)) for row in range(CELLS) for column in range(CELLS)])
        cells = F.one_hot(rolled[..., :STRIPS, :STRIPS], 3).to(x.dtype)  # rolls × flips × strips × strips × axes
        costs = torch.einsum("bopcda,rfcda->bfrop", sums, cells).flatten(1)
        best = costs.argmin(1)
        across, best = best % CELL, best // CELL
        down, best = best % CELL, best // CELL
        roll, flips = best % CELLS**2, best // CELLS**2
        shifts = torch.stack([roll // CELLS * CELL + down, roll % CELLS * CELL + across], 1)
        return Alignment(flips.bool(), shifts)

    @torch.no_grad()
    def smoothest_axes(self, x: Tensor) -> Tensor:
        """Number of the axis without which the colours around each pixel are smoothest, (B, H, W); needs no secret."""
        rough = torch.einsum("ac,bchw->bahw", self.kept.to(x.dtype), _contrast(x, 3)).abs()
        return _mean_around(rough, 7).argmin(1)

    def restore(self, x: Tensor, at: Alignment) -> Tensor:
        """Images with what lay along the axes taken out and replaced by what the surroundings say.

        Args:
            x: (B, 3, H, W) in [0, 1].
            at: From :meth:`align`.

        Returns:
            Same shape, about [0, 1]; the same for every perturbation along the axes of ``at``.
        """
        return self.straighten(x, self.axis_map(at, *x.shape[2:]))

    def straighten(self, x: Tensor, numbers: Tensor) -> Tensor:
        """:meth:`restore` for the number of each pixel's axis, (B, H, W) int64, however it was found."""
        axes, kept, lost = (
            table.to(x.dtype)[numbers].permute(0, 3, 1, 2) for table in (self.axes, self.kept, self.lost)
        )
        colour = self._smooth_colour(kept, (kept * x).sum(1, keepdim=True))
        wanted = (lost * colour).sum(1, keepdim=True)
        found = (lost * x).sum(1, keepdim=True)
        # One step along u moves the lost colour by |u without its brightness|, the square root of 8/3.
        return x + axes * (wanted - found) * math.sqrt(3 / 8)

    def _smooth_colour(self, kept: Tensor, measured: Tensor) -> Tensor:
        """The colour (no brightness) that explains the kept parts around a pixel best, drawn towards gray."""
        first, second = self.kept[0].to(kept.dtype), self.lost[0].to(kept.dtype)
        a, b = (torch.einsum("c,bchw->bhw", basis, kept)[:, None] for basis in (first, second))
        sums = _mean_around(torch.cat([a * a, a * b, b * b, a * measured, b * measured], 1), 9)
        aa, ab, bb, am, bm = sums.unbind(1)
        aa, bb = aa + _RADIUS, bb + _RADIUS
        determinant = aa * bb - ab * ab
        along, across = (bb * am - ab * bm) / determinant, (aa * bm - ab * am) / determinant
        return torch.einsum("nbhw,nc->bchw", torch.stack([along, across]), torch.stack([first, second]))

    @torch.no_grad()
    def explained(self, x: Tensor, at: Alignment) -> Tensor:
        """Part of the contrast along the axes that one class's waves explain, (B,) in [0, 1].

        It is large for images that were protected with this key and small for all others.
        """
        numbers = self.axis_map(at, *x.shape[2:])
        lost = self.lost.to(x.dtype)[numbers].permute(0, 3, 1, 2)
        signal = _on_units((lost * _contrast(x, 9)).sum(1, keepdim=True)).flatten(1)
        place = (torch.arange(UNITS, device=x.device) + 0.5) / UNITS
        turns = 2 * math.pi * self.waves.to(x.dtype)[..., None] * (place - 0.5)
        quadratures = torch.stack([turns.cos(), turns.sin()], -2)  # classes × terms × 2 sides × 2 × units
        across, down = quadratures[:, :, 0], quadratures[:, :, 1]
        waves = torch.einsum("ctpw,ctqh->ctpqhw", across, down).flatten(4).flatten(1, 3)
        waves = waves / waves.norm(dim=2, keepdim=True).clamp_min(1e-6)
        power = torch.einsum("cqn,bn->bcq", waves, signal).square().sum(2).amax(1)
        return power / signal.square().sum(1).clamp_min(1e-9)

    def marked(self, x: Tensor, at: Alignment) -> Tensor:
        """Whether each image was protected with this key, (B,) bool."""
        return self.explained(x, at) > MARKED[min(self.waves.shape[1], len(MARKED)) - 1]


def _from_corner(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns counted from the corner of the centre square, which is what training takes of an image."""
    side = min(height, width)
    down, across = (torch.arange(length, device=like.device) - (length - side) // 2 for length in (height, width))
    return down, across


def _mean_around(x: Tensor, units: int) -> Tensor:
    side = 2 * max(1, units * min(x.shape[2:]) // (2 * UNITS)) + 1
    down, across = (_averaging(length, side // 2, x) for length in x.shape[2:])
    smooth: Tensor = down @ x @ across.T
    return smooth


def _averaging(length: int, radius: int, like: Tensor) -> Tensor:
    """Matrix that takes means over neighbours up to ``radius`` away, fewer at the ends."""
    place = torch.arange(length, device=like.device)
    near = ((place[:, None] - place[None]).abs() <= radius).to(like.dtype)
    return near / near.sum(1, keepdim=True)


def _on_units(x: Tensor) -> Tensor:
    """Means over the units of the centre square."""
    height, width = x.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = x[:, :, top : top + side, left : left + side]
    return square if side == UNITS else F.adaptive_avg_pool2d(square, UNITS)


def _contrast(x: Tensor, units: int) -> Tensor:
    return x - _mean_around(x, units)


def _distinct_waves(classes: int, draw: torch.Generator) -> Tensor:
    """A set of waves for each class, no two the same: (classes, terms, 2) cycles per image across and down."""
    pairs = [(across, down) for across in WAVES for down in WAVES]
    terms = next(count for count in range(1, len(pairs)) if math.comb(len(pairs), count) >= classes)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < classes:
        chosen = torch.randperm(len(pairs), generator=draw, device="cpu")[:terms]
        found[tuple(sorted(chosen.tolist()))] = None
    return torch.tensor([[pairs[number] for number in row] for row in found], dtype=torch.float32, device="cpu")
