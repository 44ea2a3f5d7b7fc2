"""The disentangling autoencoder keeps apart pictures and what the images of a class share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from uge.attacks import ATTACKS, Context, disentangle
from uge.attacks.base import stored
from uge.attacks.disentangle import Disentangler, disentangled, without_patterns
from uge.data.store import PixelStore, Records
from uge.learning.recipes import Recipe
from uge.networks import build
from uge.runtime import Runtime, seeded

RUNTIME = Runtime(torch.device("cpu"), "fp32")
LABELS = torch.arange(60) % 2


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow network on small batches."""
    monkeypatch.setattr(disentangle, "WIDTH", 8)
    monkeypatch.setattr(disentangle, "LATENT", 4)
    monkeypatch.setattr(disentangle, "SIZE", 16)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures() -> Tensor:
    small = torch.rand(60, 3, 4, 4, generator=generator()) * 130 + 60
    return nn.functional.interpolate(small, size=(16, 16), mode="bicubic")


def make_store(pixels: Tensor) -> PixelStore:
    records = Records(len(pixels), tuple(pixels.shape[1:]), torch.uint8)
    records.write(torch.arange(len(pixels)), stored(pixels))
    return PixelStore(records, LABELS, ("a", "b"))


def everything(store: PixelStore) -> Tensor:
    return store.pixels.read(torch.arange(len(store))).float()


def test_a_pattern_of_a_class_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disentangle, "STEPS", 150)
    pattern = (
        torch.randn(2, 3, 8, 8, generator=generator(1)).sign().repeat_interleave(2, 2).repeat_interleave(2, 3) * 10
    )
    clean = make_store(pictures())
    published = make_store(everything(clean) + pattern[LABELS])
    with seeded(0):
        network = disentangled(published, 0.3, generator(), RUNTIME)
    found = without_patterns(network, published)
    shares = [((everything(store) - everything(clean)) * pattern[LABELS]).mean() / 100 for store in (published, found)]
    assert shares[0] > 0.95
    assert shares[1] < 0.5


@pytest.mark.parametrize("size", [16, 18, 21])
def test_parts_have_the_shape_of_the_images(size: int) -> None:
    x = torch.rand(3, 1, size, size)
    network = Disentangler(1, size, 4).eval()
    parts = network(x, torch.tensor([0, 3, 1]), generator())
    assert parts.picture.shape == parts.pattern.shape == x.shape
    assert not torch.equal(parts.pattern[0], parts.pattern[1])
    assert parts.rate > 0
    alone = network(x)
    assert not alone.pattern.any()
    assert torch.equal(alone.picture, network(x).picture), "without noise the bottleneck passes its mean"


def test_the_rate_is_the_divergence_from_a_normal_distribution() -> None:
    network = Disentangler(3, 16, 2).eval()
    x = torch.rand(2, 3, 16, 16)
    mean, spread = network.encoder(x - 0.5).chunk(2, 1)
    naive = 0.0
    for m, s in zip(mean.flatten().tolist(), spread.flatten().tolist(), strict=True):
        own = torch.distributions.Normal(m, torch.tensor(s / 2).exp())
        naive += float(torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, 1.0)))
    assert float(network(x).rate.detach()) == pytest.approx(naive / (2 * 16 * 16), rel=1e-4)


def test_a_narrow_bottleneck_passes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disentangle, "STEPS", 120)
    store = make_store(pictures())
    rates = []
    for most in (0.05, 0.5):
        with seeded(0):
            network = disentangled(store, most, generator(), RUNTIME)
        rates.append(float(network(everything(store) / 255).rate))
    assert rates[0] < rates[1]


def test_all_images_of_the_hacker_come_through_the_bottleneck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disentangle, "STEPS", 3)
    store = make_store(pictures())
    network = build("lenet", 2, seed=0, size=16)
    few = store.subset(torch.arange(4))
    context = Context(
        network, store, store, Recipe(epochs=1), 0, RUNTIME, lambda: network, public=lambda: store, few=lambda: few
    )
    prepare: Callable[[Context], Context] | None = ATTACKS["d-vae"].prepare
    assert prepare is not None
    after = prepare(context)
    assert not torch.equal(everything(after.test), everything(store))
    assert torch.equal(everything(after.public()), everything(after.test))
    assert torch.equal(everything(after.few()), everything(after.test)[:4])
