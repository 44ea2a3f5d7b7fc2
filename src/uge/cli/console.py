"""Results of commands, logging, and progress on stderr: a bar with an ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from uge.cli.flags import Common, Compute, Reading
from uge.errors import printable
from uge.processes import load_ahead, loading
from uge.progress import Display, Progress, Silent

if TYPE_CHECKING:
    from uge.session import Session

_LINE_SECONDS = 15.0


@dataclass(frozen=True)
class Outcome:
    """Result of a command.

    Attributes:
        result: The result for ``--json``.
        text: The same as text.
        complaints: Sentences for stderr.
        code: Exit code.
    """

    result: dict[str, Any]
    text: str
    complaints: Sequence[str] = ()
    code: int = 0


def open_session(flags: Compute, *, preload: str = "") -> Session:
    """Set logging and threads, and resolve device and precision.

    Args:
        flags: Flags of the user.
        preload: Module for :class:`uge.processes.Processes`, where there will be some. Their libraries take seconds to
            load, and are loaded while this process loads its own.

    Raises:
        UsageError: The device is absent, or the precision unknown.
    """
    set_logging(flags)
    set_reading(flags)
    # Threads that wait by spinning make a busy machine ten times slower; this must be set before torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if preload:
        load_ahead(preload)
    with loading():
        import torch

        from uge.runtime import Runtime
        from uge.session import Session

    if flags.threads is not None:
        torch.set_num_threads(flags.threads)
    return Session(
        Runtime.create(flags.device, flags.precision),
        make_progress(quiet=flags.quiet),
        resume=getattr(flags, "resume", False),
        overwrite=getattr(flags, "overwrite", False),
        dry_run=getattr(flags, "dry_run", False),
    )


def set_logging(flags: Common) -> None:
    """Send messages of the level that the flags ask for to stderr."""
    level = logging.ERROR if flags.quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(flags.verbose, 2)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PrintableMessages("%(levelname)s %(name)s: %(message)s"))
    # This package's own logger: the root logger belongs to the program that calls main().
    logger = logging.getLogger("uge")
    logger.handlers = [handler]
    logger.setLevel(level)
    if not flags.verbose:
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # Its retries would bury the one sentence that counts.


class _PrintableMessages(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))


def set_reading(flags: Reading) -> None:
    """Read the columns of tables and by the private key that the flags name, and images up to the size they allow.

    Raises:
        UsageError: The file of the private key holds none that can be used.
    """
    from uge.data.formats.base import COLUMNS, Columns
    from uge.data.formats.sealed import OPENER

    COLUMNS.set(Columns(flags.image_column, flags.label_column))
    if flags.source_key is None:
        OPENER.set(None)
    else:
        from uge.sealing.opening import opener

        OPENER.set(opener(flags.source_key))
    if flags.max_image_pixels is not None:
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = flags.max_image_pixels


def make_progress(*, quiet: bool) -> Display:
    """The progress that fits the terminal."""
    if quiet:
        return _Alerts()
    return _Bars() if sys.stderr.isatty() and not os.environ.get("CI") else _Lines()


class _Alerts(Silent):
    """Lines that are shown even with ``--quiet``."""

    def alert(self, text: str) -> None:
        sys.stderr.write(printable(text) + "\n")
        sys.stderr.flush()


class _Bars:
    """One bar per stage, with elapsed and remaining time."""

    _console = Console(stderr=True)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with RichProgress(*columns, console=self._console) as progress:
            task = progress.add_task(escape(printable(name)), total=None, figures="")
            yield lambda done, total, figures: progress.update(
                task, completed=done, total=total, figures=_figures(figures)
            )

    def note(self, text: str) -> None:
        self._console.print(printable(text), highlight=False, markup=False)

    alert = note


class _Lines(_Alerts):
    """A line when a stage ends, and every quarter of a minute while it runs."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        began = shown = time.monotonic()
        latest: dict[str, float] = {}

        def on_progress(done: int, total: int, figures: dict[str, float]) -> None:
            nonlocal shown, latest
            latest = figures
            if time.monotonic() - shown >= _LINE_SECONDS and done:
                shown = time.monotonic()
                remaining = (shown - began) / done * max(total - done, 0)
                self.note(f"{name}: {done}/{total}, ETA {remaining:.0f} s {_figures(figures)}".rstrip())

        yield on_progress
        self.note(f"{name}: done in {time.monotonic() - began:.1f} s {_figures(latest)}".rstrip())

    def note(self, text: str) -> None:
        self.alert(text)


def _figures(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
