"""Work that a page watches: one job at a time, in a thread, with progress, and an end when that is asked for."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from uge.errors import UGEError, UsageError
from uge.progress import Progress

State = Literal["running", "done", "failed", "cancelled"]
_NOTES = 6


class Cancelled(BaseException):
    """The job was to end; what it finished is kept."""


@dataclass
class Job:
    """One job; it is the :class:`uge.progress.Display` of its own work.

    Attributes:
        kind: ``"protect"`` or ``"audit"``.
        wish: What was asked for, so that it can go on.
        state: Where it stands.
        stage: Name of the stage that runs.
        done: Parts of that stage that are done.
        total: Its parts; 0 where that is unknown.
        notes: The last notes.
        result: What came out, as JSON values.
        error: One sentence, where it failed.
    """

    kind: str
    wish: dict[str, Any]
    state: State = "running"
    stage: str = ""
    done: int = 0
    total: int = 0
    notes: list[str] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def __post_init__(self) -> None:
        self._cancel = threading.Event()

    @contextlib.contextmanager
    def stage_of(self, name: str) -> Iterator[Progress]:
        """Show a stage, and end the job inside it when that was asked for."""
        self.stage, self.done, self.total = name, 0, 0

        def on_progress(done: int, total: int, figures: dict[str, float]) -> None:
            self.done, self.total = done, total
            self.check()

        self.check()
        yield on_progress
        self.check()

    def check(self) -> None:
        """Raise where the job is to end.

        Raises:
            Cancelled: :meth:`cancel` was called.
        """
        if self._cancel.is_set():
            raise Cancelled

    def cancel(self) -> None:
        """End at the next step of its progress."""
        self._cancel.set()

    def note(self, text: str) -> None:
        """Keep a note for the page."""
        self.notes = [*self.notes, text][-_NOTES:]

    def status(self) -> dict[str, Any]:
        """Everything that the page shows, as JSON values."""
        names = ("kind", "state", "stage", "done", "total", "notes", "result", "error")
        return {name: getattr(self, name) for name in names}


class Watch:
    """Progress of a job in the form that pipelines take."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def stage(self, name: str) -> contextlib.AbstractContextManager[Progress]:
        """A stage; see :meth:`Job.stage_of`."""
        return self._job.stage_of(name)

    def note(self, text: str) -> None:
        """A note."""
        self._job.note(text)

    def alert(self, text: str) -> None:
        """A note as well."""
        self._job.note(text)


class Desk:
    """The one job at a time."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """True while a job runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, kind: str, wish: dict[str, Any], work: Callable[[Watch], dict[str, Any]]) -> Job:
        """Start a job.

        Raises:
            UsageError: Another one runs.
        """
        if self.busy:
            raise UsageError("something runs already; wait for it, or cancel it")
        job = Job(kind, wish)

        def run() -> None:
            try:
                job.result = work(Watch(job))
                job.state = "done"
            except Cancelled:
                job.state = "cancelled"
            except UGEError as error:
                job.state, job.error = "failed", str(error)
            except Exception as error:  # The page must say so; the thread has nobody to tell.
                job.state, job.error = "failed", f"unexpected {type(error).__name__}: {error}"

        self.job = job
        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        return job

    def wait(self, seconds: float | None = None) -> None:
        """Wait for the job's end."""
        if self._thread is not None:
            self._thread.join(seconds)
