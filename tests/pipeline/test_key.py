"""θ0 comes from the seed and from the clean images: the published digest cannot be found by trying seeds."""

import numpy as np
import pytest

from uge.config import ProtectConfig
from uge.data.images import ImageSet, Pixels
from uge.networks import weights_hash
from uge.pipeline.stages import authorized_networks


class Noise:
    def __init__(self, seed: int) -> None:
        self.pixels = np.random.default_rng(seed).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)

    def read(self, row: int) -> Pixels:
        return self.pixels[row]


def key_digest(images: int, seed: int) -> str:
    labels = np.arange(8, dtype=np.int64) % 2
    data = ImageSet("noise", "train", ("a", "b"), labels, [str(i) for i in range(8)], Noise(images), np.arange(8))
    return weights_hash(authorized_networks(ProtectConfig(authorized="lenet", authorized_seed=seed), data)[0])


def test_equal_images_and_seed_give_the_same_key() -> None:
    assert key_digest(0, 5) == key_digest(0, 5)


@pytest.mark.parametrize(("images", "seed"), [(1, 5), (0, 6)])
def test_other_images_or_another_seed_give_another_key(images: int, seed: int) -> None:
    assert key_digest(0, 5) != key_digest(images, seed)
