from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from uge.attacks import ATTACKS, Context, find_attack
from uge.data.store import PixelStore
from uge.errors import UsageError
from uge.learning.recipes import Recipe
from uge.networks import build
from uge.runtime import Runtime

MakeStore = Callable[..., PixelStore]


@pytest.fixture
def context(make_store: MakeStore, runtime: Runtime) -> Context:
    few = make_store(count=9, separable=True, seed=2)
    return Context(
        network=build("cnn", 3, seed=1, size=16),
        store=make_store(count=48, separable=True),
        test=make_store(count=30, separable=True, seed=1),
        recipe=Recipe(epochs=3, batch_size=8, lr=0.05, augment="none"),
        seed=3,
        runtime=runtime,
        teacher=lambda: pytest.fail("no teacher"),
        few=lambda: few,
        chooses=True,
    )


def permuted(store: PixelStore) -> PixelStore:
    return replace(store, labels=(store.labels + 1) % len(store.classes))


def test_a_network_trained_on_permuted_labels_is_renamed_by_the_labelled_images(context: Context) -> None:
    last = find_attack("direct").run(replace(context, store=permuted(context.store))).epochs[-1]
    assert last.renamed is not None
    assert last.test_accuracy is not None
    assert last.renamed.test[0] == pytest.approx(last.test_accuracy)
    assert last.renamed.test[1] >= last.test_accuracy + 50
    assert last.renamed.labelled[1] > last.renamed.labelled[0]


def test_a_filter_changes_the_labelled_images_too(context: Context) -> None:
    prepare = ATTACKS["grayscale"].prepare
    assert prepare is not None
    few = prepare(context).few().pixels.read(torch.arange(9))
    assert not torch.equal(few, context.few().pixels.read(torch.arange(9)))
    assert torch.equal(few, few[:, :1].expand_as(few))


def test_the_labelled_images_alone_train_as_many_steps_and_choose_nothing(context: Context) -> None:
    history = find_attack("few-labelled").run(context)
    assert [epoch.renamed for epoch in history.epochs] == [None] * 3
    assert history.last > 60  # Three classes of different brightness.
    other = replace(context, store=permuted(context.store), network=build("cnn", 3, seed=1, size=16))
    assert find_attack("few-labelled").run(other).last == history.last  # The copy plays no part.


def test_public_images_go_before(context: Context, make_store: MakeStore) -> None:
    with pytest.raises(UsageError, match="another data set; give --public"):
        find_attack("few-labelled-public").run(context)
    public = make_store(count=20, classes=4, seed=5)
    assert len(find_attack("few-labelled-public").run(replace(context, public=lambda: public)).epochs) == 3


def test_without_labelled_images_it_is_refused(context: Context) -> None:
    bare = Context(**{name: value for name, value in vars(context).items() if name not in ("few", "chooses")})
    with pytest.raises(UsageError, match="ten labelled clean images a class; audit with --worst-case"):
        find_attack("few-labelled").run(bare)


def test_where_test_images_are_changed_the_labelled_images_choose_their_form(context: Context) -> None:
    prepare = ATTACKS["grayscale"].prepare
    assert prepare is not None
    changed = prepare(context)
    last = find_attack("grayscale").run(context).epochs[-1]
    assert last.renamed is not None
    assert last.other_accuracy is not None
    accuracies = [last.test_accuracy, last.other_accuracy]
    assert any(last.renamed.test[0] == pytest.approx(accuracy) for accuracy in accuracies)
    assert torch.equal(changed.original_few().pixels.read(torch.arange(9)), context.few().pixels.read(torch.arange(9)))
