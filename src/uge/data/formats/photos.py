"""Embedded set ``photos``: patches of photographs that are part of the scikit-image wheel, no network needed.

Each class is one photograph or texture. A photograph is cut into blocks of 64×64 pixels; every fourth
block belongs to the test split, the others to training, and a patch of 32×32 lies inside one block, so
that the two splits share no pixel. Blocks are searched on a grid for the patches with the most structure.
Every patch is toned alike (each channel to one mean and one contrast), so that neither a colour nor a
brightness gives its class away.
"""

import functools
from dataclasses import dataclass
from importlib import resources

import numpy as np
from PIL import Image

from uge.data.formats.base import Splits, image_set
from uge.data.images import ImageSet, Pixels
from uge.data.pixels import decode, to_channels
from uge.errors import DataError

SIZE = 32
BLOCK = 64
STEP = 4
COUNTS = {"train": 700, "test": 100}
MEAN = 128.0  # Mean of every channel of a patch in levels.
CONTRAST = 35.0  # Standard deviation of every channel of a patch in levels.
LEAST = 4.0  # Standard deviation in levels below which a channel is not stretched further.

# Class → file in scikit-image's data folder, and the factor by which it is shrunk so that a patch shows something.
PHOTOS = {
    "brick": ("brick.png", 2),
    "camera": ("camera.png", 1),
    "cat": ("chelsea.png", 1),
    "coffee": ("coffee.png", 1),
    "coins": ("coins.png", 1),
    "galaxies": ("hubble_deep_field.jpg", 1),
    "grass": ("grass.png", 1),
    "gravel": ("gravel.png", 1),
    "motorcycle": ("motorcycle_left.png", 1),
    "tissue": ("ihc.png", 1),
}


def splits() -> Splits:
    """Training and test split."""
    return {split: functools.partial(_open, split) for split in COUNTS}


def _open(split: str) -> ImageSet:
    labels = np.arange(COUNTS[split] * len(PHOTOS), dtype=np.int64) % len(PHOTOS)
    return image_set("photos", split, labels, list(PHOTOS), PatchReader(split))


@dataclass(frozen=True)
class PatchReader:
    """Cuts patches out of the photographs; their pixels stay in memory (some megabytes)."""

    split: str

    def read(self, row: int) -> Pixels:
        """Patch ``row``: 32 × 32 × 3; classes take turns."""
        place, label = divmod(row, len(PHOTOS))
        name = list(PHOTOS)[label]
        top, left = positions(name, self.split)[place]
        return toned(photograph(name)[top : top + SIZE, left : left + SIZE])


def toned(patch: Pixels) -> Pixels:
    """Patch with every channel at :data:`MEAN` and :data:`CONTRAST`, cut off at black and white."""
    values = patch.astype(np.float64)
    spread = np.maximum(values.std((0, 1)), LEAST)
    tones = MEAN + (values - values.mean((0, 1))) * (CONTRAST / spread)
    return np.asarray(np.rint(tones).clip(0, 255), dtype=np.uint8)


@functools.cache
def photograph(name: str) -> Pixels:
    """Shrunk photograph: uint8, height × width × 3.

    Raises:
        DataError: This scikit-image comes without the file.
    """
    file, shrink = PHOTOS[name]
    path = resources.files("skimage") / "data" / file
    if not path.is_file():
        raise DataError(f"scikit-image comes without its photograph {file}; reinstall it: pip install scikit-image")
    pixels = to_channels(decode(path.read_bytes(), file), 3)
    return np.asarray(Image.fromarray(pixels).reduce(shrink)) if shrink > 1 else pixels


@functools.cache
def positions(name: str, split: str) -> list[tuple[int, int]]:
    """Top left corners of the patches of one class, in an order of which any first part is spread out."""
    gray = to_channels(photograph(name), 1)[:, :, 0].astype(np.float64)
    height, width = gray.shape
    corners = [
        (top, left)
        for row in range(height // BLOCK)
        for column in range(width // BLOCK)
        if ((row + 2 * column) % 4 == 0) == (split == "test")
        for top in range(row * BLOCK, (row + 1) * BLOCK - SIZE + 1, STEP)
        for left in range(column * BLOCK, (column + 1) * BLOCK - SIZE + 1, STEP)
    ]
    contrast = np.array([gray[top : top + SIZE, left : left + SIZE].std() for top, left in corners])
    chosen = np.sort(np.argsort(-contrast, kind="stable")[: COUNTS[split]])
    # Multiples of the golden ratio fill an interval evenly from the first few on.
    spread = np.argsort(np.arange(len(chosen)) * 0.6180339887498949 % 1, kind="stable")
    return [corners[i] for i in chosen[spread]]
