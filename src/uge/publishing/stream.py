"""Batches of a stream, and threads that process them in order without holding the stream in memory."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")
MOST_BYTES = 48 * 2**20
"""Bytes of decoded images that wait for threads or are in their hands."""


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
        del item  # Not kept while the next one is made.
        if len(batch) >= most or size >= most_bytes:
            yield batch
            batch = []
            size = 0
    if batch:
        yield batch


def ordered_map(
    function: Callable[[A], B],
    items: Iterable[A],
    *,
    workers: int,
    size_of: Callable[[A], int] | None = None,
    most_bytes: int = MOST_BYTES,
) -> Generator[B, None, None]:
    """Results of ``map`` from ``workers`` threads, in order; close it to stop early.

    Args:
        function: Called in a thread.
        items: Taken one after another, at most ``2 * workers + 1`` ahead.
        workers: Number of threads.
        size_of: Bytes of an item.
        most_bytes: Bytes of the items ahead. The next item is taken for as large as the largest one so far; an item
            that is larger than this is ahead alone.
    """
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="publish")
    waiting: deque[tuple[int, Future[B]]] = deque()
    ahead = 0
    largest = 0
    source = iter(items)
    try:
        while True:
            while waiting and (len(waiting) > 2 * workers or ahead + largest > most_bytes):
                size, result = waiting.popleft()
                yield result.result()
                ahead -= size
                del result
            for item in source:
                size = size_of(item) if size_of else 0
                waiting.append((size, pool.submit(function, item)))
                ahead += size
                largest = max(largest, size)
                del item
                break
            else:
                break
        while waiting:
            yield waiting.popleft()[1].result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
