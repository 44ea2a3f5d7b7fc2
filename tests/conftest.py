"""Tiny image sets, stores and a plain runtime for all tests."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from uge.data.images import ImageSet, Pixels
from uge.data.store import PixelStore, load_pixels
from uge.runtime import Runtime

torch.set_num_threads(1)


@dataclass(frozen=True)
class InMemory:
    """A reader of arrays."""

    arrays: list[Pixels]

    def read(self, row: int) -> Pixels:
        return self.arrays[row]


@pytest.fixture
def make_images() -> Callable[..., ImageSet]:
    """Makes image sets: random pixels, or (``separable``) one brightness per class with a little noise."""

    def make(
        count: int = 12,
        size: int | tuple[int, int] = 16,
        channels: int = 3,
        classes: int = 3,
        seed: int = 0,
        separable: bool = False,
    ) -> ImageSet:
        random = np.random.default_rng(seed)
        shape = (count, *((size, size) if isinstance(size, int) else size), channels)
        labels = np.arange(count) % classes
        if separable:
            level = np.linspace(40, 215, classes)[labels][:, None, None, None]
            pixels = (level + random.normal(0, 12, shape)).clip(0, 255).astype(np.uint8)
        else:
            pixels = random.integers(0, 256, shape, dtype=np.uint8)
        names = tuple(f"class {number}" for number in range(classes))
        ids = [f"{number:04d}" for number in range(count)]
        return ImageSet("tiny", "train", names, labels, ids, InMemory(list(pixels)), np.arange(count))

    return make


@pytest.fixture
def make_store(make_images: Callable[..., ImageSet]) -> Callable[..., PixelStore]:
    """Makes pixel stores; takes what ``make_images`` takes, and ``resident_bytes``."""

    def make(*, resident_bytes: int = 2**30, **options: object) -> PixelStore:
        return load_pixels(make_images(**options), resident_bytes=resident_bytes)

    return make


@pytest.fixture(scope="session", autouse=True)
def settings_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Identities are made in a temporary folder, not among the user's settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("settings")))
        yield


@pytest.fixture
def runtime() -> Runtime:
    """fp32 on the CPU."""
    return Runtime(torch.device("cpu"), "fp32")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """The command line sets the package logger's level and handler; the next test must not inherit them."""
    yield
    logger = logging.getLogger("uge")
    logger.handlers = []
    logger.setLevel(logging.NOTSET)
