"""Projection, autoencoder and inversion; leaks; last layers; knowledge of θ0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from uge.attacks import ATTACKS, Context, purify
from uge.attacks.base import stored
from uge.attacks.knowledge import add_noise, start_from
from uge.attacks.leak import leaked_rows, on_leak, originals, part, replaced
from uge.attacks.purify import (
    autoencoder,
    inverted,
    linear_directions,
    projected_out,
    random_noise,
    regress,
    restorer,
)
from uge.attacks.transfer import probe
from uge.data.loader import to_unit
from uge.data.store import PixelStore, Records
from uge.errors import UsageError
from uge.learning.recipes import Recipe
from uge.networks import build
from uge.networks.head import last_layer
from uge.runtime import Runtime, seeded

RUNTIME = Runtime(torch.device("cpu"), "fp32")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, channels: int = 3, size: int = 16, seed: int = 0) -> Tensor:
    small = torch.rand(count, channels, 4, 4, generator=generator(seed)) * 130 + 60
    return nn.functional.interpolate(small, size=(size, size), mode="bicubic")


def make_store(pixels: Tensor, labels: Tensor) -> PixelStore:
    records = Records(len(pixels), tuple(pixels.shape[1:]), torch.uint8)
    records.write(torch.arange(len(pixels)), stored(pixels))
    return PixelStore(records, labels, tuple(map(str, range(int(labels.max()) + 1))))


def everything(store: PixelStore) -> Tensor:
    return store.pixels.read(torch.arange(len(store))).float()


def make_context(store: PixelStore, clean: PixelStore | None = None, **changes: Any) -> Context:
    options = {"clean": lambda: clean} if clean is not None else {}
    classes = max(2, len(store.classes))
    fields: dict[str, Any] = {
        "network": build("lenet", classes, seed=0, size=store.size, channels=store.channels),
        "store": store,
        "test": store,
        "recipe": Recipe(epochs=1, batch_size=16),
        "seed": 0,
        "runtime": RUNTIME,
        "teacher": lambda: build("lenet", classes, seed=1, size=store.size),
    }
    return Context(**{**fields, **options, **changes})


class TestProjection:
    def test_the_basis_is_orthonormal_and_what_is_left_lies_across(self) -> None:
        labels = torch.arange(60) % 3
        store = make_store(pictures(60), labels)
        basis = linear_directions(store, seed=0, runtime=RUNTIME)
        assert basis.shape == (3 * 16 * 16, 3)
        assert torch.allclose(basis.T @ basis, torch.eye(3), atol=1e-5)
        x = to_unit(store.pixels.read(torch.arange(60)))
        found = projected_out(x, basis)
        assert (x.flatten(1) @ basis).abs().max() > 1
        assert (found.flatten(1) @ basis).abs().max() < 1e-4
        assert torch.allclose(projected_out(found, basis), found, atol=1e-5)
        assert torch.allclose(projected_out(5 * x - 2, basis), 5 * found + projected_out(x * 0 - 2, basis), atol=1e-4)

    def test_a_linear_classifier_loses_what_a_protection_gave_it(self) -> None:
        labels = torch.arange(90) % 3
        pattern = torch.randn(3, 3, 16, 16, generator=generator(1)).sign() * 8
        store = make_store(pictures(90) + pattern[labels], labels)
        basis = linear_directions(store, seed=0, runtime=RUNTIME)
        spread = []
        for images in (everything(store) / 255, projected_out(everything(store) / 255, basis)):
            means = torch.stack([images[labels == label].mean(0) for label in range(3)])
            spread.append(((means - means.mean(0)) * (pattern - pattern.mean(0))).mean().item())
        assert abs(spread[1]) < spread[0] / 3

    def test_published_images_are_projected_before_they_are_augmented_and_test_images_are_not(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = make_store(pictures(20), torch.arange(20) % 2)
        context = make_context(store)
        seen: list[Tensor] = []
        monkeypatch.setattr(purify, "strong", lambda x, draw: (seen.append(x), x)[1])
        ATTACKS["orthogonal-projection"].run(context)
        basis = linear_directions(store, seed=context.seed, runtime=RUNTIME)
        expected = projected_out(to_unit(store.pixels.read(torch.arange(20))), basis)
        trained = torch.cat(seen)
        assert (trained[:, None] - expected).flatten(2).abs().amax(2).amin(1).max() < 1e-5
        assert len(trained) == 20


def test_the_autoencoder_drowns_a_pattern_and_keeps_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purify, "STEPS", 60)
    labels = torch.arange(40) % 2
    pattern = torch.randn(2, 3, 16, 16, generator=generator(2)).sign() * 10
    clean, public = pictures(40, seed=4), make_store(pictures(64, seed=3), torch.arange(64) % 4)
    prepare = ATTACKS["denoise-autoencoder"].prepare
    assert prepare is not None
    context = make_context(make_store(clean + pattern[labels], labels), public=lambda: public)
    found = prepare(replace(context, test=make_store(clean, labels)))
    change = everything(found.store) - clean
    assert ((change * pattern[labels]).mean() / 100).abs() < 0.6
    # What it added came out again: less is left of both than of the noise alone.
    assert max(x.square().mean().sqrt() for x in (change, everything(found.test) - clean)) < 0.9 * 255 * purify.NOISE


@given(channels=st.sampled_from([1, 3]), size=st.integers(16, 37), batch=st.integers(1, 9))
@settings(max_examples=15, deadline=None)
def test_image_networks_and_noise_fit_every_size(channels: int, size: int, batch: int) -> None:
    shape = torch.Size((batch, channels, size, size))
    found = random_noise(shape, generator())
    assert found.shape == shape
    assert found.abs().max() <= purify.NOISE
    assert {make(channels, 4).eval()(torch.rand(shape)).shape for make in (autoencoder, restorer)} == {shape}


def test_public_images_of_another_shape_are_refused() -> None:
    store, public = (make_store(pictures(8, channels), torch.arange(8) % 2) for channels in (3, 1))
    with pytest.raises(UsageError, match="published images' shape"):
        ATTACKS["denoise-autoencoder"].run(make_context(store, public=lambda: public))


class TestInversion:
    @pytest.mark.parametrize("by_class", [True, False])
    def test_a_constant_pattern_is_taken_out(self, by_class: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(purify, "STEPS", 20)
        labels = torch.arange(80) % 2
        pattern = torch.randn(2 if by_class else 1, 3, 16, 16, generator=generator(2)).sign() * 10
        clean = make_store(pictures(80), labels)
        published = make_store(everything(clean) + (pattern[labels] if by_class else pattern), labels)
        context = make_context(published, clean)
        rows = leaked_rows(context, 20)
        found = inverted(context, 20)
        unseen = torch.ones(80, dtype=torch.bool)
        unseen[rows] = False
        errors = [(everything(store) - everything(clean))[unseen].square().mean() for store in (found, published)]
        assert errors[0] < errors[1] / 8

    def test_test_images_stay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(purify, "STEPS", 2)
        store = make_store(pictures(20), torch.arange(20) % 2)
        context = make_context(store, store)
        prepare = ATTACKS["inversion-100"].prepare
        assert prepare is not None
        assert prepare(context).test is context.test


@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
def test_regression_learns_from_its_pairs(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purify, "STEPS", 60)
    x = torch.rand(8, 1, 16, 16, generator=generator())
    with seeded(0, "test"):
        network = restorer(1, 8)
    assert torch.equal(network(x), x)
    regress(network, lambda step: (x, x - 0.3), Runtime.create("cpu", precision))
    assert (network(x) - x + 0.3).abs().mean() < 0.1
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_regression_that_diverges_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purify, "STEPS", 2)
    x = torch.rand(4, 1, 16, 16, generator=generator())
    with pytest.raises(UsageError, match="diverged, its loss became nan"):
        regress(restorer(1, 8), lambda step: (x, x / 0 - x / 0), RUNTIME)


class TestLeak:
    def test_small_leaks_are_parts_of_large_ones(self) -> None:
        context = make_context(make_store(pictures(50), torch.arange(50) % 5))
        small, large = (set(leaked_rows(context, count).tolist()) for count in (5, 20))
        assert len(small) == 5
        assert small < large
        assert set(leaked_rows(make_context(context.store, seed=1), 20).tolist()) == large  # whatever the attack
        assert set(leaked_rows(replace(context, leak_seed=1), 20).tolist()) != large

    @given(count=st.integers(5, 400), percent=st.sampled_from([1, 10, 50]))
    @settings(max_examples=20, deadline=None)
    def test_a_share_is_a_share(self, count: int, percent: int) -> None:
        store = make_store(torch.zeros(count, 1, 16, 16), torch.arange(count) % 5)
        assert part(make_context(store), percent) == min(count, max(5, round(count * percent / 100)))

    def test_replaced_rows(self) -> None:
        labels = torch.arange(40) % 4
        published, clean = (make_store(pictures(40, seed=seed), labels) for seed in (0, 1))
        rows = torch.tensor([3, 17])
        mixed = everything(replaced(published, clean, rows))
        same = (mixed == everything(published)).all(1).all(1).all(1)
        assert (~same).nonzero().flatten().tolist() == [3, 17]
        assert torch.equal(mixed[rows], everything(clean)[rows])

    def test_a_leak_is_repeated_to_as_many_steps(self) -> None:
        labels = torch.arange(40) % 4
        published, clean = (make_store(pictures(40, seed=seed), labels) for seed in (0, 1))
        context = make_context(published, clean)
        rows = leaked_rows(context, part(context, 10))
        leak = on_leak(context, 10).store
        assert len(leak) == 40
        assert leak.labels.tolist() == labels[rows].repeat(10).tolist()
        assert torch.equal(everything(leak)[5], everything(clean)[rows[1]])

    @pytest.mark.parametrize("count", [19, 20])
    def test_other_originals_are_refused(self, count: int) -> None:
        store = make_store(pictures(20), torch.arange(20) % 2)
        other = make_store(pictures(count), (torch.arange(count) + 1) % 2)
        with pytest.raises(UsageError, match="row by row"):
            originals(make_context(store, other))


class TestKnowledge:
    def test_theta0_is_where_it_starts(self) -> None:
        store, theta0 = make_store(pictures(20), torch.arange(20) % 2), build("lenet", 2, seed=7, size=16)
        context = make_context(store, theta0=lambda: theta0)
        prepare = ATTACKS["theta0-known"].prepare
        assert prepare is not None
        started = prepare(context).network.state_dict()
        assert all(torch.equal(value, started[name]) for name, value in theta0.state_dict().items())
        assert prepare(context).network is context.network

    def test_noise_is_a_part_of_each_tensors_spread_and_spares_buffers(self) -> None:
        network, exact = build("keyed:cnn", 3, seed=0), build("keyed:cnn", 3, seed=0)
        add_noise(network, 50, generator())
        for (name, noisy), true in zip(network.named_parameters(), exact.parameters(), strict=True):
            if noisy.numel() > 1000:
                assert (noisy - true).detach().std() == pytest.approx(0.5 * true.detach().std().item(), rel=0.1), name
        for noisy, true in zip(network.buffers(), exact.buffers(), strict=True):
            assert torch.equal(noisy, true)

    @pytest.mark.parametrize("other", ["cnn", "resnet8"])
    def test_other_architectures_are_refused(self, other: str) -> None:
        with pytest.raises(UsageError, match="hacker of its architecture"):
            start_from(build("lenet", 3, seed=0), build(other, 3, seed=0))

    @pytest.mark.parametrize("name", ["lenet", "cnn", "resnet8", "keyed:lenet"])
    def test_a_probe_changes_the_last_layer_and_nothing_else(self, name: str) -> None:
        store = make_store(pictures(32), torch.arange(32) % 2)
        network = build(name, 2, seed=0, size=16)
        head = {id(parameter) for parameter in last_layer(network).parameters()}
        before = {key: value.clone() for key, value in network.state_dict().items()}
        probe(make_context(store, network=network, test=None))
        mine = network.state_dict(keep_vars=True)
        changed = {key for key, value in mine.items() if not torch.equal(value, before[key])}
        assert changed == {key for key, value in mine.items() if id(value) in head}

    def test_a_backbone_brings_its_features(self, monkeypatch: pytest.MonkeyPatch) -> None:
        store = make_store(pictures(20), torch.arange(20) % 2)
        public = make_store(pictures(30, seed=8), torch.arange(30) % 5)
        context = make_context(store, public=lambda: public)
        fresh: Callable[[], nn.Module] = lambda: build("lenet", 2, seed=0, size=16)  # noqa: E731
        prepare = ATTACKS["backbone-finetuned"].prepare
        assert prepare is not None
        network, start = prepare(context).network, fresh()
        assert torch.equal(last_layer(network).weight, last_layer(start).weight)
        moved = [not torch.equal(a, b) for a, b in zip(network.parameters(), start.parameters(), strict=True)]
        assert sum(moved) == len(moved) - 2
