"""Bytes of images in the hands of threads are bounded, whatever the number of images."""

import threading

import pytest

from uge.publishing.stream import batches, ordered_map


class Ahead:
    """Items that count how many bytes were taken and not yet handed back."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.most = 0
        self.now = 0
        self._lock = threading.Lock()

    def __iter__(self):
        for size in self.sizes:
            with self._lock:
                self.now += size
                self.most = max(self.most, self.now)
            yield size


@pytest.mark.parametrize(
    ("sizes", "bound"),
    [([10] * 50, 40), ([100] * 6, 100), ([1] * 20 + [39] * 5 + [1] * 20, 78), ([30, 10, 30, 10], 40)],
)
def test_items_ahead_are_bounded_in_bytes(sizes, bound):
    ahead = Ahead(sizes)
    results = []
    for size in ordered_map(lambda size: size, ahead, workers=8, size_of=lambda size: size, most_bytes=40):
        results.append(size)
        ahead.now -= size
    assert results == sizes
    assert ahead.most <= bound


def test_without_sizes_items_ahead_are_bounded_in_number():
    ahead = Ahead([1] * 40)
    for size in ordered_map(lambda size: size, ahead, workers=2):
        ahead.now -= size
    assert ahead.most <= 2 * 2 + 1


def test_a_failure_comes_at_its_place():
    results = ordered_map(lambda number: 1 // number, [1, 1, 0, 1], workers=2, size_of=lambda _: 1)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_batches_are_full_at_their_number_or_bytes():
    assert list(batches([5, 5, 5, 9], lambda size: size, most=2, most_bytes=9)) == [[5, 5], [5, 9]]
    assert list(batches([20, 1, 1, 1], lambda size: size, most=2, most_bytes=9)) == [[20], [1, 1], [1]]
