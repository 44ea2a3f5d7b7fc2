import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from uge.errors import UsageError
from uge.methods.uge.feature_distance import class_derangement, feature_distance, least_similar_classes


def features(count: int, seed: int, dim: int = 4) -> Tensor:
    draw = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(draw, dim=1)


CLEAN, PROTECTED, TEXT = features(6, 0), features(6, 1), features(3, 2)
LABELS, TARGETS = torch.tensor([0, 1, 2, 2, 1, 0]), torch.tensor([1, 2, 0, 1, 0, 2])


def naive(clean: Tensor, protected: Tensor, text: Tensor, labels: Tensor, targets: Tensor, alpha: float) -> float:
    def square(a: list[float], b: list[float]) -> float:
        return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))

    total = 0.0
    for f, f_u, y, c in zip(clean.tolist(), protected.tolist(), labels.tolist(), targets.tolist(), strict=True):
        t, t_c = text[y].tolist(), text[c].tolist()
        total += -square(f, f_u) + square(f_u, t_c) + max(0.0, alpha - square(f_u, t))
    return total / len(labels)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 2.5])
def test_is_the_formula(alpha: float) -> None:
    expected = naive(CLEAN, PROTECTED, TEXT, LABELS, TARGETS, alpha)
    assert feature_distance(CLEAN, PROTECTED, TEXT, LABELS, TARGETS, alpha=alpha).item() == pytest.approx(expected)


def test_the_margin_pushes_only_inside_it() -> None:
    inside = feature_distance(CLEAN, TEXT[LABELS], TEXT, LABELS, TARGETS, alpha=0.1)
    assert (inside - feature_distance(CLEAN, TEXT[LABELS], TEXT, LABELS, TARGETS, alpha=0)).item() == pytest.approx(0.1)


def test_means_over_dimensions_are_sums_over_their_number() -> None:
    """Also in the margin, which is then as wide as α times the number of dimensions."""
    mean = feature_distance(CLEAN, PROTECTED, TEXT, LABELS, TARGETS, alpha=0.4, distance="mean").item()
    assert 4 * mean == pytest.approx(naive(CLEAN, PROTECTED, TEXT, LABELS, TARGETS, 4 * 0.4))


def test_a_rotation_of_the_space_changes_nothing() -> None:
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).Q
    before = feature_distance(CLEAN, PROTECTED, TEXT, LABELS, TARGETS, alpha=1.0).item()
    after = feature_distance(CLEAN @ turn, PROTECTED @ turn, TEXT @ turn, LABELS, TARGETS, alpha=1.0).item()
    assert after == pytest.approx(before)


def test_order_of_images_and_of_classes_changes_nothing() -> None:
    before = feature_distance(CLEAN, PROTECTED, TEXT, LABELS, TARGETS, alpha=1.0).item()
    order, renamed = torch.tensor([5, 3, 1, 0, 2, 4]), torch.tensor([2, 0, 1])
    text = torch.empty_like(TEXT)
    text[renamed] = TEXT
    after = feature_distance(
        CLEAN[order], PROTECTED[order], text, renamed[LABELS[order]], renamed[TARGETS[order]], alpha=1.0
    )
    assert after.item() == pytest.approx(before)


@pytest.mark.parametrize("alpha", [0.1, 2.5])
def test_gradient_is_that_of_finite_differences(alpha: float) -> None:
    assert torch.autograd.gradcheck(
        lambda moved: feature_distance(CLEAN, F.normalize(moved, dim=1), TEXT, LABELS, TARGETS, alpha=alpha),
        PROTECTED.clone().requires_grad_(True),
    )


def test_least_similar_class_of_every_image() -> None:
    for f, y, target in zip(CLEAN, LABELS.tolist(), least_similar_classes(CLEAN, TEXT, LABELS).tolist(), strict=True):
        others = {c: float(f @ TEXT[c]) for c in range(3) if c != y}
        assert target == min(others, key=others.__getitem__)


@settings(max_examples=60, deadline=None)
@given(classes=st.integers(2, 6), seed=st.integers(0, 10_000), alike=st.booleans())
def test_derangement_of_least_similarity(classes: int, seed: int, alike: bool) -> None:
    text = features(classes, seed, dim=3)
    if alike:  # ties: two classes have the same feature
        text[1] = text[0]
    targets = class_derangement(text).tolist()
    similarity = (text @ text.T).numpy()
    assert sorted(targets) == list(range(classes))
    assert all(target != own for own, target in enumerate(targets))
    best = min(
        sum(similarity[own, target] for own, target in enumerate(order))
        for order in itertools.permutations(range(classes))
        if all(target != own for own, target in enumerate(order))
    )
    assert sum(similarity[np.arange(classes), targets]) == pytest.approx(best)
    assert class_derangement(text.clone()).tolist() == targets


def test_one_class_has_no_target() -> None:
    with pytest.raises(UsageError, match="at least two classes"):
        class_derangement(TEXT[:1])
