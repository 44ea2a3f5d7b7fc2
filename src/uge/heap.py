"""Freed memory of glibc's heap: kept for the next step of a training, given back after a large image."""

import contextlib
import ctypes
from collections.abc import Iterator

_MMAP_THRESHOLD = -3  # Names and numbers of malloc.h
_TRIM_THRESHOLD = -1
_state = {"kept": False}


def keep_freed_memory() -> None:
    """Make glibc reuse freed memory instead of returning it to the kernel after every step.

    A training step on a CPU allocates and frees the same large tensors again and again; fresh pages for each of them
    cost a quarter of the step (benchmarks/training.py).
    """
    _state["kept"] = True
    _set(_MMAP_THRESHOLD, 2**30)
    _set(_TRIM_THRESHOLD, 2**30)


@contextlib.contextmanager
def given_back() -> Iterator[None]:
    """Take blocks of 4 MB and more from the kernel inside, and give them back when they are freed.

    In a heap that is kept, small objects settle in the gap that a large image leaves, and the next image needs another.
    """
    if _state["kept"]:
        _set(_MMAP_THRESHOLD, 2**22)
    try:
        yield
    finally:
        if _state["kept"]:
            _set(_MMAP_THRESHOLD, 2**30)


def _set(name: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # Another C library.
        ctypes.CDLL(None).mallopt(name, value)
