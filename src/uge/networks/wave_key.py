"""A secret of waves, which a keyed protection adds to images and a keyed network takes out again.

Every class has several secret patterns of +1 and -1, made of waves across the image. A protection adds one pattern of
an image's class, a fixed number of levels strong. A network with the key compares an image with all patterns at all
places to which a crop can have moved it, subtracts the best one, and clips. The result is the clipped original. A
network with another key finds no pattern, and sees waves that give the class away.

Lengths are in parts of the side of an image's centre square, so that waves survive a cut to it and a change of size.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Fields of a pattern: the first goes into red and green (and gray), the second into blue.
FIELDS = 2
# Most patterns of one class.
VARIANTS = 8
# Frequencies along a side near which waves are drawn.
STEPS = 5
# Largest distance of a wave from those frequencies, in parts of the lowest one.
JITTER = 0.075
# Patterns are searched for within side / MARGIN of their first place, which is how far crops move an image.
MARGIN = 8
# Pairs of pattern and place with the highest correlation, which are taken out on trial.
CANDIDATES = 12
# Least relative decrease of total variation of an image that counts as protected.
THRESHOLD = 0.01
# Default strength of a pattern in 8-bit levels.
LEVELS = 10
# Highest strength of a pattern in 8-bit levels.
MOST_LEVELS = 64
# Weight of colour against brightness in correlations: pictures have less contrast in colour.
_COLOUR_WEIGHT = 6.0
# Correlations in memory at once.
_CHUNK = 2**22


@dataclass(frozen=True)
class Match:
    """The pattern that fits each image of a batch best.

    Attributes:
        numbers: (B,) int64, number of the pattern.
        shifts: (B, 2) int64, rows and columns by which the image was moved over it.
        gains: (B,) relative decrease of total variation when the pattern is taken out: positive where the image has
            it, negative where it does not.
        gray: (B,) bool, True for images without colours, whose pattern has the first field only.
    """

    numbers: Tensor
    shifts: Tensor
    gains: Tensor
    gray: Tensor


class WaveKey(nn.Module):
    """Secret patterns of every class, and their search and removal.

    Args:
        classes: Number of classes.
        seed: Seed of the waves and their phases.
        size: Height and width, in pixels, of a network's images; limits the frequency of the waves.
        levels: Strength of a pattern in 8-bit levels.
    """

    waves: Tensor
    phases: Tensor
    levels: Tensor

    def __init__(self, classes: int, *, seed: int, size: int = 32, levels: int = LEVELS) -> None:
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(seed)
        waves = torch.stack([_distinct_waves(classes, highest_frequency(size), generator) for _ in range(FIELDS)], 1)
        variants = max(1, min(VARIANTS, 160 // classes))  # At most 160 patterns of all classes together, if possible.
        phases = torch.rand((classes, variants, *waves.shape[1:3]), generator=generator, device="cpu")
        self.register_buffer("waves", waves)  # classes × FIELDS × terms × (across, down), cycles per side
        self.register_buffer("phases", phases * 2 * math.pi)  # classes × variants × FIELDS × terms, down
        self.register_buffer("levels", torch.tensor(levels, device="cpu"))
        self._cache: tuple[object, Tensor, Tensor] | None = None

    def patterns(
        self,
        height: int,
        width: int,
        *,
        margin: int = 0,
        numbers: Tensor | None = None,
        rows: tuple[int, int] | None = None,
    ) -> Tensor:
        """Patterns of +1 and -1, (patterns, FIELDS, height + 2 margins, width + 2 margins), int8.

        Each field is the sign of a sum over its waves, with a and d their frequencies across and down and φ the phase:

            s(x, y) = sign Σ cos(2π a (x − ½)) · cos(2π d y + φ)

        A pattern is its own mirror image, so a flip does not change it, except for pixels where waves cancel.

        Args:
            height: Of the images, in pixels.
            width: Of the images, in pixels.
            margin: Pixels added outside of each edge.
            numbers: (patterns,) int64, numbers of the patterns; by default all, class by class.
            rows: First row, and the one after the last, of what is returned; by default all.
        """
        if numbers is None:
            numbers = torch.arange(self.phases[..., 0, 0].numel(), device=self.phases.device)
        waves = self.waves[numbers // self.phases.shape[1]]
        phases = self.phases.flatten(0, 1)[numbers]
        side = min(height, width)
        _, y = _coordinates(height, side, margin, waves)
        y = y if rows is None else y[rows[0] : rows[1]]
        x, _ = _coordinates(width, side, margin, waves)
        across = torch.cos(2 * math.pi * waves[..., 0, None] * x)
        down = torch.cos(2 * math.pi * waves[..., 1, None] * y + phases[..., None])
        return torch.where(torch.einsum("nftx,nfty->nfyx", across, down) < 0, -1, 1).to(torch.int8)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}  # A copy may be given another secret.

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._cache = None
        super()._load_from_state_dict(*arguments)

    def random_number(self, label: int, draw: torch.Generator) -> int:
        """Number of one pattern of the class ``label``, drawn from ``draw``."""
        variants = self.phases.shape[1]
        return label * variants + int(torch.randint(0, variants, (), generator=draw))

    @torch.no_grad()
    def match(self, x: Tensor) -> Match:
        """The pattern on each image, at the place to which a crop or flip has moved it.

        The candidates with the highest correlation are taken out on trial. The one that leaves the lowest total
        variation is the match.

        Args:
            x: (B, 1 or 3, H, W) in [0, 1].
        """
        gray = is_gray(x)
        strength = float(self.levels) / 255
        ends = x[:, :: max(1, x.shape[1] - 1)].contiguous()  # one channel of each field
        before = total_variation(self._clipped(ends))
        numbers, shifts = self._candidates(x, gray)
        fields = (self._moved_fields(x, number, shift) for number, shift in zip(numbers, shifts, strict=True))
        signs = (coloured(field, gray, 3)[:, ::2][:, : ends.shape[1]] for field in fields)
        gains = [1 - total_variation(self._clipped(ends - strength * sign)) / before for sign in signs]
        highest, best = torch.stack(gains).max(0)
        rows = torch.arange(len(x), device=x.device)
        return Match(numbers[best, rows], shifts[best, rows], highest, gray)

    def _candidates(self, x: Tensor, gray: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers (CANDIDATES, B) and shifts (CANDIDATES, B, 2) with the highest correlation, highest first."""
        side = min(x.shape[2:])
        top, left = ((length - side) // 2 for length in x.shape[2:])
        contrasts = field_contrasts(contrast(x[:, :, top : top + side, left : left + side]), gray)
        span = 2 * (side // MARGIN) + 1
        _, scales = self._prepared(*x.shape[2:])
        chunk = max(1, _CHUNK // (len(scales) * span**2))
        ranked = []
        for part, without_colour in zip(torch.split(contrasts, chunk), torch.split(gray, chunk), strict=True):
            scale = torch.where(without_colour[:, None], scales[:, 0], scales[:, 1])[..., None, None]
            ranked.append((self._correlations(part, span) * scale).flatten(1).topk(CANDIDATES).indices)
        best = torch.cat(ranked).T
        place = best % span**2
        return best // span**2, torch.stack([place // span, place % span], 2) - span // 2

    def _clipped(self, x: Tensor) -> Tensor:
        strength = float(self.levels) / 255
        return x.clamp(strength, 1 - strength)

    def restore(self, x: Tensor, match: Match) -> Tensor:
        """Images without their patterns, clipped to the range in which both signs have room.

        With ε the strength and s the matched pattern, 0 for images that are not protected:

            restored = clip(x − ε s, ε, 1 − ε)

        Args:
            x: (B, 1 or 3, H, W) in [0, 1].
            match: From :meth:`match`.

        Returns:
            Same shape; the clipped original, for a protected image with its own pattern.
        """
        strength = float(self.levels) / 255 * self.marked(match)
        signs = coloured(self._moved_fields(x, match.numbers, match.shifts), match.gray, x.shape[1])
        return self._clipped(x - strength[:, None, None, None] * signs)

    def marked(self, match: Match) -> Tensor:
        """True for images that were protected with this key, (B,) bool."""
        return match.gains > THRESHOLD

    def _moved_fields(self, x: Tensor, numbers: Tensor, shifts: Tensor) -> Tensor:
        """Fields of patterns at their places over the images: (B, FIELDS, H, W) of +1 and -1, like ``x``."""
        fields, _ = self._prepared(*x.shape[2:])
        down, across = (
            torch.arange(length, device=x.device) + (whole - length) // 2 + shift[:, None]
            for length, whole, shift in zip(x.shape[2:], fields.shape[2:], shifts.unbind(1), strict=True)
        )
        places = numbers[:, None, None] * fields[0, 0].numel() + down[:, :, None] * fields.shape[3] + across[:, None]
        return torch.stack([field.flatten()[places].to(x.dtype) for field in fields], 1)

    def _correlations(self, contrasts: Tensor, span: int) -> Tensor:
        """Correlation of (B, FIELDS, side, side) with every pattern at span × span places: (B, patterns, span, span).

        With z the contrasts and m, n a shift, summed over fields, waves and pixels:

            c(m, n) = Σ z(x, y) · cos(2π a (x − ½ + m)) · cos(2π d (y + n) + φ)

        The waves stand for their sign. So cos(α + β) = cos α cos β − sin α sin β gives all phases and places from four
        products of each wave with the image.
        """
        side = contrasts.shape[2]
        waves = 2 * math.pi * self.waves.to(contrasts.dtype)
        x, y = _coordinates(side, side, 0, contrasts)
        across = waves[..., 0, None]
        down = waves[..., 1, None]
        rows = torch.einsum("bfyx,kftix->bkftiy", contrasts, _quadratures(across * x))
        products = torch.einsum("bkftiy,kftjy->bkftij", rows, _quadratures(down * y))
        shift = torch.arange(span, device=contrasts.device, dtype=contrasts.dtype).sub(span // 2) / side
        right = _quadratures(across * shift)
        below = _quadratures(down[:, None] * shift + self.phases[..., None].to(contrasts.dtype))
        signs = torch.tensor([1.0, -1.0], device=contrasts.device, dtype=contrasts.dtype)
        shifted = torch.einsum("bkftij,kftid,i,j->bkftjd", products, right, signs, signs)
        return torch.einsum("bkftjd,kvftje->bkved", shifted, below).flatten(1, 2)

    def _prepared(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Fields of all patterns with a margin, (FIELDS, patterns, …), and scales of correlations, (patterns, 2).

        A scale is 1 over a pattern's correlation with itself, first for images without colours, then with colours.
        """
        secrets = (self.waves, self.phases, self.levels)
        state = (
            height,
            width,
            *((secret.device, secret.dtype, secret.is_inference() or secret._version) for secret in secrets),
        )
        if self._cache is None or self._cache[0] != state:  # One size at a time is in use.
            side = min(height, width)
            with torch.inference_mode(False), torch.no_grad():
                scales = [1 / self._own_correlations(side, gray) for gray in (True, False)]
                fields = self.patterns(height, width, margin=side // MARGIN).transpose(0, 1).contiguous()
            self._cache = state, fields, torch.stack(scales, 1)
        return self._cache[1], self._cache[2]

    def _own_correlations(self, side: int, gray: bool) -> Tensor:
        parts = []
        for numbers in torch.split(torch.arange(self.phases[..., 0, 0].numel(), device=self.waves.device), 64):
            without_colour = torch.full(numbers.shape, gray, device=numbers.device)
            fields = self.patterns(side, side, numbers=numbers).to(self.waves.dtype)
            contrasts = field_contrasts(contrast(coloured(fields, without_colour, 3)), without_colour)
            parts.append(self._correlations(contrasts, 1)[torch.arange(len(numbers)), numbers, 0, 0])
        return torch.cat(parts)


def coloured(fields: Tensor, gray: Tensor, channels: int) -> Tensor:
    """Fields (B, FIELDS, H, W) of +1 and -1 as channels (B, 1 or 3, H, W); images without colours stay gray.

    Args:
        fields: Of one pattern for each image.
        gray: (B,) bool, True for images without colours.
        channels: 1 or 3.
    """
    first, second = fields.unbind(1)
    second = torch.where(gray[:, None, None], first, second)
    return torch.stack([first, first, second][:channels], 1)


def is_gray(x: Tensor) -> Tensor:
    """True for images (B, channels, H, W) without colours, (B,) bool."""
    return (x.amax(1) == x.amin(1)).flatten(1).all(1)


def highest_frequency(size: int) -> float:
    """Highest frequency of a wave, in cycles along a side of ``size`` pixels; the lowest is half of it."""
    return min(16.0, size / 4)


def _coordinates(length: int, side: int, margin: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates of pixels in parts of the centre square's side: from its middle, and from its corner."""
    corner = (torch.arange(-margin, length + margin, device=like.device) - (length - side) // 2 + 0.5) / side
    return (corner - 0.5).to(like.dtype), corner.to(like.dtype)


def _quadratures(angles: Tensor) -> Tensor:
    return torch.stack([angles.cos(), angles.sin()], -2)


def field_contrasts(x: Tensor, gray: Tensor) -> Tensor:
    """Contrast of each field, (B, FIELDS, H, W), from that of each channel.

    With r, g, b the channels, brightness l = (r + g + b) / 3 and colour c = (r + g) / 2 − b, the fields are
    ⅔ l + 6 c and ⅓ l − 6 c. Images without colours have l and 0.

    Args:
        x: (B, 1 or 3, H, W), from :func:`contrast`.
        gray: (B,) bool, True for images without colours.
    """
    brightness = x.mean(1)
    colour = x[:, :2].mean(1) - x[:, -1]
    without_colour = gray[:, None, None]
    first = torch.where(without_colour, brightness, 2 / 3 * brightness + _COLOUR_WEIGHT * colour)
    second = (brightness / 3 - _COLOUR_WEIGHT * colour).masked_fill(without_colour, 0.0)
    return torch.stack([first, second], 1)


def total_variation(x: Tensor) -> Tensor:
    """Mean difference of neighbouring pixels, (B,), never 0."""
    return x.diff(dim=2).abs().mean((1, 2, 3)) + x.diff(dim=3).abs().mean((1, 2, 3)) + 1e-6


def contrast(x: Tensor) -> Tensor:
    """Square images less the mean around each pixel, over about the longest wave."""
    place = torch.arange(x.shape[2], device=x.device)
    radius = max(1, round(len(place) / highest_frequency(len(place))))
    near = ((place[:, None] - place).abs() <= radius).to(x.dtype)
    mean = near / near.sum(1, keepdim=True)
    return x - mean @ x @ mean.T


def _distinct_waves(classes: int, highest: float, generator: torch.Generator) -> Tensor:
    """Waves of each class, different for any two classes: (classes, terms, 2) cycles per side across and down."""
    steps = torch.linspace(highest / 2, highest, STEPS, device="cpu")
    pairs = torch.cartesian_prod(steps, steps)
    terms = next(count for count in range(1, len(pairs)) if math.comb(len(pairs), count) >= classes)
    choices: dict[tuple[int, ...], None] = {}
    while len(choices) < classes:
        choice = torch.randperm(len(pairs), generator=generator, device="cpu")[:terms]
        choices[tuple(sorted(choice.tolist()))] = None
    waves = torch.stack([pairs[list(choice)] for choice in choices])
    return waves + highest / 2 * JITTER * (2 * torch.rand(waves.shape, generator=generator, device="cpu") - 1)
