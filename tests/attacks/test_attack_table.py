"""Every attack of the table runs, says what it needs, and gives the same again from the same seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from uge.attacks import ATTACKS, Context, combination, disentangle, find_attack, own_key, purify, train
from uge.attacks.base import Claims, Family, Need
from uge.data.store import PixelStore
from uge.errors import UnknownNameError, UsageError
from uge.learning.objectives import Objective, supervised
from uge.learning.recipes import Recipe
from uge.learning.training import History
from uge.networks import build, weights_hash
from uge.runtime import Runtime

MakeStore = Callable[..., PixelStore]
RECIPE = Recipe(epochs=1, batch_size=16, lr=0.02)
SAMPLE = ["notch", "mixup", "ueraser", "adversarial-fast", "semi-supervised-10", "mix-clean-50"]
SAMPLE += ["orthogonal-projection", "denoise-autoencoder", "inversion-100", "backbone-frozen", "last-layer-10"]
SAMPLE += ["linear-probe", "theta0-noise-50", "own-key", "d-vae", "contrastive", "random-filters", "adversarial-rho"]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Image networks learn in hundreds of steps; that they learn at all is tested with them."""
    monkeypatch.setattr(purify, "STEPS", 6)
    monkeypatch.setattr(own_key, "STEPS", 4)
    monkeypatch.setattr(own_key, "WIDTH", 4)
    monkeypatch.setattr(disentangle, "STEPS", 4)
    monkeypatch.setattr(purify, "LINEAR", purify.LINEAR.model_copy(update={"epochs": 2}))


@pytest.fixture
def make_context(make_store: MakeStore, runtime: Runtime) -> Callable[..., Context]:
    def make(count: int = 32, channels: int = 3, **changes: Any) -> Context:
        options = {"channels": channels, "separable": True}
        store = make_store(count=count, **options)
        context = Context(
            network=network(1, channels),
            store=store,
            test=make_store(count=7, seed=2, **options),
            recipe=RECIPE,
            seed=0,
            runtime=runtime,
            teacher=lambda: network(2, channels),
            clean=lambda: make_store(count=count, seed=3, **options),
            theta0=lambda: network(4, channels),
            public=lambda: make_store(count=20, seed=5, classes=4, **options),
            few=lambda: make_store(count=6, seed=6, **options),
            claims=lambda: Claims("keyed", 0.04, ("keyed:lenet",)),
        )
        return replace(context, **changes)

    return make


def network(seed: int, channels: int = 3) -> nn.Module:
    return build("lenet", 3, seed=seed, size=16, channels=channels)


def had(context: Context, needs: frozenset[str]) -> Context:
    """The context of a hacker who has what is named and nothing else."""
    nothing = {
        field.name: field.default for field in fields(Context) if field.name in (*get_args(Need), "theta0", "claims")
    }

    def refused() -> nn.Module:
        raise UsageError("no key")

    missing = {name: default for name, default in nothing.items() if {"theta0": "key"}.get(name, name) not in needs}
    return replace(context, **missing, **({} if "key" in needs else {"teacher": refused}))


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_runs_with_what_it_needs_and_no_more(name: str, make_context: Callable[..., Context]) -> None:
    told: list[tuple[int, int]] = []
    entry = ATTACKS[name]
    needs = entry.needs | entry.uses
    context = had(make_context(progress=lambda done, total, figures: told.append((done, total))), needs)
    before, pixels = weights_hash(context.network), context.store.digest()
    history = entry.run(context)
    assert len(history.epochs) == {"longer": 3, "adversarial-rho": 2}.get(name, 1)
    assert all(math.isfinite(e.loss) and 0 <= e.test_accuracy <= 100 for e in history.epochs)
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert weights_hash(context.network) != before
    assert context.store.digest() == pixels, "an attack must not write into the published images"
    assert all(parameter.requires_grad for parameter in context.network.parameters())


@pytest.mark.parametrize(("epochs", "expected"), [(1, 1), (5, 1), (15, 5)])
def test_a_shorter_training_has_a_whole_schedule(
    epochs: int, expected: int, make_context: Callable[..., Context]
) -> None:
    recipe = Recipe(epochs=epochs, batch_size=16, lr=0.02, schedule="multistep", milestones=(2, 12))
    changed = ATTACKS["shorter"].prepare(make_context(recipe=recipe))  # type: ignore[misc]
    assert (changed.recipe.epochs, changed.recipe.milestones) == (expected, (1, 4))
    assert changed.recipe.model_copy(update={"epochs": epochs, "milestones": (2, 12)}) == recipe


@pytest.mark.parametrize("name", [name for name, entry in ATTACKS.items() if entry.needs])
def test_an_attack_refuses_before_training_what_it_lacks(name: str, make_context: Callable[..., Context]) -> None:
    entry = ATTACKS[name]
    for missing in entry.needs:
        context = had(make_context(), entry.needs - {missing})
        before = weights_hash(context.network)
        with pytest.raises(UsageError):
            entry.run(context)
        assert weights_hash(context.network) == before


@pytest.mark.parametrize("name", SAMPLE)
def test_the_same_seed_gives_the_same_again(name: str, make_context: Callable[..., Context]) -> None:
    first, again, other = make_context(), make_context(), make_context(seed=1)
    one, two = (ATTACKS[name].run(context) for context in (first, again))
    assert one.epochs == two.epochs
    assert weights_hash(first.network) == weights_hash(again.network)
    ATTACKS[name].run(other)
    assert weights_hash(other.network) != weights_hash(first.network)


@pytest.mark.parametrize("name", ATTACKS)
def test_gray_images_can_be_attacked(name: str, make_context: Callable[..., Context]) -> None:
    history = ATTACKS[name].run(make_context(count=20, channels=1))
    assert all(math.isfinite(epoch.loss) for epoch in history.epochs)


def test_entries_are_filled_in() -> None:
    abouts = [entry.about for entry in ATTACKS.values()]
    assert len(set(abouts)) == len(abouts)
    for name, entry in ATTACKS.items():
        assert entry.family in get_args(Family)
        assert entry.cost > 0
        assert 0 <= entry.expected <= 100
        assert not name.startswith("distill") or "key" in entry.needs
        assert not entry.same_architecture or "key" in entry.needs
        assert entry.about[0].islower()
        assert not entry.about.endswith(".")


class TestCombination:
    def test_the_second_attack_sees_what_the_first_prepared(self, make_context: Callable[..., Context]) -> None:
        seen: list[Context] = []

        def spy(context: Context) -> History:
            seen.append(context)
            return History()

        both = combination(ATTACKS["grayscale"], replace(ATTACKS["ueraser"], run=spy))
        both.run(make_context())
        gray = seen[0].store.pixels.read(torch.arange(4))
        assert torch.equal(gray[:, 0], gray[:, 2])

    def test_two_preparations_follow_each_other(self, make_context: Callable[..., Context]) -> None:
        context = find_attack("grayscale+bdr2").prepare(make_context())  # type: ignore[misc]
        found = context.store.pixels.read(torch.arange(4))
        assert torch.equal(found[:, 0], found[:, 1])
        assert len(found.unique()) <= 4

    @pytest.mark.parametrize("name", ["grayscale+ueraser-lite", "ueraser-lite+grayscale", "longer+jpeg10+cutmix"])
    def test_names(self, name: str, make_context: Callable[..., Context]) -> None:
        entry = find_attack(name)
        assert entry.family == "combination"
        assert entry.cost >= max(ATTACKS[part].cost for part in name.split("+"))
        assert len(entry.run(make_context()).epochs) == (3 if "longer" in name else 1)

    def test_order_does_not_matter_where_one_prepares(self, make_context: Callable[..., Context]) -> None:
        one, other = (find_attack(name).run(make_context()) for name in ("grayscale+mixup", "mixup+grayscale"))
        assert one.epochs == other.epochs

    def test_leaked_originals_are_changed_like_all_others(self, make_context: Callable[..., Context]) -> None:
        mixed = find_attack("grayscale+mix-clean-50").prepare(make_context())  # type: ignore[misc]
        found = mixed.store.pixels.read(torch.arange(32))
        assert torch.equal(found[:, 0], found[:, 1])
        public = mixed.public().pixels.read(torch.arange(20))
        assert torch.equal(public[:, 0], public[:, 1])

    def test_needs_add_up(self) -> None:
        assert find_attack("inversion-100+distill").needs == {"clean", "key"}
        assert find_attack("theta0-known+cutout16").same_architecture

    @pytest.mark.parametrize("name", ["ueraser+cutmix", "adversarial+distill"])
    def test_two_ways_to_train_cannot_be_combined(self, name: str) -> None:
        with pytest.raises(UsageError, match="only prepares"):
            find_attack(name)

    @pytest.mark.parametrize("name", ["grayscale+ueras", "", "+", "direct+"])
    def test_unknown_parts(self, name: str) -> None:
        with pytest.raises(UnknownNameError):
            find_attack(name)


def test_only_the_authorised_architecture_starts_from_theta0(make_context: Callable[..., Context]) -> None:
    context = make_context(theta0=lambda: build("cnn", 3, seed=0, size=16))
    with pytest.raises(UsageError, match="got lenet for cnn"):
        ATTACKS["theta0-known"].run(context)


@pytest.mark.parametrize(("rho", "levels"), [(0.04, 10), (8 / 255, 8), (1.0, 16)])
def test_adversarial_images_stay_within_the_budget_that_the_manifest_names(
    rho: float, levels: int, make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    radii: list[float] = []

    def spy(generator: torch.Generator, *, radius: float, step: float, steps: int) -> Objective:
        radii.append(255 * radius)
        return supervised

    monkeypatch.setattr(train, "adversarial", spy)
    find_attack("adversarial-rho").run(make_context(claims=lambda: Claims("tap", rho)))
    assert radii == [pytest.approx(levels)]


def test_the_page_names_every_attack() -> None:
    page = (Path(__file__).parents[2] / "docs" / "attacks.md").read_text()
    rows = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert rows == set(ATTACKS)
