"""Where cases are run: in this process, or in several that share the decoded images."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from uge.cases.case import Case
from uge.cases.job import Job
from uge.cases.run import Audit
from uge.cases.shared_images import Setup
from uge.errors import DataError, UGEError, UsageError
from uge.processes import Processes
from uge.progress import Display


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: The job.
        case: Its case; None where there is none.
        seconds: How long it took, images that the attack changed first included.
        error: What went wrong, in one sentence.
        killed: Whether the process that ran it died.
    """

    job: Job
    case: Case | None = None
    seconds: float = 0.0
    error: str = ""
    killed: bool = False


class Pool(Protocol):
    """Runs jobs, some at the same time."""

    size: int

    @property
    def running(self) -> list[Job]:
        """Jobs that were started and of which nothing is known yet."""

    def start(self, job: Job, name: str) -> None:
        """Start a job; only where fewer than ``size`` are running. ``name`` is for the progress."""

    def wait(self) -> list[Outcome]:
        """Wait for at least one running job.

        Raises:
            UGEError: A setting, a file or the disk is wrong, so that going on makes no sense.
        """


class Serial:
    """Runs one job after the other in this process, with a bar for each."""

    size = 1

    def __init__(self, audit: Audit, progress: Display) -> None:
        self._audit, self._progress = audit, progress
        self._job: tuple[Job, str] | None = None

    @property
    def running(self) -> list[Job]:
        """The job that was started."""
        return [self._job[0]] if self._job else []

    def start(self, job: Job, name: str) -> None:
        """Note the job; :meth:`wait` runs it."""
        self._job = job, name

    def wait(self) -> list[Outcome]:
        """Run the job."""
        assert self._job is not None, "nothing was started"
        (job, name), self._job = self._job, None
        began = time.perf_counter()
        with self._progress.stage(name) as on_progress:
            try:
                return [Outcome(job, self._audit.run(job, on_progress), time.perf_counter() - began)]
            except UGEError:
                raise
            except Exception as error:
                return [Outcome(job, error=told(error))]


def told(error: BaseException) -> str:
    """An unexpected error in one line."""
    return " ".join(f"unexpected {type(error).__name__}: {error}".split())


class LocalProcesses:
    """Runs jobs in processes of their own; one that dies takes nothing but its own job with it.

    Args:
        setup: What every process opens.
        size: Processes.
        progress: Shows a line per case.
    """

    def __init__(self, setup: Setup, size: int, progress: Display) -> None:
        self.size, self._progress = size, progress
        self._processes = Processes[Job, Outcome | Failure](functools.partial(_opened, setup), size, preload=__name__)
        self._names: dict[Job, str] = {}

    @property
    def running(self) -> list[Job]:
        """The jobs in work."""
        return self._processes.running

    def start(self, job: Job, name: str) -> None:
        """Hand a job to an idle process, or to a new one."""
        self._names[job] = name
        self._processes.start(job)

    def wait(self) -> list[Outcome]:
        """Wait for an answer, or for the end of a process."""
        found = list[Outcome]()
        for job, answer in self._processes.wait():
            if isinstance(answer, Failure):
                raise answer.error()
            found.append(answer or Outcome(job, error="the process that ran it died", killed=True))
            note_outcome(self._progress, self._names[job], found[-1])
        return found

    def close(self) -> None:
        """End all processes, whatever they do."""
        self._processes.close()


def note_outcome(progress: Display, name: str, outcome: Outcome) -> None:
    """One line about a case that another process finished."""
    if outcome.case is not None:
        case = outcome.case
        progress.note(f"{name}: done in {outcome.seconds:.1f} s  last {case.last:.2f}  best {case.best:.2f}")


@dataclass(frozen=True)
class Failure:
    """An error of this package, which is raised again where the audit was started."""

    code: int
    text: str

    def error(self) -> UGEError:
        """The error, of the class that leads to the same exit code."""
        return (UsageError if self.code == UsageError.exit_code else DataError)(self.text)


def outcome(audit: Callable[[], Audit], job: Job) -> Outcome | Failure:
    """Run a job in a process of its own: what is no fault of the whole audit becomes an outcome."""
    began = time.perf_counter()
    try:
        return Outcome(job, audit().run(job), time.perf_counter() - began)
    except UGEError as error:
        return Failure(error.exit_code, str(error))
    except Exception as error:
        return Outcome(job, error=told(error), seconds=time.perf_counter() - began)


def _opened(setup: Setup) -> Callable[[Job], Outcome | Failure]:
    return functools.partial(outcome, functools.cache(setup.open))
