"""Batches of a stream, and threads that process them in order without holding the stream in memory."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def batches(
    items: Iterable[A], size_of: Callable[[A], int], *, most: int = 64, most_bytes: int = 1 << 20
) -> Iterator[list[A]]:
    """Lists of items, each full at ``most`` items or ``most_bytes``: small images would drown in thread switches.

    Args:
        items: Items to divide.
        size_of: Bytes of an item.
        most: Largest number of items in a list.
        most_bytes: Sum of bytes at which a list is full.
    """
    batch: list[A] = []
    size = 0
    for item in items:
        batch.append(item)
        size += size_of(item)
        if len(batch) >= most or size >= most_bytes:
            yield batch
            batch = []
            size = 0
    if batch:
        yield batch


def ordered_map(function: Callable[[A], B], items: Iterable[A], *, workers: int) -> Generator[B, None, None]:
    """Results of ``map`` from ``workers`` threads, at most ``2 * workers + 1`` items ahead; close it to stop early."""
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="publish")
    waiting: deque[Future[B]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
