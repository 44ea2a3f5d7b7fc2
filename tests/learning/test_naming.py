import itertools

import numpy as np
import pytest

from uge.learning.naming import (
    NAMINGS,
    Integers,
    Renamed,
    accuracy,
    better,
    confusion,
    cross_validated,
    names,
    rename,
)


def drawn(seed: int, count: int = 60, classes: int = 4) -> tuple[Integers, Integers]:
    random = np.random.default_rng(seed)
    return random.integers(0, classes, count), random.integers(0, classes, count)


@pytest.mark.parametrize("seed", range(5))
def test_one_to_one_is_the_best_of_all_permutations(seed: int) -> None:
    outputs, labels = drawn(seed)
    counts = confusion(outputs, labels, 4)
    best = max(
        sum(int(counts[output, label]) for output, label in enumerate(order))
        for order in itertools.permutations(range(4))
    )
    assert accuracy(counts, names(counts, "one to one")) == pytest.approx(100 * best / len(labels))


@pytest.mark.parametrize("seed", range(5))
def test_many_to_one_is_the_best_name_of_each_output(seed: int) -> None:
    outputs, labels = drawn(seed)
    counts = confusion(outputs, labels, 4)
    named = names(counts, "many to one")
    for output in range(4):
        right = [int(((outputs == output) & (labels == label)).sum()) for label in range(4)]
        assert right[named[output]] == max(right)


@pytest.mark.parametrize("naming", NAMINGS)
def test_outputs_without_images_and_ties_keep_their_names(naming: str) -> None:
    assert names(np.zeros((5, 5), np.int64), naming).tolist() == [0, 1, 2, 3, 4]
    assert names(np.ones((5, 5), np.int64), naming).tolist() == [0, 1, 2, 3, 4]


def test_names_of_random_outputs_are_not_rewarded() -> None:
    labels = np.repeat(np.arange(10), 10)
    scores = [
        cross_validated(np.random.default_rng(seed).integers(0, 10, 100), labels, 10, "many to one")
        for seed in range(40)
    ]
    assert np.mean(scores) < 14  # Chance is 10; names chosen and judged on the same images would reach about 25.


def test_a_permutation_of_the_classes_is_undone() -> None:
    labels, tested = np.repeat(np.arange(10), 10), np.repeat(np.arange(10), 7)
    renamed = rename(((labels + 1) % 10, labels), ((tested + 1) % 10, tested), 10)
    assert renamed.test == renamed.labelled == (0.0, 100.0, 100.0)
    assert renamed.oracle == (100.0, 100.0)


def test_two_outputs_of_one_class_need_many_to_one() -> None:
    labels = np.repeat(np.arange(3), 10)
    outputs = np.where(labels == 2, 0, labels + 1)
    outputs[5:10] = 2
    renamed = rename((outputs, labels), (outputs, labels), 3)
    assert renamed.oracle[1] >= renamed.oracle[0]
    assert renamed.test[0] == pytest.approx(0)


def test_of_two_forms_the_labelled_images_choose_and_bounds_are_of_both() -> None:
    first = Renamed((50, 20, 20), (48, 15, 15), (70, 60))
    second = Renamed((30, 60, 20), (31, 55, 15), (65, 66))
    assert better(first, second) == Renamed((30, 60, 20), (31, 55, 15), (70, 66))
    assert better(first, first) == first
