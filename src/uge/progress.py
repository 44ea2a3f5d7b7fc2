"""Progress of long stages: the callback of one stage, the display of all stages, and durations in words."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

#: Callback of one stage, called with (steps done, steps in all, figures to show).
Progress = Callable[[int, int, dict[str, float]], None]


def part_of(progress: Progress | None, number: int, parts: int) -> Progress | None:
    """Callback of part ``number``, from 0, of a stage of ``parts`` parts of equal length; None without a stage."""
    if progress is None:
        return None
    return lambda done, total, figures: progress(number * total + done, parts * total, figures)


class Display(Protocol):
    """Display of the stages of a run."""

    def stage(self, name: str) -> contextlib.AbstractContextManager[Progress]:
        """Show a stage while the block runs; gives its callback."""

    def note(self, text: str) -> None:
        """Show one line of text between stages."""

    def alert(self, text: str) -> None:
        """Show one line of text that a user must see, even without progress."""


class Silent:
    """Display that shows nothing."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """Callback without output."""
        yield lambda done, total, figures: None

    def note(self, text: str) -> None:
        """Drop the text."""

    def alert(self, text: str) -> None:
        """Drop the text."""


def duration(seconds: float) -> str:
    """Duration in words: ``45 s``, ``12 min`` or ``2.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
