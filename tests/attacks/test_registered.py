"""Attacks of other packages and scripts: plain functions of images, or of a context."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import uge
from uge.attacks import ATTACKS, Context, History, find_attack, learn
from uge.data.store import PixelStore
from uge.errors import UnknownNameError, UsageError
from uge.learning.recipes import Recipe
from uge.networks import build
from uge.runtime import Runtime


@pytest.fixture(autouse=True)
def table_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ATTACKS, "_rows", dict(ATTACKS._rows))


@pytest.fixture
def context(make_store: Callable[..., PixelStore], runtime: Runtime) -> Context:
    def no_teacher() -> torch.nn.Module:
        raise AssertionError("this attack asks no teacher")

    return Context(
        network=build("lenet", 3, seed=1, size=16),
        store=make_store(count=24),
        test=make_store(count=6, seed=2),
        recipe=Recipe(epochs=1, batch_size=8),
        seed=0,
        runtime=runtime,
        teacher=no_teacher,
        clean=lambda: make_store(count=24, seed=3),
        public=lambda: make_store(count=8, seed=4, classes=4),
    )


def pixels(store: PixelStore) -> Tensor:
    return store.pixels.read(torch.arange(len(store)))


def invert(images: Tensor, labels: Tensor) -> Tensor:
    """Turn every image into its negative."""
    return 255 - images


def test_a_function_of_images_changes_all_images_that_a_hacker_has(context: Context) -> None:
    assert uge.attack("invert", cost=2.0)(invert) is invert
    entry = ATTACKS["invert"]
    assert (entry.about, entry.family, entry.cost) == ("Turn every image into its negative", "preprocess", 2.0)
    changed = entry.prepare(context)  # type: ignore[misc]
    for before, after in (
        (context.store, changed.store),
        (context.test, changed.test),
        (context.clean(), changed.clean()),
        (context.public(), changed.public()),
    ):
        assert torch.equal(pixels(after), 255 - pixels(before))
        assert torch.equal(after.labels, before.labels)
    assert len(entry.run(context).epochs) == 1
    assert "negative, and turns every image gray" in find_attack("invert+grayscale").about


def test_only_published_images_come_with_their_labels(context: Context) -> None:
    seen = []

    @uge.attack("by-label")
    def by_label(images: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels.clone())
        return images

    changed = ATTACKS["by-label"].prepare(context)  # type: ignore[misc]
    changed.clean()
    changed.public()
    assert torch.equal(seen[0], context.store.labels)
    assert [set(labels.tolist()) for labels in seen[1:]] == [{-1}] * 3


def test_train_only_leaves_other_images(context: Context) -> None:
    uge.attack("invert", train_only=True)(invert)
    changed = ATTACKS["invert"].prepare(context)  # type: ignore[misc]
    assert torch.equal(pixels(changed.store), 255 - pixels(context.store))
    assert changed.test is context.test
    assert changed.clean is context.clean


def test_randomness_comes_from_the_seed_and_images_are_not_written_into(context: Context) -> None:
    @uge.attack("grain")
    def grain(images: Tensor, labels: Tensor) -> Tensor:
        images += torch.randint(0, 9, images.shape).to(torch.uint8)
        return images

    before = context.store.digest()
    run = ATTACKS["grain"].prepare
    first, again, other = (run(replace(context, seed=seed)).store.digest() for seed in (0, 0, 1))  # type: ignore[misc]
    assert first == again != other
    assert context.store.digest() == before


def test_a_function_of_a_context_may_train_or_prepare(context: Context) -> None:
    @uge.attack("slow", needs=["public"], about="trains slowly")
    def slow(context: Context) -> Context:
        return replace(context, recipe=context.recipe.model_copy(update={"lr": 1e-4, "epochs": 2}))

    @uge.attack("by-hand")
    def by_hand(context: Context) -> History:
        return learn(context)

    @uge.attack("unsaid")
    def unsaid(context):
        return slow(context)

    assert (ATTACKS["slow"].needs, ATTACKS["slow"].family, ATTACKS["slow"].about) == (
        {"public"},
        "purify",
        "trains slowly",
    )
    assert (ATTACKS["by-hand"].prepare, ATTACKS["by-hand"].family) == (None, "train")
    assert [len(ATTACKS[name].run(context).epochs) for name in ("slow", "by-hand", "unsaid")] == [2, 1, 2]
    assert len(find_attack("slow+by-hand").run(context).epochs) == 2


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        (7, {}, r"must be a function of \(context\) or of \(images, labels\), got 7"),
        (lambda: None, {}, r"a function of \(context\)"),
        (lambda a, b, c: None, {}, r"a function of \(context\)"),
        (invert, {"needs": ["money"]}, "needs and a family of key, clean, public, few, plain, .*, got 'money'"),
        (invert, {"family": "magic"}, "got 'magic'"),
    ],
)
def test_functions_that_cannot_be_attacks(function: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        uge.attack("mine", **options)(function)
    assert "mine" not in ATTACKS


def test_a_taken_name() -> None:
    with pytest.raises(UsageError, match="'grayscale', which UGE has itself"):
        uge.attack("grayscale")(invert)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda images, labels: images[:, :, 1:], r"shape \(24, 3, 16, 16\), got torch.uint8 \(24, 3, 15, 16\)"),
        (lambda images, labels: images / 255, "got torch.float32"),
        (lambda images, labels: None, "got <class 'NoneType'>"),
        (lambda context: 3, "must return a History or a Context, got int"),
    ],
)
def test_results_that_do_not_fit(function: Any, words: str, context: Context) -> None:
    uge.attack("mine")(function)
    with pytest.raises(UsageError, match=words):
        ATTACKS["mine"].run(context)


def test_a_registered_name_is_guessed() -> None:
    uge.attack("posterize")(invert)
    with pytest.raises(UnknownNameError, match=r"did you mean 'posterize'\?.*make a third"):
        find_attack("posterise")
