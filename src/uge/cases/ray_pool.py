"""Cases as tasks of Ray (extra ``ray``): on the processes of a running cluster, or of one that is started here."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from uge.cases.job import Job
from uge.cases.pool import Outcome, answer
from uge.cases.shared_images import Setup
from uge.errors import MissingExtraError


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
    """Runs jobs in a process of Ray; the images are opened once."""

    def __init__(self, setup: Setup) -> None:
        self._open = functools.cache(setup.open)

    def run(self, job: Job) -> Outcome:
        return answer(self._open, job)


class RayActors:
    """Runs jobs in actors of Ray; all of them must be able to reach the folder of the images.

    Args:
        ray: The library.
        setup: Material that every actor opens.
        size: Actors.
    """

    def __init__(self, ray: Any, setup: Setup, size: int) -> None:
        self.size = size
        self._ray = ray
        self._setup = setup
        self._started = not ray.is_initialized()
        if self._started:
            ray.init(num_cpus=size * setup.threads, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        gpus = {"num_gpus": 1 / size} if setup.device.startswith("cuda") else {}
        self._class = ray.remote(num_cpus=setup.threads, max_restarts=0, **gpus)(_Trainer)
        self._idle = list[Any]()
        self._busy = dict[Any, tuple[Job, Any]]()

    @property
    def running(self) -> list[Job]:
        """Jobs that were started and are not over."""
        return [job for job, _ in self._busy.values()]

    def start(self, job: Job) -> None:
        """Hand a job to an idle actor, or to a new one."""
        actor = self._idle.pop() if self._idle else self._class.remote(self._setup)
        self._busy[actor.run.remote(job)] = (job, actor)

    def wait(self) -> list[tuple[Job, Outcome | None]]:
        """Wait for a job; its outcome is None where its actor died."""
        ready, _ = self._ray.wait(list(self._busy), num_returns=1)
        job, actor = self._busy.pop(ready[0])
        try:
            outcome = self._ray.get(ready[0])
        except self._ray.exceptions.RayActorError:
            return [(job, None)]
        self._idle.append(actor)
        return [(job, outcome)]

    def close(self) -> None:
        """End all actors, and the cluster if it was started here."""
        for actor in [*self._idle, *(actor for _, actor in self._busy.values())]:
            self._ray.kill(actor)
        self._idle.clear()
        self._busy.clear()
        if self._started:
            self._ray.shutdown()
