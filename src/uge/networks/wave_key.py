"""A secret of waves: what a keyed protection adds to images, and a keyed network finds and takes out again.

Every class has some secret patterns of +1 and -1, waves across the image. A protection adds one pattern of an image's
class, a fixed number of levels strong. Whoever has the key compares an image with all patterns at all places to which
a crop can have moved it, subtracts the one that fits, and clips: what is left is the original's own clipped form.
Whoever has another key finds nothing, and sees waves that give the class away.

Lengths are in parts of the side of an image's centre square, so that waves survive a cut to it and a change of size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

FIELDS = 2
"""Waves of a pattern: the first goes into red and green (and gray), the second into blue."""
VARIANTS, PATTERNS = 8, 160
"""Most patterns of a class, and about how many there are in all where classes are many."""
STEPS, JITTER = 5, 0.075
"""Frequencies along a side from which waves are drawn, and how far off them they lie, in parts of the lowest."""
MARGIN = 8
"""An image is looked for where it may have been moved by its side over this, which is what crops do."""
CANDIDATES = 12
"""Patterns, at their places, that are taken out of an image on trial: as many as look like what it carries."""
THRESHOLD = 0.01
"""By which part the best of them must bring neighbouring pixels closer to count as found."""
LEVELS, MOST_LEVELS = 10, 64
"""How many 8-bit levels a pattern is strong, by default and at most."""
_COLOUR = 6.0
"""By how much the difference of colours says more than brightness, since pictures have less of it."""
_CHUNK = 2**22


@dataclass(frozen=True)
class Match:
    """The pattern that fits each image of a batch best.

    Attributes:
        numbers: (B,) int64, which pattern.
        shifts: (B, 2) int64, rows and columns by which the image was moved over it.
        gains: (B,) by which part neighbouring pixels come closer when the pattern is taken out: above 0 where it is
            there, below where it is not.
        gray: (B,) bool, whether the image has no colours, so that its pattern has the first wave only.
    """

    numbers: Tensor
    shifts: Tensor
    gains: Tensor
    gray: Tensor

    def or_better(self, other: Match) -> Match:
        """For each image the match that gains more."""
        better = other.gains > self.gains
        return Match(
            torch.where(better, other.numbers, self.numbers),
            torch.where(better[:, None], other.shifts, self.shifts),
            torch.where(better, other.gains, self.gains),
            self.gray,
        )


class WaveKey(nn.Module):
    """The secret and what can be done with it.

    Args:
        classes: How many classes have patterns of their own.
        seed: Makes the waves and their phases.
        size: Height and width, in pixels, of the images that networks will see; rules how fine the waves are.
        levels: How many 8-bit levels strong patterns are.
    """

    waves: Tensor
    phases: Tensor
    levels: Tensor

    def __init__(self, classes: int, *, seed: int, size: int = 32, levels: int = LEVELS) -> None:
        super().__init__()
        draw = torch.Generator("cpu").manual_seed(seed)
        waves = torch.stack([_distinct_waves(classes, finest(size), draw) for _ in range(FIELDS)], 1)
        variants = max(1, min(VARIANTS, PATTERNS // classes))
        phases = torch.rand((classes, variants, *waves.shape[1:3]), generator=draw, device="cpu")
        self.register_buffer("waves", waves)  # classes × FIELDS × terms × (across, down), cycles per side
        self.register_buffer("phases", phases * 2 * math.pi)  # classes × variants × FIELDS × terms, down
        self.register_buffer("levels", torch.tensor(levels, device="cpu"))
        self._last: tuple[object, Tensor, Tensor] | None = None

    def patterns(self, height: int, width: int, *, margin: int = 0, numbers: Tensor | None = None) -> Tensor:
        """Patterns as +1 and -1, (patterns, FIELDS, height + 2 margins, width + 2 margins), int8.

        They are mirror images of themselves, so that a flip changes none, but where several waves cancel.

        Args:
            height: Of the images, in pixels.
            width: Of the images.
            margin: How far patterns go on outside, in pixels.
            numbers: Which ones, (patterns,) int64; by default all, those of a class one after the other.
        """
        if numbers is None:
            numbers = torch.arange(self.phases[..., 0, 0].numel(), device=self.phases.device)
        waves, phases = self.waves[numbers // self.phases.shape[1]], self.phases.flatten(0, 1)[numbers]
        (_, y), (x, _) = (_places(length, min(height, width), margin, waves) for length in (height, width))
        across = torch.cos(2 * math.pi * waves[..., 0, None] * x)
        down = torch.cos(2 * math.pi * waves[..., 1, None] * y + phases[..., None])
        total = torch.einsum("nftx,nfty->nfyx", across, down)
        return torch.where(total < 0, -1, 1).to(torch.int8)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}  # A copy may be given another secret.

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._last = None
        super()._load_from_state_dict(*arguments)

    def random_number(self, label: int, draw: torch.Generator) -> int:
        """The number of one of the class's patterns."""
        variants = self.phases.shape[1]
        return label * variants + int(torch.randint(0, variants, (), generator=draw))

    @torch.no_grad()
    def match(self, x: Tensor) -> Match:
        """Find the pattern on images (B, 1 or 3, H, W) in [0, 1], wherever a crop or flip has put it."""
        gray = is_gray(x)
        ends = x[:, :: max(1, x.shape[1] - 1)].contiguous()  # one colour of each field
        strength, rough, best = float(self.levels) / 255, total_variation(self._clipped(ends)), None
        for tried in self._candidates(x, gray):
            signs = coloured(self._over(x, tried), gray, 3)[:, ::2][:, : ends.shape[1]]
            gain = 1 - total_variation(self._clipped(ends - strength * signs)) / rough
            found = replace(tried, gains=gain)
            best = found if best is None else best.or_better(found)
        assert best is not None
        return best

    def _candidates(self, x: Tensor, gray: Tensor) -> Iterator[Match]:
        """Patterns and places at which the images look like them, the likeliest first."""
        drives, span = field_drives(contrast(_centre_square(x)), gray), 2 * (min(x.shape[2:]) // MARGIN) + 1
        scale = self._prepared(*x.shape[2:])[1]
        ranked = []
        for rows in torch.split(torch.arange(len(x), device=x.device), max(1, _CHUNK // (len(scale) * span**2))):
            perfect = torch.where(gray[rows, None], scale[:, 0], scale[:, 1])[..., None, None]
            fits = self._compared(drives[rows], span) * perfect
            ranked.append(fits.flatten(1).topk(CANDIDATES).indices)
        for best in torch.cat(ranked).unbind(1):
            place = best % span**2
            shifts = torch.stack([place // span, place % span], 1) - span // 2
            yield Match(best // span**2, shifts, x.new_zeros(len(x)), gray)

    def _clipped(self, x: Tensor) -> Tensor:
        strength = float(self.levels) / 255
        return x.clamp(strength, 1 - strength)

    def restore(self, x: Tensor, found: Match) -> Tensor:
        """Images without the patterns that were found, clipped to where both signs have room.

        Args:
            x: (B, 1 or 3, H, W) in [0, 1].
            found: From :meth:`match`.

        Returns:
            Same shape; for a protected image with its own pattern, the clipped original.
        """
        strength = float(self.levels) / 255 * self.marked(found)
        signs = coloured(self._over(x, found), found.gray, x.shape[1])
        return self._clipped(x - strength[:, None, None, None] * signs)

    def marked(self, found: Match) -> Tensor:
        """Whether each image was protected with this key, (B,) bool."""
        return found.gains > THRESHOLD

    def _over(self, x: Tensor, found: Match) -> Tensor:
        """The fields of what was found as they lie over the images: (B, FIELDS, H, W) of +1 and -1, like ``x``."""
        signs, (height, width) = self._prepared(*x.shape[2:])[0], x.shape[2:]
        down, across = (
            torch.arange(length, device=x.device) + (whole - length) // 2 + shift[:, None]
            for length, whole, shift in zip((height, width), signs.shape[2:], found.shifts.unbind(1), strict=True)
        )
        corner = found.numbers * signs[0, 0].numel()
        places = corner[:, None, None] + down[:, :, None] * signs.shape[3] + across[:, None]
        return torch.stack([field.flatten()[places].to(x.dtype) for field in signs], 1)

    def _compared(self, drives: Tensor, span: int) -> Tensor:
        """How well every pattern fits (B, FIELDS, side, side) at ``span`` × ``span`` places: (B, patterns, span, span).

        Only the waves themselves are compared, without what makes signs of them: then four products for each wave say
        all about every phase, and so about every variant and place.
        """
        side, waves = drives.shape[2], 2 * math.pi * self.waves.to(drives.dtype)
        x, y = _places(side, side, 0, drives)
        across, down = waves[..., 0, None], waves[..., 1, None]
        rows = torch.einsum("bfyx,kftix->bkftiy", drives, _quadratures(across * x))
        both = torch.einsum("bkftiy,kftjy->bkftij", rows, _quadratures(down * y))
        moved = torch.arange(span, device=drives.device, dtype=drives.dtype).sub(span // 2) / side
        right = _quadratures(across * moved)  # cos(a + b) = cos a cos b - sin a sin b
        below = _quadratures(down[:, None] * moved + self.phases[..., None].to(drives.dtype))
        signs = torch.tensor([1.0, -1.0], device=drives.device, dtype=drives.dtype)
        lagged = torch.einsum("bkftij,kftid,i,j->bkftjd", both, right, signs, signs)
        return torch.einsum("bkftjd,kvftje->bkved", lagged, below).flatten(1, 2)

    def _prepared(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Fields of all patterns with a margin, (FIELDS, patterns, …), and what a perfect fit is to be multiplied with.

        The second is 1 over the fit, for images without colours and with: (patterns, 2).
        """
        secrets = self.waves, self.phases, self.levels
        name = (height, width, *((one.device, one.dtype, one.is_inference() or one._version) for one in secrets))
        if self._last is None or self._last[0] != name:  # One size at a time is in use.
            side = min(height, width)
            with torch.inference_mode(False), torch.no_grad():
                rows = torch.arange(self.phases[..., 0, 0].numel(), device=self.waves.device)
                fits = [
                    torch.cat([self._own_fits(few, side, gray) for few in torch.split(rows, 64)])
                    for gray in (True, False)
                ]
                signs = self.patterns(height, width, margin=side // MARGIN).transpose(0, 1).contiguous()
            self._last = name, signs, 1 / torch.stack(fits, 1)
        return self._last[1], self._last[2]

    def _own_fits(self, rows: Tensor, side: int, gray: bool) -> Tensor:
        """What some patterns give where they are all there is."""
        alone = torch.full(rows.shape, gray, device=rows.device)
        images = coloured(self.patterns(side, side, numbers=rows).to(self.waves.dtype), alone, 3)
        fits = self._compared(field_drives(contrast(images), alone), 1)
        return fits[torch.arange(len(rows)), rows, 0, 0]


def coloured(fields: Tensor, gray: Tensor, channels: int) -> Tensor:
    """Fields (B, FIELDS, H, W) of +1 and -1 as what is added to images of 1 or 3 channels; gray ones (B,) stay gray."""
    first, second = fields.unbind(1)
    second = torch.where(gray[:, None, None], first, second)
    return torch.stack([first, first, second][:channels], 1)


def is_gray(x: Tensor) -> Tensor:
    """Whether each image (B, channels, H, W) has no colours, (B,) bool."""
    return (x.amax(1) == x.amin(1)).flatten(1).all(1)


def finest(size: int) -> float:
    """Most cycles along a side that a wave has, for images of ``size`` pixels; the fewest are half of it."""
    return min(16.0, size / 4)


def _places(length: int, side: int, margin: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels' places in parts of the centre square's side, from its middle and from its corner."""
    corner = (torch.arange(-margin, length + margin, device=like.device) - (length - side) // 2 + 0.5) / side
    return (corner - 0.5).to(like.dtype), corner.to(like.dtype)


def _quadratures(angles: Tensor) -> Tensor:
    """Cosines and sines, in a dimension before the last."""
    return torch.stack([angles.cos(), angles.sin()], -2)


def field_drives(x: Tensor, gray: Tensor) -> Tensor:
    """What each field is compared with, (B, FIELDS, H, W), from contrasts (B, 1 or 3, H, W).

    It is brightness, and how much yellower than blue a pixel is, each by how little of it pictures have.
    """
    bright, yellow = x.mean(1), x[:, :2].mean(1) - x[:, -1]
    alone = gray[:, None, None]
    first, second = 2 / 3 * bright + _COLOUR * yellow, bright / 3 - _COLOUR * yellow
    return torch.stack([torch.where(alone, bright, first), second.masked_fill(alone, 0.0)], 1)


def total_variation(x: Tensor) -> Tensor:
    """Mean difference of neighbouring pixels, (B,), never 0."""
    return x.diff(dim=2).abs().mean((1, 2, 3)) + x.diff(dim=3).abs().mean((1, 2, 3)) + 1e-6


def contrast(x: Tensor) -> Tensor:
    """Images less the means around each pixel, over about the longest wave."""
    place = torch.arange(x.shape[2], device=x.device)
    near = ((place[:, None] - place).abs() <= max(1, round(len(place) / finest(len(place))))).to(x.dtype)
    mean = near / near.sum(1, keepdim=True)
    return x - mean @ x @ mean.T


def _centre_square(x: Tensor) -> Tensor:
    side = min(x.shape[2:])
    top, left = ((length - side) // 2 for length in x.shape[2:])
    return x[:, :, top : top + side, left : left + side]


def _distinct_waves(classes: int, most: float, draw: torch.Generator) -> Tensor:
    """Waves for each class, no two classes the same: (classes, terms, 2) cycles per side across and down."""
    steps = torch.linspace(most / 2, most, STEPS, device="cpu")
    pairs = torch.cartesian_prod(steps, steps)
    terms = next(count for count in range(1, len(pairs)) if math.comb(len(pairs), count) >= classes)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < classes:
        chosen = torch.randperm(len(pairs), generator=draw, device="cpu")[:terms]
        found[tuple(sorted(chosen.tolist()))] = None
    waves = torch.stack([pairs[list(row)] for row in found])
    return waves + most / 2 * JITTER * (2 * torch.rand(waves.shape, generator=draw, device="cpu") - 1)
