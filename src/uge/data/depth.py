"""Range of values that a set uses: 12-bit images in 16-bit files would be published nearly black."""

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar

import numpy as np

from uge.data.images import ImageSet, Pixels
from uge.errors import DataError

logger = logging.getLogger(__name__)

DARK = 64
"""Brightest value, of 255, up to which a set counts as nearly black: a quarter of the range, as of 14 bits in 16."""
_SCALED: ContextVar[list[bool] | None] = ContextVar("scaled", default=None)


def note_scaled() -> None:
    """Note that the image that is being read was scaled to 8 bits from wider values."""
    scaled = _SCALED.get()
    if scaled is not None:
        scaled.append(True)


@contextlib.contextmanager
def _scaling() -> Iterator[list[bool]]:
    scaled: list[bool] = []
    token = _SCALED.set(scaled)
    try:
        yield scaled
    finally:
        _SCALED.reset(token)


def probed(images: ImageSet, count: int = 64) -> Iterator[Pixels]:
    """Up to ``count`` images spread evenly over a set; at their end the range of values that the set uses is checked.

    Raises:
        DataError: Images of more than 8 bits, or of floats, use a quarter of their range at most.
    """
    brightest: dict[bool, int] = {}  # By True for images that were scaled to 8 bits.
    for row in np.unique(np.linspace(0, len(images) - 1, count).astype(np.int64)).tolist():
        pixels, scaled = _read(images, row)
        brightest[scaled] = max(brightest.get(scaled, 0), _brightest(pixels))
        yield pixels
        del pixels  # Not kept while the next one is read.
    if brightest.get(True, 255) <= DARK and not any(_is_bright_and_scaled(images, row) for row in range(len(images))):
        raise DataError(
            f"{images.name} ({images.split}): images of more than 8 bits reach {brightest[True]} of 255 at most, as "
            "images of 10 to 14 bits in 16 do, or floats that were scaled twice; scale them to the whole range first"
        )
    warn_if_dark(images.name, images.split, max(brightest.values(), default=255))


def warn_if_dark(name: str, split: str, brightest: int) -> None:
    """Warn of a set with images that are nearly black.

    Args:
        name: Name of the set.
        split: Its split.
        brightest: Largest value of a colour in the images looked at, of 255.
    """
    if brightest <= DARK:
        logger.warning(
            "%s (%s) is nearly black: the brightest value of the images looked at is %d of 255. PSNR refers to 255",
            name,
            split,
            brightest,
        )


def _is_bright_and_scaled(images: ImageSet, row: int) -> bool:
    pixels, scaled = _read(images, row)
    return scaled and _brightest(pixels) > DARK


def _read(images: ImageSet, row: int) -> tuple[Pixels, bool]:
    with _scaling() as scaled:
        pixels = images.read(row)
        return pixels, bool(scaled)


def _brightest(pixels: Pixels) -> int:
    colour = 1 if pixels.shape[2] <= 2 else 3
    return int(pixels[:, :, :colour].max())
