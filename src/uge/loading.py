"""Loading libraries without the garbage collector.

They make very many objects that stay. The collector would search them again and again while they come, and once more
when the process ends, which takes about a fifth of the time of ``uge env``. For processes that are this package's own.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """No collector for as long as the block lasts, and none later for what it loads.

    Does nothing where torch is loaded already or the collector is off: this process is somebody's program then.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    begin()
    try:
        yield
    finally:
        end()


def begin() -> None:
    """Switch the collector off; at exit it finds nothing to search."""
    gc.disable()
    atexit.register(gc.freeze)


def end() -> None:
    """Switch the collector on, for objects that are made from now on."""
    gc.freeze()
    gc.enable()
