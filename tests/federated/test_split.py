"""Every image goes to exactly one server, and every server can train on what it gets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uge.errors import DataError, UnknownNameError, UsageError
from uge.federated.parts import SPLITS, split_rows


def some_labels(classes: int, per_class: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), per_class)).astype(np.int64)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(SPLITS)),
    servers=st.integers(2, 5),
    per_class=st.integers(20, 40),
    alpha=st.floats(0.3, 20),
    seed=st.integers(0, 99),
)
def test_every_image_goes_to_one_server(kind: str, servers: int, per_class: int, alpha: float, seed: int) -> None:
    labels = some_labels(10, per_class, seed)
    parts = split_rows(labels, servers, kind, alpha=alpha, seed=seed)
    assert len(parts) == servers
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for part in parts:
        assert (np.diff(part) > 0).all()
        counts = np.bincount(labels[part])
        assert (counts > 0).sum() >= 2
        assert counts[counts > 0].min() >= 2


def test_classes_gives_two_servers_five_classes_each() -> None:
    labels = some_labels(10, 7, 0)
    first, second = split_rows(labels, 2, "classes")
    assert set(labels[first]) == {0, 1, 2, 3, 4}
    assert set(labels[second]) == {5, 6, 7, 8, 9}


def test_classes_without_images_are_left_out_of_the_blocks() -> None:
    labels = np.array([1, 1, 3, 3, 7, 7, 9, 9], dtype=np.int64)
    assert [set(labels[part]) for part in split_rows(labels, 2, "classes")] == [{1, 3}, {7, 9}]


@settings(max_examples=30, deadline=None)
@given(servers=st.integers(2, 7), per_class=st.integers(14, 30), seed=st.integers(0, 9))
def test_iid_gives_equal_shares(servers: int, per_class: int, seed: int) -> None:
    labels = some_labels(5, per_class, seed)
    parts = split_rows(labels, servers, "iid", seed=seed)
    counts = np.stack([np.bincount(labels[part], minlength=5) for part in parts])
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp(counts.sum(1)) <= 1


def test_a_small_alpha_is_more_uneven_than_a_large_one() -> None:
    labels = some_labels(10, 200, 0)

    def unevenness(alpha: float) -> float:
        draws = [split_rows(labels, 2, "dirichlet", alpha=alpha, seed=seed) for seed in range(10)]
        shares = [np.bincount(labels[first], minlength=10) / 200 for first, _ in draws]
        return float(np.mean([np.abs(share - 0.5).mean() for share in shares]))

    assert unevenness(0.2) > 2 * unevenness(5.0)


def test_the_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    labels = some_labels(4, 50, 0)
    first, again, other = (split_rows(labels, 3, "dirichlet", seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("kind", sorted(SPLITS))
def test_too_many_servers_are_refused(kind: str) -> None:
    with pytest.raises(DataError, match="take fewer servers or more images"):
        split_rows(some_labels(3, 4, 0), 8, kind)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'classes'"):
        split_rows(some_labels(3, 4, 0), 2, "class")
    with pytest.raises(UsageError, match="at least 2 servers"):
        split_rows(some_labels(3, 4, 0), 1, "iid")
    with pytest.raises(UsageError, match="alpha above 0"):
        split_rows(some_labels(3, 4, 0), 2, "dirichlet", alpha=0)
