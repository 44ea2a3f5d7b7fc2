"""θ0 comes from the seed and from the clean images: the published digest cannot be found by trying seeds."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from uge.config import ProtectConfig
from uge.data.images import ImageSet, Pixels
from uge.errors import UsageError
from uge.methods import METHODS, ImagesInfo
from uge.networks import ImageClassifier, KeyedClassifier, build, weights_hash
from uge.requests.request import _key_fault

FOR_NETWORKS = [name for name, row in METHODS.items() if row.authorizes]


class Noise:
    def __init__(self, seed: int) -> None:
        self.pixels = np.random.default_rng(seed).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)

    def read(self, row: int) -> Pixels:
        return self.pixels[row]


def networks(images: int, seed: int, **options: str) -> list[ImageClassifier]:
    labels = np.arange(8, dtype=np.int64) % 2
    data = ImageSet("noise", "train", ("a", "b"), labels, [str(i) for i in range(8)], Noise(images), np.arange(8))
    config = ProtectConfig(**{"method": "keyed", "authorized": "lenet", "authorized_seed": seed, **options})
    return METHODS[config.method].networks(ImagesInfo.of(data), config)


def key_digests(images: int, seed: int, method: str) -> list[str]:
    """Of θ0, and of the wave key in it."""
    (network,) = networks(images, seed, method=method)
    assert network.name == ("keyed:lenet" if method == "keyed" else "lenet")
    parts = [network, network.base, network.key] if isinstance(network, KeyedClassifier) else [network]
    return [weights_hash(part) for part in parts]


@pytest.mark.parametrize("method", FOR_NETWORKS)
def test_equal_images_and_seed_give_the_same_key(method: str) -> None:
    assert key_digests(0, 5, method) == key_digests(0, 5, method)


@pytest.mark.parametrize("method", FOR_NETWORKS)
@pytest.mark.parametrize(("images", "seed"), [(1, 5), (0, 6)])
def test_other_images_or_another_seed_give_another_key(images: int, seed: int, method: str) -> None:
    before, after = key_digests(0, 5, method), key_digests(images, seed, method)
    assert all(one != other for one, other in zip(before, after, strict=True))


def test_authorised_networks_of_their_own_share_one_wave_key() -> None:
    first, second, third = networks(0, 5, authorized="lenet,keyed:lenet,cnn")
    assert [network.name for network in (first, second, third)] == ["keyed:lenet", "keyed:lenet", "keyed:cnn"]
    assert weights_hash(first.key) == weights_hash(second.key) == weights_hash(third.key)
    assert weights_hash(first.base) != weights_hash(second.base)


@pytest.mark.parametrize(("rho", "levels"), [("0.04", 10), ("8/255", 8), ("64/255", 64)])
def test_a_keys_patterns_are_as_strong_as_the_budget(rho: str, levels: int) -> None:
    for network in networks(0, 5, authorized="lenet,cnn", rho=rho):
        assert isinstance(network, KeyedClassifier)
        assert int(network.key.levels) == levels
    with pytest.raises(UsageError, match="takes a rho of at most 64/255, got 65/255; give a smaller --rho"):
        networks(0, 5, rho="65/255")
    assert networks(0, 5, method="uge", rho="65/255")[0].name == "lenet"


def test_a_method_that_does_not_suit_the_networks_but_any_images(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="got 'keyed:lenet'; give lenet, or --method keyed"):
        networks(0, 5, authorized="keyed:lenet", method="uge")
    read = Noise.read
    monkeypatch.setattr(Noise, "read", lambda reader, row: read(reader, row)[..., :1])
    for method in ("keyed", "uge"):
        assert networks(0, 5, method=method)[0].channels == 1


@pytest.mark.parametrize("size", [16, 32, 64, 224])
@pytest.mark.parametrize("classes", [2, 25, 30])
def test_no_key_that_is_drawn_has_a_fault(classes: int, size: int) -> None:
    for seed in range(5):
        assert not _key_fault(build("keyed:cnn", classes, seed=seed, size=size))
    assert not _key_fault(build("cnn", classes, seed=0, size=size))


def all_but(tensor: Tensor, value: float) -> None:
    tensor[-1, 0] = value


def twins(waves: Tensor) -> None:
    """The last class has the second wave of the first one, but another first wave."""
    waves[-1, 1] = waves[0, 1].flip(0) + 0.01


def doubled(waves: Tensor) -> None:
    waves[3, 0, 1] = waves[3, 0, 0] + 0.01


FAULTS: list[tuple[str, Callable[[Tensor], object], str]] = [
    ("waves", lambda waves: all_but(waves, 1.9), "have waves of about 4 to 8 cycles"),
    ("waves", lambda waves: all_but(waves, 12.1), "have waves of about 4 to 8 cycles"),
    ("waves", lambda waves: all_but(waves, -5.0), "have waves of about 4 to 8 cycles"),
    ("waves", lambda waves: all_but(waves, float("nan")), "have waves of about 4 to 8 cycles"),
    ("waves", lambda waves: all_but(waves, float("inf")), "have waves of about 4 to 8 cycles"),
    ("phases", lambda phases: all_but(phases, float("nan")), "have finite phases"),
    ("phases", lambda phases: all_but(phases, float("-inf")), "have finite phases"),
    ("levels", lambda levels: levels.fill_(0), "have patterns of 1 to 64 levels"),
    ("levels", lambda levels: levels.fill_(65), "have patterns of 1 to 64 levels"),
    ("levels", lambda levels: levels.fill_(-10), "have patterns of 1 to 64 levels"),
    ("waves", twins, "give every class waves of its own"),
    ("waves", doubled, "give every class waves of its own"),
]


@pytest.mark.parametrize(("name", "spoil", "words"), FAULTS, ids=lambda value: getattr(value, "__name__", None))
def test_keys_by_which_nothing_or_the_same_would_be_written(
    name: str, spoil: Callable[[Tensor], object], words: str
) -> None:
    network = build("keyed:cnn", 30, seed=0)
    with torch.no_grad():
        spoil(network.get_buffer(f"key.{name}"))
    assert _key_fault(network) == words
