"""Cases as tasks of Ray (extra ``ray``): on the processes of a running cluster, or of one that is started here."""

from __future__ import annotations

import importlib
from typing import Any

from uge.cases.job import Job
from uge.cases.pool import Failure, Outcome, note_outcome, outcome
from uge.cases.run import Audit
from uge.cases.shared_images import Setup
from uge.errors import MissingExtraError
from uge.progress import Display


def require_ray() -> Any:
    """The library Ray.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise MissingExtraError("ray", "ray", "the executor 'ray'") from None


class _Trainer:
    """Lives in a process of Ray and runs one job after the other; the audit is opened once."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._audit: Audit | None = None

    def run(self, job: Job) -> Outcome | Failure:
        return outcome(self._open, job)

    def _open(self) -> Audit:
        self._audit = self._audit or self._setup.open()
        return self._audit


class Actors:
    """Runs jobs in actors of Ray; the audit folder must be one that all of them can reach.

    Args:
        ray: The library.
        setup: What every actor opens.
        size: Actors.
        progress: Shows a line per case.
    """

    def __init__(self, ray: Any, setup: Setup, size: int, progress: Display) -> None:
        self.size, self._ray, self._setup, self._progress = size, ray, setup, progress
        self._started = not ray.is_initialized()
        if self._started:
            ray.init(num_cpus=size * setup.threads, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        gpus = {"num_gpus": 1 / size} if setup.device.startswith("cuda") else {}
        self._class = ray.remote(num_cpus=setup.threads, max_restarts=0, **gpus)(_Trainer)
        self._idle, self._busy = list[Any](), dict[Any, tuple[Job, str, Any]]()

    @property
    def running(self) -> list[Job]:
        """The jobs in work."""
        return [job for job, _, _ in self._busy.values()]

    def start(self, job: Job, name: str) -> None:
        """Hand a job to an idle actor, or to a new one."""
        actor = self._idle.pop() if self._idle else self._class.remote(self._setup)
        self._busy[actor.run.remote(job)] = job, name, actor

    def wait(self) -> list[Outcome]:
        """Wait for an answer, or for the end of an actor."""
        ready, _ = self._ray.wait(list(self._busy), num_returns=1)
        job, name, actor = self._busy.pop(ready[0])
        try:
            answer = self._ray.get(ready[0])
        except self._ray.exceptions.RayActorError:
            return [Outcome(job, error="the process that ran it died", killed=True)]
        if isinstance(answer, Failure):
            raise answer.error()
        self._idle.append(actor)
        note_outcome(self._progress, name, answer)
        return [answer]

    def close(self) -> None:
        """End all actors, and the cluster if it was started here."""
        for actor in [*self._idle, *(actor for _, _, actor in self._busy.values())]:
            self._ray.kill(actor)
        self._idle.clear()
        self._busy.clear()
        if self._started:
            self._ray.shutdown()
