"""Distances between published images and their originals: L-infinity, PSNR, SSIM, and their sums over a data set.

All functions take uint8 arrays of one shape, height × width × channels, and measure the colour channels only.
Alpha must not change at all, which the writer and the verification check.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from uge.data.images import Pixels
from uge.publishing.manifest import Measured

SSIM_SAMPLE = 1000


def ssim(clean: Pixels, published: Pixels) -> float | None:
    """Mean structural similarity (Wang et al., 2004), −1 to 1, 1 for equal images.

    With the means μ, variances σ² and covariance σ₁₂ of a window, SSIM = (2 μ₁ μ₂ + C₁)(2 σ₁₂ + C₂) /
    ((μ₁² + μ₂² + C₁)(σ₁² + σ₂² + C₂)), C₁ = (0.01 · 255)² and C₂ = (0.03 · 255)². Windows are uniform, 7 × 7 or the
    largest odd square that fits. The value is scikit-image's, which takes three times as long for small images.

    Returns:
        The mean over window positions and channels; ``None`` for images less than 3 pixels high or wide.
    """
    from scipy.ndimage import uniform_filter1d

    side = min(clean.shape[:2])
    if side < 3:
        return None
    window = min(7, side - (side + 1) % 2)
    a, b = (np.ascontiguousarray(colours(pixels).transpose(2, 0, 1), np.float32) for pixels in (clean, published))
    means = np.stack([a, b, a * a + b * b, a * b])
    for axis in (2, 3):
        means = uniform_filter1d(means, window, axis)
    inside = slice(window // 2, -(window // 2))
    mean_a, mean_b, squares, products = means[..., inside, inside]
    unbiased = window**2 / (window**2 - 1)
    variances = unbiased * (squares - mean_a * mean_a - mean_b * mean_b)
    covariance = unbiased * (products - mean_a * mean_b)
    c1 = (0.01 * 255) ** 2
    c2 = (0.03 * 255) ** 2
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    denominator = (mean_a * mean_a + mean_b * mean_b + c1) * (variances + c2)
    return float((numerator / denominator).mean(dtype=np.float64))


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
    """

    levels: int
    squared: int
    changed: int
    shape: tuple[int, ...]
    constant: bool
    ssim: float | None = None

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio 10 · log10(255² / MSE) in dB; infinite if nothing changed."""
        values = self.shape[0] * self.shape[1] * (1 if self.shape[2] <= 2 else 3)
        return 10 * math.log10(255**2 * values / self.squared) if self.squared else math.inf


def compare(clean: Pixels, published: Pixels, with_ssim: bool = False) -> Change:
    """Distance of one image.

    Args:
        clean: The original.
        published: The published image, in the same shape.
        with_ssim: True where SSIM, the slow part, is to be measured.
    """
    before = colours(clean)
    after = colours(published)
    difference = np.maximum(before, after) - np.minimum(before, after)
    touched = difference[..., 0]
    for channel in range(1, difference.shape[2]):
        touched = touched | difference[..., channel]
    flat = difference.ravel().astype(np.float64)  # Sums of squared levels are exact below 2⁵³.
    return Change(
        levels=int(flat.max()),
        squared=int(flat @ flat),
        changed=int(np.count_nonzero(touched)),
        shape=clean.shape,
        constant=is_constant(published),
        ssim=ssim(clean, published) if with_ssim else None,
    )


def is_constant(pixels: Pixels) -> bool:
    """True for an image of one single colour (all black included)."""
    first = pixels[:1, :1]
    # Nearly every other image differs in two corners already, which are compared without NumPy's overhead.
    return bool(pixels[0, 0].tobytes() == pixels[-1, -1].tobytes() and (pixels == first).all())


@dataclass
class Tally:
    """Running sums over a data set, in its order."""

    changes: int = 0
    levels: int = 0
    touched: int = 0
    pixels: int = 0
    constant: int = 0
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
        if change.squared:
            self.psnrs.append(change.psnr)
        if change.ssim is not None:
            self.ssims.append(change.ssim)

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
