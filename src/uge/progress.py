"""Progress of long stages: what it is told by, and the silent default."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

Tell = Callable[[int, int, dict[str, float]], None]
"""Called with (done, total, figures to show)."""


class Progress(Protocol):
    """Shows the stages of a run."""

    def stage(self, name: str) -> contextlib.AbstractContextManager[Tell]:
        """A stage with a bar of its own, for as long as the block lasts."""

    def note(self, text: str) -> None:
        """One line of text between stages."""


class Silent:
    """Shows nothing."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Tell]:
        """A stage that nobody sees."""
        yield lambda done, total, figures: None

    def note(self, text: str) -> None:
        """Drop the text."""
