"""Progress of long stages: the callback of one stage, the display of all, and a silent display."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

Progress = Callable[[int, int, dict[str, float]], None]
"""Callback of one stage: called with (steps done, steps in all, figures to show)."""


class Display(Protocol):
    """Shows the stages of a run."""

    def stage(self, name: str) -> contextlib.AbstractContextManager[Progress]:
        """A stage with a bar of its own, for as long as the block lasts."""

    def note(self, text: str) -> None:
        """One line of text between stages."""


class Silent:
    """Shows nothing."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """A stage without output."""
        yield lambda done, total, figures: None

    def note(self, text: str) -> None:
        """Drop the text."""
