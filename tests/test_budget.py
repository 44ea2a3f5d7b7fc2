import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from uge.budget import Budget
from uge.errors import UsageError

PIXELS = arrays.arrays(np.uint8, (3, 4))
DELTAS = arrays.arrays(np.int32, (3, 4), elements=st.integers(-100_000, 100_000))
BYTES = arrays.arrays(np.int8, (3, 4))


@pytest.mark.parametrize(
    ("text", "levels"), [("0.04", 10), ("8/255", 8), ("16/255", 16), (0.5, 127), (1, 255), (1 / 255, 1)]
)
def test_parse(text: str | float, levels: int) -> None:
    assert Budget.parse(text).levels == levels


def test_every_whole_number_of_levels_is_read_back() -> None:
    assert [Budget.parse(f"{levels}/255").levels for levels in range(1, 256)] == list(range(1, 256))


def test_a_budget_passes_through() -> None:
    budget = Budget(0.1)
    assert Budget.parse(budget) is budget


@pytest.mark.parametrize("text", ["", "much", "1/0", "nan", "inf", "1e999", 0, -0.1, 1.01, float("nan"), 0.5 / 255])
def test_refuses_what_is_no_budget(text: str | float) -> None:
    with pytest.raises(UsageError, match="rho"):
        Budget.parse(text)


@given(PIXELS, DELTAS | BYTES, st.integers(1, 255))
def test_add_stays_within_budget_and_range(clean: np.ndarray, delta: np.ndarray, levels: int) -> None:
    budget = Budget(levels / 255)
    moved = budget.add(clean, delta)
    for before, by, after in zip(clean.flat, delta.flat, moved.flat, strict=True):
        assert after == min(max(int(before) + min(max(int(by), -levels), levels), 0), 255)
    assert moved.dtype == np.uint8
    assert Budget.measure(clean, moved) <= levels
    as_tensor = budget.add(torch.from_numpy(clean), torch.from_numpy(delta))
    assert as_tensor.dtype == torch.uint8
    np.testing.assert_array_equal(as_tensor.numpy(), moved)


@given(PIXELS, PIXELS)
def test_measure_is_the_largest_difference(a: np.ndarray, b: np.ndarray) -> None:
    assert Budget.measure(a, b) == max(abs(int(x) - int(y)) for x, y in zip(a.flat, b.flat, strict=True))


def test_measure_of_nothing_is_zero() -> None:
    assert Budget.measure(np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.uint8)) == 0
