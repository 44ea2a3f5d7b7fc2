"""Progress of long stages: the callback of one stage, the display of all stages, and durations in words."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

Progress = Callable[[int, int, dict[str, float]], None]
"""Callback of one stage, called with (steps done, steps in all, figures to show)."""


class Display(Protocol):
    """Display of the stages of a run."""

    def stage(self, name: str) -> contextlib.AbstractContextManager[Progress]:
        """Show a stage while the block runs; gives its callback."""

    def note(self, text: str) -> None:
        """Show one line of text between stages."""


class Silent:
    """Display that shows nothing."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """Callback without output."""
        yield lambda done, total, figures: None

    def note(self, text: str) -> None:
        """Drop the text."""


def duration(seconds: float) -> str:
    """Duration in words: ``45 s``, ``12 min`` or ``2.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
