"""Visible change of a protection, measured on pairs of original and published pixels as they stream by.

For any folder whose originals are at hand. Memory grows with the number of classes, not of images.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import fft2

from uge.data.images import Pixels
from uge.errors import DataError
from uge.files import staged_folder, write_json
from uge.publishing.quality import SSIM_SAMPLE, Tally, colours, compare

SIDE = 64  # Largest side of the square in the middle of each image that spectra and class means are taken of.
DECADES = 4.0  # Powers of ten that the picture of the spectrum spans, from the strongest frequency down.
Array = NDArray[np.float64]
Pair = tuple[int, Pixels, Pixels]
"""Label, original and published pixels (uint8, height × width × channels) of an image."""
_VALUES = 256 * 32 * 32 * 3  # Pixel values of the originals that are measured together.


@dataclass
class Quality:
    """Running sums over pairs.

    Attributes:
        classes: Names of the classes; labels are indices into them.
        tally: PSNR, SSIM and L-infinity.
        stride: SSIM is measured on every so many-th pair.
        skipped: Pairs whose two images differ in size or channels.
        side: Side of the square, from the first pair.
        noise: Sum over images of the mean power of the noise per frequency, in levels².
        image: The same of the originals.
        energy: Sum of squared changes within the squares.
        sums: Sum of the changes per class, side × side × 3, in levels.
        counts: Images per class that are at least as large as the square.
    """

    classes: Sequence[str]
    tally: Tally = field(default_factory=Tally)
    stride: int = 1
    skipped: int = 0
    side: int = 0
    noise: Array = field(default_factory=lambda: np.zeros(()))
    image: Array = field(default_factory=lambda: np.zeros(()))
    energy: int = 0
    sums: dict[int, NDArray[np.int32]] = field(default_factory=dict)
    counts: Counter[int] = field(default_factory=Counter)

    def add(self, pairs: Sequence[Pair]) -> None:
        """Measure several pairs, together where they have one shape: small images take half the time then.

        Raises:
            DataError: A label is no class.
        """
        for label, _, _ in pairs:
            if not 0 <= label < len(self.classes):
                raise DataError(f"expected a label below {len(self.classes)}, got {label}; check the folder's labels")
        alike = [pair for pair in pairs if pair[1].shape == pair[2].shape]
        self.skipped += len(pairs) - len(alike)
        sampled = [(self.tally.changes + place) % self.stride == 0 for place in range(len(alike))]
        for (_, original, published), wanted in zip(alike, sampled, strict=True):
            self.tally.add(compare(original, published, wanted))
        while len(self.tally.ssims) > SSIM_SAMPLE:
            # SSIM is slow. The number of pairs is not known; every second sample keeps the rest evenly spread.
            self.tally.ssims = self.tally.ssims[::2]
            self.stride *= 2
        if alike and not self.side:
            self.side = min(SIDE, *alike[0][1].shape[:2])
        large = [pair for pair in alike if min(pair[1].shape[:2]) >= self.side]
        for channels in (1, 3):
            self._add_squares([pair for pair in large if colours(pair[1]).shape[2] == channels])

    def _add_squares(self, pairs: Sequence[Pair]) -> None:
        # Add spectra and class means of pairs with one number of channels, at least as large as the square.
        if not pairs:
            return
        labels = np.array([label for label, _, _ in pairs])
        clean = np.stack([_middle(colours(original), self.side) for _, original, _ in pairs])
        ours = np.stack([_middle(colours(published), self.side) for _, _, published in pairs])
        change = ours.astype(np.int32) - clean
        self.noise = self.noise + _power(change)
        self.image = self.image + _power(clean)
        self.energy += int(np.square(change).sum()) * (3 // change.shape[3])
        for label in np.unique(labels).tolist():
            own = change[labels == label].sum(0, dtype=np.int32)  # A gray change counts in all three channels.
            self.sums[label] = self.sums.get(label, np.zeros((self.side, self.side, 3), np.int32)) + own
        self.counts.update(labels.tolist())

    def shared(self) -> float | None:
        """Share of the noise's energy, 0 to 1, that is the same in all images of a class; None without noise."""
        if not self.energy:
            return None
        same = sum(float(np.square(total, dtype=np.float64).sum()) / self.counts[k] for k, total in self.sums.items())
        return min(1.0, same / self.energy)


def _middle(pixels: Pixels, side: int) -> Pixels:
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def _power(values: NDArray[Any]) -> Array:
    """Sum over images of the mean over channels of the power at each frequency, the constant in the middle.

    The mean of an image is taken out, and a window fades it towards its edges.

    Args:
        values: images × side × side × channels.
    """
    side = values.shape[1]
    # The periodic Hann window: without it the jump between opposite edges would fill the whole spectrum.
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(side) / side) if side > 2 else np.ones(side)
    window = window[:, None] * window
    values = values.astype(np.float32)
    values = (values - values.mean(axis=(1, 2), keepdims=True)) * window[..., None].astype(np.float32)
    spectrum = fft2(values, axes=(1, 2))
    power = (spectrum.real**2 + spectrum.imag**2).sum(axis=(0, 3), dtype=np.float64)
    return np.asarray(np.fft.fftshift(power / (values.shape[3] * np.square(window).sum())))


def radial(power: Array) -> tuple[list[float], list[float]]:
    """Average of a centred power spectrum over rings of one frequency.

    Args:
        power: side × side, the constant at [side // 2, side // 2].

    Returns:
        Frequencies in cycles per pixel (0 to 0.5) and the mean power of each ring.
    """
    side = len(power)
    offset = np.arange(side) - side // 2
    ring = np.rint(np.hypot(offset[:, None], offset)).astype(int)
    inside = ring <= side // 2
    total, count = (np.bincount(ring[inside], weights) for weights in (power[inside], None))
    return [float(r) / side for r in range(len(count))], (total / np.maximum(count, 1)).tolist()


def _groups_of_equal_memory(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    group: list[Pair] = []
    values = 0
    for pair in pairs:
        group.append(pair)
        values += pair[1].size
        if values >= _VALUES:
            yield group
            group = []
            values = 0
    if group:
        yield group


def write_quality(folder: Path, pairs: Iterable[Pair], classes: Sequence[str]) -> dict[str, Any] | None:
    """Measure pairs and write ``folder/quality/`` (docs/formats.md, "Quality").

    Args:
        folder: The audit folder.
        pairs: Of originals and published images.
        classes: Names of the classes.

    Returns:
        Contents of ``quality.json``; ``None``, with nothing written, if there was no pair to compare.

    Raises:
        DataError: A label is no class.
        StorageError: The disk is full or read-only.
    """
    quality = Quality(classes)
    for group in _groups_of_equal_memory(pairs):
        quality.add(group)
    if not quality.tally.changes:
        return None
    figures: dict[str, Any] = {
        "schema": 1,
        "images": quality.tally.changes,
        "skipped": quality.skipped,
        **quality.tally.measured().model_dump(),
        "class_share": quality.shared(),
        "class_share_by_chance": len(quality.counts) / quality.counts.total() if quality.counts else None,
        "side": quality.side,
        "spectrum": None,
        "class_means": [],
    }
    with staged_folder(folder / "quality", overwrite=True) as stage:
        if quality.energy:
            figures["spectrum"] = _write_spectrum(stage, quality)
            figures["class_means"] = _write_means(stage, quality)
        write_json(stage / "quality.json", figures)
    return figures


def _write_spectrum(folder: Path, quality: Quality) -> dict[str, Any]:
    noise = quality.noise / quality.counts.total()
    frequencies, power = radial(noise)
    top = math.log10(max(float(noise.max()), 1e-12))  # One constant change everywhere has no spectrum at all.
    shown = (np.log10(np.maximum(noise, 1e-12)) - top + DECADES) / DECADES
    Image.fromarray(np.rint(255 * shown.clip(0, 1)).astype(np.uint8)).save(folder / "spectrum.png")
    return {
        "file": "spectrum.png",
        "decades": DECADES,
        "frequency": [round(value, 6) for value in frequencies],
        "noise": [float(f"{value:.6g}") for value in power],
        "image": [float(f"{value:.6g}") for value in radial(quality.image / quality.counts.total())[1]],
    }


def _write_means(folder: Path, quality: Quality) -> list[dict[str, Any]]:
    means = {label: quality.sums[label] / quality.counts[label] for label in sorted(quality.sums)}
    # One scale for all: a class whose mean is weak should look weak.
    scale = max(float(np.abs(mean).max()) for mean in means.values()) or 1.0
    entries = []
    for label, mean in means.items():
        name = f"class-{label:04d}.png"
        Image.fromarray(np.rint(128 + 127 * mean / scale).astype(np.uint8)).save(folder / name)
        entries.append(
            {
                "class": quality.classes[label],
                "file": name,
                "images": quality.counts[label],
                "largest_levels": round(float(np.abs(mean).max()), 4),
                "white_levels": round(scale, 4),
            }
        )
    return entries
