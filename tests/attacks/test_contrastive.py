"""Features without labels: the loss as its paper has it, views, and what becomes of a network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from uge.attacks import Context
from uge.attacks.contrastive import nt_xent, pretrain, repeated, view
from uge.data.store import PixelStore
from uge.learning.recipes import Recipe
from uge.networks import ImageClassifier, build
from uge.networks.head import last_layer
from uge.runtime import Runtime

MakeStore = Callable[..., PixelStore]


def vectors(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 5, generator=generator, dtype=torch.float64), dim=1)


class TestLoss:
    def test_it_is_the_formula(self) -> None:
        first, second = vectors(4, 1), vectors(4, 2)
        both = [*first, *second]
        total = 0.0
        for i, z in enumerate(both):
            j = (i + 4) % 8
            below = sum(math.exp(float(z @ both[k]) / 0.5) for k in range(8) if k != i)
            total -= math.log(math.exp(float(z @ both[j]) / 0.5) / below)
        assert float(nt_xent(first, second, 0.5)) == pytest.approx(total / 8, rel=1e-12)

    def test_rotations_and_the_order_of_images_do_not_matter(self) -> None:
        first, second = vectors(6, 1), vectors(6, 2)
        turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
        order = torch.randperm(6)
        expected = pytest.approx(float(nt_xent(first, second)), rel=1e-12)
        assert float(nt_xent(first @ turn, second @ turn)) == expected
        assert float(nt_xent(first[order], second[order])) == expected
        assert float(nt_xent(second, first)) == expected

    def test_its_gradient(self) -> None:
        first, second = vectors(3, 1).requires_grad_(), vectors(3, 2).requires_grad_()
        assert torch.autograd.gradcheck(nt_xent, (first, second))


@given(channels=st.sampled_from([1, 3]), size=st.integers(16, 33), batch=st.integers(1, 5))
@settings(max_examples=10, deadline=None)
def test_views_are_images_of_the_same_shape(channels: int, size: int, batch: int) -> None:
    x = torch.rand(batch, channels, size, size)
    first, again, other = (view(x, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert first.shape == x.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_some_views_are_gray_and_some_are_not() -> None:
    out = view(torch.rand(200, 3, 16, 16), torch.Generator().manual_seed(0))
    gray = (out[:, 0] == out[:, 1]).flatten(1).all(1).float().mean()
    assert 0.1 < gray < 0.3


@pytest.fixture
def make_context(make_store: MakeStore, runtime: Runtime) -> Callable[..., tuple[Context, ImageClassifier]]:
    def make(**changes: Any) -> tuple[Context, ImageClassifier]:
        network = build("lenet", 3, seed=1, size=16)
        store = make_store(count=24, separable=True)
        recipe = Recipe(epochs=1, batch_size=12, lr=0.02)
        return Context(network, store, store, recipe, 0, runtime, lambda: network, **changes), network

    return make


def test_features_are_learned_without_labels(make_context: Callable[..., tuple[Context, ImageClassifier]]) -> None:
    context, network = make_context()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pretrain(network, context.store, context)
    again, other = make_context()
    mislabelled = replace(again.store, labels=again.store.labels.flip(0))
    pretrain(other, mislabelled, again)
    head = {id(value) for value in last_layer(network).state_dict(keep_vars=True).values()}
    learned = network.state_dict(keep_vars=True)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in learned.items())
    changed = [name for name, value in learned.items() if not torch.equal(value, before[name])]
    assert changed
    assert not any(id(learned[name]) in head for name in changed)


def test_few_images_are_repeated_to_as_many_steps(make_store: MakeStore) -> None:
    few = make_store(count=5)
    many = repeated(few, 12)
    assert len(many) == 12
    assert torch.equal(many.pixels.read(torch.tensor([7, 11])), few.pixels.read(torch.tensor([2, 1])))
    assert many.labels.tolist() == few.labels[torch.arange(12) % 5].tolist()
