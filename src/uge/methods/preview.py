"""Previews in place of images: pixelated, blank, blurred or noisy, without any bound on the change. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from uge.budget import Budget
from uge.data.images import Pixels
from uge.errors import UnknownNameError, UsageError
from uge.methods.base import Earlier, ImagesInfo, Method, MethodSettings, Perturbation, Task

if TYPE_CHECKING:
    from uge.methods.uge.generator import Levels

WHOLE = Budget(1.0)
"""The budget that is no bound: any value may become any other."""

Random = np.random.Generator
View = Callable[[Pixels, int, Random], Pixels]
"""From colour channels (height × width × 1 or 3), the training size and a source of random numbers to the preview."""


def pixelated(pixels: Pixels, cells: int) -> Pixels:
    """Square cells of their mean colour, ``cells`` along the shorter side; an image with fewer pixels stays.

    Args:
        pixels: uint8, height × width × (1 or 3).
        cells: Cells along the shorter side.
    """
    height, width = pixels.shape[:2]
    scale = min(height, width) / cells
    if scale <= 1:
        return pixels
    whole = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    small = whole.resize((max(1, round(width / scale)), max(1, round(height / scale))), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST)).reshape(pixels.shape)


def blurred(pixels: Pixels, sigma: float) -> Pixels:
    """Gaussian blur of ``sigma`` pixels; borders are continued.

    Args:
        pixels: uint8, height × width × (1 or 3).
        sigma: Standard deviation in pixels of this image.
    """
    from scipy.ndimage import gaussian_filter

    out = np.empty_like(pixels)
    for channel in range(pixels.shape[2]):
        smooth = gaussian_filter(pixels[..., channel].astype(np.float32), sigma, mode="nearest")
        out[..., channel] = np.rint(smooth).clip(0, 255)
    return out


def noisy(pixels: Pixels, deviation: float, cell: float, draw: Random) -> Pixels:
    """Normal noise, the same for all pixels of a cell.

    Args:
        pixels: uint8, height × width × (1 or 3).
        deviation: Standard deviation in [0, 1] units.
        cell: Side of a cell in pixels; cells are at least one pixel.
        draw: Source of the noise.
    """
    height, width, channels = pixels.shape
    places = [np.minimum((np.arange(length) / max(1.0, cell)).astype(int), length - 1) for length in (height, width)]
    noise = draw.normal(0, 255 * deviation, (places[0][-1] + 1, places[1][-1] + 1, channels)).astype(np.float32)
    out: Pixels = np.rint(pixels + noise[places[0]][:, places[1]]).clip(0, 255).astype(np.uint8)
    return out


def _scale(pixels: Pixels, size: int) -> float:
    # Pixels of the image in one pixel of training.
    return float(min(pixels.shape[:2])) / size


KINDS: dict[str, tuple[View, str]] = {
    "pixel8": (lambda pixels, size, draw: pixelated(pixels, 8), "pixelated to 8 pixels along the shorter side"),
    "pixel16": (lambda pixels, size, draw: pixelated(pixels, 16), "pixelated to 16 pixels along the shorter side"),
    "blank": (lambda pixels, size, draw: np.full_like(pixels, 128), "blank: one gray, and nothing of the picture"),
    "blur2": (
        lambda pixels, size, draw: blurred(pixels, 2 * _scale(pixels, size)),
        "blurred by a Gaussian of 2 pixels of the training size",
    ),
    "noise0.1": (
        lambda pixels, size, draw: noisy(pixels, 0.1, _scale(pixels, size), draw),
        "with normal noise of deviation 0.1 on every pixel of the training size",
    ),
}
"""Previews by name, and what they show."""
RELATIVE = ("blur2", "noise0.1")
"""Previews that depend on the training size."""
SIZE = 64
"""Training size of the others where images have no size in common and none is given."""


@dataclass
class Previewer:
    """Gives the change from any image to its preview (a ``Perturber``).

    Attributes:
        kind: A name in :data:`KINDS`.
        size: Training size in pixels, which blur and noise are relative to.
        seed: Root of the noise.
        budget: No bound: 255 levels.
    """

    kind: str
    size: int
    seed: int
    budget: Budget = WHOLE

    def numbers(self, names: Sequence[str]) -> list[int]:
        """Numbers of classes, which mean nothing here."""
        return list(range(len(names)))

    def levels(self, images: Sequence[Pixels], labels: Sequence[int], ids: Sequence[str]) -> Iterator[Levels]:
        """Change of each image to its preview at its own size, in whole 8-bit levels; alpha gets none.

        Args:
            images: uint8, height × width × (1 to 4).
            labels: Not used.
            ids: Stable sample ids, by which noise is drawn.

        Yields:
            int16, of each image's shape.
        """
        view, _ = KINDS[self.kind]
        for image, name in zip(images, ids, strict=True):
            colours = image[..., : 1 if image.shape[2] < 3 else 3]
            change: NDArray[np.int16] = np.zeros(image.shape, np.int16)
            preview = view(colours, self.size, self._draw(name))
            change[..., : colours.shape[2]] = preview.astype(np.int16) - colours
            yield change

    def _draw(self, name: str) -> Random:
        from uge.runtime import stream_seed

        return np.random.default_rng(stream_seed(self.seed, "preview", name))


class Preview(Method):
    """Replaces images by previews at their own size.

    A control: a bounded perturbation that holds back less than a preview of the same quality is worth nothing.
    """

    name = "preview"
    about = (
        "every image is replaced by a pixelated, blank, blurred or noisy preview (--baseline.kind), without any bound"
    )
    reads_store = False
    trains = False
    needs_classes = False
    has_options = True

    def budget(self, settings: MethodSettings) -> Budget:
        """255 levels, since nothing is bounded; :meth:`check` refuses any other."""
        return WHOLE if settings.rho is None else super().budget(settings)

    def check(self, settings: MethodSettings) -> None:
        """Refuse a budget, which would clip the preview, and unknown kinds.

        Raises:
            UsageError: A budget or another setting than ``kind`` is given.
            UnknownNameError: There is no such kind.
        """
        super().check(settings)
        if settings.rho is not None:
            raise UsageError(f"method 'preview' bounds nothing, got --rho {settings.rho}; leave it out")
        preview_kind(settings.baseline)

    def perturb(self, task: Task) -> Perturbation:
        """Previews of any images."""
        kind = preview_kind(task.settings.baseline)
        info = ImagesInfo.of(task.images)
        wanted = task.settings.size
        if wanted is None and info.native_size is None and kind not in RELATIVE:
            wanted = SIZE
        size = info.training_size(wanted)
        shown = KINDS[kind][1]
        details = {
            "about": f"previews in place of the images, {shown}",
            "preview": shown,
            "norm": "none",
            "scope": "sample",
            "linf_claimed": False,
            "settings": {"kind": kind},
            "training_size": size,
        }
        return Perturbation(WHOLE, Previewer(kind, size, task.settings.seed), details=details)

    def check_adding(self, settings: MethodSettings, earlier: Earlier) -> None:
        """Accept every run: a preview shows its own image alone."""

    def add(self, task: Task, earlier: Earlier) -> Perturbation:
        """Previews of further images."""
        return self.perturb(task)


def preview_kind(options: Mapping[str, Any]) -> str:
    """Kind of preview from settings, ``pixel16`` by default.

    Raises:
        UnknownNameError: There is no such setting, or no such kind.
    """
    for name in options:
        if name != "kind":
            raise UnknownNameError("setting of the method preview", name, ["kind"])
    kind = str(options.get("kind", "pixel16"))
    if kind not in KINDS:
        raise UnknownNameError("preview", kind, KINDS)
    return kind
