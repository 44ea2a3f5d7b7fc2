from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uge.budget import Budget
from uge.data.images import ImageSet, Pixels
from uge.publishing import Protected

BUDGET = Budget(0.04)


@dataclass
class Arrays:
    pixels: Sequence[Pixels]

    def read(self, row: int) -> Pixels:
        return self.pixels[row]


def image_set(pixels: Sequence[Pixels], classes: Sequence[str] = ("cat", "dog"), **changes: Any) -> ImageSet:
    count = len(pixels)
    fields = {
        "name": "toy",
        "split": "train",
        "classes": tuple(classes),
        "labels": np.arange(count) % len(classes),
        "ids": [f"{classes[i % len(classes)]}/{i}" for i in range(count)],
        "reader": Arrays(pixels),
        "rows": np.arange(count),
    }
    return ImageSet(**(fields | changes))


def random_pixels(count: int, shape: tuple[int, int, int] = (8, 8, 3), seed: int = 0) -> list[Pixels]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]


def protect(images: ImageSet, levels: int = 10) -> Iterator[Protected]:
    rng = np.random.default_rng(1)
    for index, sample in enumerate(images):
        noise = rng.integers(-levels, levels + 1, sample.pixels.shape).astype(np.int16)
        if noise.shape[2] in (2, 4):
            noise[..., -1] = 0
        moved = (sample.pixels + noise).clip(0, 255).astype(np.uint8)
        yield index, sample.pixels, moved
