"""θ0 comes from the seed and from the clean images: the published digest cannot be found by trying seeds."""

import numpy as np
import pytest

from uge.config import ProtectConfig
from uge.data.images import ImageSet, Pixels
from uge.errors import UsageError
from uge.networks import ImageClassifier, KeyedClassifier, weights_hash
from uge.pipeline.stages import authorized_networks
from uge.protect.settings import METHODS


class Noise:
    def __init__(self, seed: int) -> None:
        self.pixels = np.random.default_rng(seed).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)

    def read(self, row: int) -> Pixels:
        return self.pixels[row]


def networks(images: int, seed: int, **options: str) -> list[ImageClassifier]:
    labels = np.arange(8, dtype=np.int64) % 2
    data = ImageSet("noise", "train", ("a", "b"), labels, [str(i) for i in range(8)], Noise(images), np.arange(8))
    return authorized_networks(ProtectConfig(**{"authorized": "lenet", "authorized_seed": seed, **options}), data)


def key_digests(images: int, seed: int, method: str) -> list[str]:
    """Of θ0, and of the colour key in it."""
    (network,) = networks(images, seed, method=method)
    assert network.name == ("keyed:lenet" if method == "keyed" else "lenet")
    parts = [network, network.base, network.key] if isinstance(network, KeyedClassifier) else [network]
    return [weights_hash(part) for part in parts]


@pytest.mark.parametrize("method", METHODS)
def test_equal_images_and_seed_give_the_same_key(method: str) -> None:
    assert key_digests(0, 5, method) == key_digests(0, 5, method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("images", "seed"), [(1, 5), (0, 6)])
def test_other_images_or_another_seed_give_another_key(images: int, seed: int, method: str) -> None:
    before, after = key_digests(0, 5, method), key_digests(images, seed, method)
    assert all(one != other for one, other in zip(before, after, strict=True))


def test_authorised_networks_of_their_own_share_one_colour_key() -> None:
    first, second, third = networks(0, 5, authorized="lenet,keyed:lenet,cnn")
    assert [network.name for network in (first, second, third)] == ["keyed:lenet", "keyed:lenet", "keyed:cnn"]
    assert weights_hash(first.key) == weights_hash(second.key) == weights_hash(third.key)
    assert weights_hash(first.base) != weights_hash(second.base)


def test_a_method_that_does_not_suit_the_networks_or_images(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="got 'keyed:lenet'; give --authorized lenet, or --method keyed"):
        networks(0, 5, authorized="keyed:lenet", method="uge")
    read = Noise.read
    monkeypatch.setattr(Noise, "read", lambda reader, row: read(reader, row)[..., :1])
    with pytest.raises(UsageError, match="the images of noise are gray; give --method uge"):
        networks(0, 5)
    assert networks(0, 5, method="uge")[0].channels == 1
