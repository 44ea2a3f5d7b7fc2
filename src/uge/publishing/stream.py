"""Work on a stream in threads, in order, without holding it in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

BATCH, BATCH_BYTES = 64, 1 << 20


def batches(items: Iterable[A], size_of: Callable[[A], int]) -> Iterator[list[A]]:
    """Lists of up to 64 items that are together about a mebibyte: small images would drown in thread switches."""
    batch: list[A] = []
    size = 0
    for item in items:
        batch.append(item)
        size += size_of(item)
        if len(batch) >= BATCH or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def ordered_map(function: Callable[[A], B], items: Iterable[A], *, workers: int) -> Generator[B, None, None]:
    """``map`` in ``workers`` threads with at most ``2 * workers + 1`` items under way; close it to stop early."""
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
