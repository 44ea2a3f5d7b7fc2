"""Distances between published images and their originals: L-infinity, PSNR, SSIM, and their sums over a data set.

All functions take uint8 arrays of one shape, height × width × channels, and measure the colour channels only.
Alpha must not change at all, which the writer and the verification check.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from uge.data.images import Pixels, Strips, strips_of
from uge.publishing.manifest import Measured

SSIM_SAMPLE = 1000


def ssim(clean: Pixels | Strips, published: Pixels | Strips) -> float | None:
    """Mean structural similarity (Wang et al., 2004), −1 to 1, 1 for equal images.

    With the means μ, variances σ² and covariance σ₁₂ of a window, SSIM = (2 μ₁ μ₂ + C₁)(2 σ₁₂ + C₂) /
    ((μ₁² + μ₂² + C₁)(σ₁² + σ₂² + C₂)), C₁ = (0.01 · 255)² and C₂ = (0.03 · 255)². Windows are uniform, 7 × 7 or the
    largest odd square that fits. The value is scikit-image's, which takes three times as long for small images.

    Returns:
        The mean over window positions and channels; ``None`` for images less than 3 pixels high or wide.
    """
    return compare(clean, published, with_ssim=True).ssim


class _Similarity:
    """Sum of SSIM over an image that comes strip by strip."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        side = min(shape[:2])
        self.window = min(7, side - (side + 1) % 2)
        self._total = 0.0
        self._count = 0
        self._rows: list[Pixels] = []

    @property
    def mean(self) -> float | None:
        """Mean of all windows; None where none fits."""
        return self._total / self._count if self._count else None

    def add(self, clean: Pixels, published: Pixels) -> None:
        """Add the windows that end in these rows, which stand below those before."""
        pair = [clean, published]
        if self._rows:
            pair = [np.concatenate(rows) for rows in zip(self._rows, pair, strict=True)]
        self._rows = [rows[1 - self.window :].copy() for rows in pair]
        if self.window >= 3 and len(pair[0]) >= self.window:
            values = _similarities(pair[0], pair[1], self.window)
            self._total += float(values.sum(dtype=np.float64))
            self._count += values.size


def _similarities(clean: Pixels, published: Pixels, window: int) -> NDArray[np.float32]:
    """SSIM of every window. Sums of levels are whole numbers, so they do not depend on how an image is divided."""
    height, width, channels = clean.shape
    a, b = (np.ascontiguousarray(pixels, np.int32).reshape(height, -1) for pixels in (clean, published))
    sums = np.stack([a, b, a * a + b * b, a * b])
    sums = _sums_of(sums, height, window, axis=1, step=1)
    sums = _sums_of(sums, width, window, axis=2, step=channels)
    count = window**2
    sum_a, sum_b, squares, products = sums
    both = sum_a * sum_b
    each = sum_a * sum_a
    each += sum_b * sum_b
    # Everything is count² times as large as in the formula, and variances are unbiased.
    unbiased = np.float32(count / (count - 1))
    c1 = np.float32((0.01 * 255) ** 2 * count**2)
    c2 = np.float32((0.03 * 255) ** 2 * count**2)
    covariance = (count * products - both).astype(np.float32)
    variances = (count * squares - each).astype(np.float32)
    numerator = (2 * both.astype(np.float32) + c1) * (2 * unbiased * covariance + c2)
    values: NDArray[np.float32] = numerator / ((each.astype(np.float32) + c1) * (unbiased * variances + c2))
    return values


def _sums_of(values: NDArray[np.int32], length: int, window: int, *, axis: int, step: int) -> NDArray[np.int32]:
    """Sums of ``window`` neighbours, ``step`` values apart, along an axis of ``length`` steps."""
    size = (length - window + 1) * step
    parts = [values[(slice(None),) * axis + (slice(place * step, place * step + size),)] for place in range(window)]
    total = parts[0] + parts[1]
    for part in parts[2:]:
        total += part
    return total


def ssim_positions(count: int) -> frozenset[int]:
    """Positions of the images that SSIM is measured on: one in fifty, at least 50 (or all), at most 1000."""
    size = min(count, SSIM_SAMPLE, max(50, count // 50))
    return frozenset(np.linspace(0, count - 1, size).round().astype(int).tolist())


@dataclass(frozen=True)
class Change:
    """Distance of one image from its original.

    Attributes:
        levels: Largest change of any colour value, in 8-bit levels.
        squared: Sum of squared differences, in squared levels.
        changed: Number of pixel positions where any colour channel changed.
        shape: Height × width × channels.
        constant: True for a published image of one single colour.
        ssim: Structural similarity; None where it was not measured or the image is too small.
        same_alpha: True unless an alpha channel changed.
        brightest: Largest colour value of the published image, in 8-bit levels.
    """

    levels: int
    squared: int
    changed: int
    shape: tuple[int, ...]
    constant: bool
    ssim: float | None = None
    same_alpha: bool = True
    brightest: int = 255

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio 10 · log10(255² / MSE) in dB; infinite if nothing changed."""
        values = self.shape[0] * self.shape[1] * (1 if self.shape[2] <= 2 else 3)
        return 10 * math.log10(255**2 * values / self.squared) if self.squared else math.inf


def compare(clean: Pixels | Strips, published: Pixels | Strips, with_ssim: bool = False) -> Change:
    """Distance of one image; of a large one strip by strip.

    Args:
        clean: The original.
        published: The published image, in the same shape.
        with_ssim: True where SSIM, the slow part, is to be measured.
    """
    shape = clean.shape
    levels = 0
    squared = 0
    changed = 0
    constant = True
    same_alpha = True
    similarity = _Similarity(shape)
    first = None
    brightest = 0
    for before, after in zip(strips_of(clean), strips_of(published), strict=True):
        first = after[:1, :1] if first is None else first
        constant = constant and _has_one_colour(after, first)
        if shape[2] in (2, 4):
            same_alpha = same_alpha and np.array_equal(before[..., -1], after[..., -1])
        before = colours(before)
        after = colours(after)
        brightest = max(brightest, int(after.max()))
        difference = np.maximum(before, after) - np.minimum(before, after)
        touched = difference[..., 0]
        for channel in range(1, difference.shape[2]):
            touched = touched | difference[..., channel]
        flat = difference.ravel().astype(np.float64)  # Sums of squared levels are exact below 2⁵³.
        levels = max(levels, int(flat.max()))
        squared += int(flat @ flat)
        changed += int(np.count_nonzero(touched))
        if with_ssim:
            similarity.add(before, after)
    return Change(levels, squared, changed, shape, constant, similarity.mean, same_alpha, brightest)


def unpaired(image: Pixels | Strips) -> Change:
    """Measures of a published image without its original: shape, range, and one colour; no change."""
    constant = True
    first = None
    brightest = 0
    for strip in strips_of(image):
        first = strip[:1, :1] if first is None else first
        constant = constant and _has_one_colour(strip, first)
        brightest = max(brightest, int(colours(strip).max()))
    return Change(0, 0, 0, image.shape, constant, brightest=brightest)


def _has_one_colour(strip: Pixels, colour: Pixels) -> bool:
    # Nearly every image differs in two corners already, which are compared without NumPy's overhead.
    return strip[-1, -1].tobytes() == colour.tobytes() and bool((strip == colour).all())


@dataclass
class Tally:
    """Running sums over a data set, in its order."""

    changes: int = 0
    levels: int = 0
    touched: int = 0
    pixels: int = 0
    constant: int = 0
    brightest: int = 0
    shapes: set[tuple[int, ...]] = field(default_factory=set)
    psnrs: list[float] = field(default_factory=list)
    ssims: list[float] = field(default_factory=list)

    def add(self, change: Change) -> None:
        """Add one image."""
        self.changes += 1
        self.levels = max(self.levels, change.levels)
        self.touched += change.changed
        self.pixels += change.shape[0] * change.shape[1]
        self.shapes.add(change.shape)
        self.constant += change.constant
        self.brightest = max(self.brightest, change.brightest)
        if change.squared:
            self.psnrs.append(change.psnr)
        if change.ssim is not None:
            self.ssims.append(change.ssim)

    def extend(self, other: "Tally") -> None:
        """Add the images of another tally behind those of this one."""
        self.changes += other.changes
        self.levels = max(self.levels, other.levels)
        self.touched += other.touched
        self.pixels += other.pixels
        self.constant += other.constant
        self.brightest = max(self.brightest, other.brightest)
        self.shapes |= other.shapes
        self.psnrs += other.psnrs
        self.ssims += other.ssims

    def measured(self) -> Measured:
        """Figures for the manifest."""
        return Measured(
            linf_levels=self.levels,
            linf=round(self.levels / 255, 6),
            psnr_db=_mean(self.psnrs, 4),
            psnr_min_db=round(min(self.psnrs), 4) if self.psnrs else None,
            ssim=_mean(self.ssims, 6),
            ssim_sample=len(self.ssims),
            changed_pixels=round(self.touched / max(self.pixels, 1), 6),
            unchanged_images=self.changes - len(self.psnrs),
            constant_images=self.constant,
        )


def colours(pixels: Pixels) -> Pixels:
    """Colour channels of height × width × channels: 1 of gray, 3 of RGB; without alpha."""
    return pixels[..., : 1 if pixels.shape[2] <= 2 else 3]


def _mean(values: Sequence[float], digits: int) -> float | None:
    return round(math.fsum(values) / len(values), digits) if values else None
