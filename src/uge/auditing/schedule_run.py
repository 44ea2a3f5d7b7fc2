"""Running an audit: finished cases are kept, the rest is handed to workers, within the time there is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from uge.auditing.plan import LeftOut, Plan, combinations
from uge.auditing.schedule import Deadline, Pace, by_damage, in_words, warm_up
from uge.cases.case import Case, write_case
from uge.cases.job import Job
from uge.cases.pool import LocalProcesses, Outcome, Pool, Serial
from uge.cases.run import Audit
from uge.cases.shared_images import shared, threads_each
from uge.errors import UsageError
from uge.files import write_json
from uge.processes import TRIES
from uge.progress import Display, Silent

COMBINED = 1.5
"""Time of a combination of two attacks in units of plain training, for what is kept free of a limited audit."""
COMBINATION = "the combination of the two best attacks"

Open = Callable[[], contextlib.AbstractContextManager[Pool]]


@dataclass(frozen=True)
class Found:
    """What an audit gave.

    Attributes:
        cases: In the order of the plan.
        left_out: What was not run, and why.
        failed: Ids of cases that were tried and gave no result.
        planned: Cases that a complete audit would have had, what it cannot run for want of something not counted.
    """

    cases: list[Case]
    left_out: list[LeftOut]
    failed: list[str]
    planned: int


@dataclass
class Execution:
    """One run of an audit.

    Attributes:
        audit: What cases depend on.
        plan: The cases.
        progress: Shows cases.
        opened: Opens the workers, when the first case is to be run.
        workers: How many there are.
        deadline: When it has to be over; with an end, cases are run in the order of
            :func:`uge.auditing.schedule.by_damage`, and none is started that would end after it.
        warm: Gives the seconds of plain training of a network of which no case is finished.
    """

    audit: Audit
    plan: Plan
    progress: Display
    opened: Open
    workers: int = 1
    deadline: Deadline = field(default_factory=Deadline)
    warm: Callable[[str], float] | None = None

    def __post_init__(self) -> None:
        self._pace = Pace()
        self._cases: dict[Job, Case] = {}
        self._left_out = list(self.plan.left_out)
        self._failed: dict[Job, str] = {}
        self._tries: dict[Job, int] = {}
        self._planned = list(self.plan.jobs)
        self._done = 0
        self._pool: Pool | None = None

    def run(self) -> Found:
        """Run every case that is not finished yet; return all that are.

        Raises:
            UsageError: The budget does not even hold the essential cases.
            UGEError: A setting, a file or the disk is wrong; what is finished is kept.
        """
        seeds = 1 + max(job.seed for job in self.plan.jobs)
        with contextlib.ExitStack() as stack:
            self._stack = stack
            if not self.plan.combine:
                self._go(self.plan.jobs)
            else:
                self._go([job for job in self.plan.jobs if job.seed == 0], keep=True)
                more = [job for job in combinations(self._cases.values(), seeds) if job not in self._planned]
                self._planned += more
                self._go([*more, *(job for job in self.plan.jobs if job.seed > 0)])
        done = [self._cases[job] for job in self._planned if job in self._cases]
        failed = [job.id for job in self._planned if job in self._failed]
        return Found(done, merged(self._left_out), failed, len(self._planned))

    def _go(self, jobs: Sequence[Job], *, keep: bool = False) -> None:
        """Run these; ``keep`` leaves a limited audit time for the combinations that come after them."""
        pending = [job for job in jobs if not self._known(job)]
        if self.deadline.end is not None:
            self._measure(pending)
            pending = by_damage(pending, self._pace.seconds)
            self.deadline.check([job for job in pending if job.essential and job.seed == 0], self._pace, self.workers)
        hackers = {job.network for job in jobs if job.role == "hacker"}
        kept = keep * COMBINED * sum(self._pace.plain.get(name, 0.0) for name in hackers) / self.workers
        while pending or self._running:
            self._fill(pending, kept)
            if self._pool is not None and self._pool.running:
                for outcome in self._pool.wait():
                    self._settle(outcome, pending)

    @property
    def _running(self) -> list[Job]:
        return [] if self._pool is None else self._pool.running

    def _known(self, job: Job) -> bool:
        case = self.audit.finished(job)
        if case is None:
            return False
        self._cases[job] = case
        self._pace.learn(job, case.seconds)
        self._done += 1
        return True

    def _measure(self, pending: Iterable[Job]) -> None:
        for network in dict.fromkeys(job.network for job in pending):
            if not self._pace.knows(network):
                with self.progress.stage(f"time {network}"):
                    self._pace.plain[network] = (self.warm or self._warm_up)(network)

    def _warm_up(self, network: str) -> float:
        return warm_up(self.audit, network, threads_each(self.workers))

    def _fill(self, pending: list[Job], kept: float) -> None:
        """Start what can be started; leave out what cannot be run any more."""
        for job in list(pending):
            teacher = self._teacher(job)
            if teacher is not None and (teacher in pending or teacher in self._running):
                continue
            reason = self._reason(job, teacher, kept)
            if reason:
                pending.remove(job)
                self._left_out.append(LeftOut(job.scheme, job.network, reason))
                continue
            if self._pool is None:
                self._pool = self._stack.enter_context(self.opened())
            if len(self._pool.running) >= self._pool.size:
                return
            pending.remove(job)
            self._tries[job] = self._tries.get(job, 0) + 1
            number = self._done + len(self._failed) + len(self._pool.running) + 1
            self._pool.start(job, f"audit {number}/{len(self._planned)} {job.id}")

    def _teacher(self, job: Job) -> Job | None:
        found = (one for one in self._planned if one.teaches and (one.seed, one.key) == (job.seed, job.key))
        return next(found, None) if job.taught else None

    def _reason(self, job: Job, teacher: Job | None, kept: float) -> str:
        if teacher is not None and teacher not in self._cases:
            return f"the authorised network of {teacher.id}, which it needs, was not trained"
        needed, left = self._pace.seconds(job), self.deadline.left
        free = left if job.essential else left - kept
        if needed <= free:
            return ""
        held = f", {in_words(kept)} of them kept for {COMBINATION}" if free < left and needed <= left else ""
        return f"no time: it takes about {in_words(needed)}, and {in_words(max(left, 0))} of the budget were left{held}"

    def _settle(self, outcome: Outcome, pending: list[Job]) -> None:
        job = outcome.job
        note = self.audit.folder / "failed" / f"{job.id}.json"
        if outcome.case is not None:
            write_case(self.audit.cases, outcome.case)
            note.unlink(missing_ok=True)
            self._cases[job] = outcome.case
            self._pace.learn(job, outcome.seconds)
            self._done += 1
        elif outcome.killed and self._tries[job] < TRIES:
            self.progress.note(f"{job.id}: {outcome.error}; it is run once more")
            pending.insert(0, job)
        else:
            self._failed[job] = outcome.error
            self.progress.note(f"{job.id}: failed, {outcome.error}")
            write_json(note, {"id": job.id, "error": outcome.error, "tries": self._tries[job], "job": vars(job)})


def merged(left_out: Iterable[LeftOut]) -> list[LeftOut]:
    """The same without repetitions, which differ between seeds in nothing but the seconds that were left."""
    return list({(one.attack, one.network): one for one in reversed(list(left_out))}.values())[::-1]


@contextlib.contextmanager
def _local(audit: Audit, workers: int, progress: Display) -> Iterator[Pool]:
    if workers == 1:
        yield Serial(audit, progress)
        return
    with shared(audit, workers) as setup, contextlib.closing(LocalProcesses(setup, workers, progress)) as pool:
        yield pool


@contextlib.contextmanager
def _ray(audit: Audit, workers: int, progress: Display) -> Iterator[Pool]:
    from uge.cases.ray_pool import Actors, require_ray

    ray = require_ray()
    with shared(audit, workers) as setup, contextlib.closing(Actors(ray, setup, workers, progress)) as pool:
        yield pool


EXECUTORS: dict[str, Callable[[Audit, int, Display], contextlib.AbstractContextManager[Pool]]] = {
    "local": _local,
    "ray": _ray,
}
"""Ways to run cases by name."""


def execute(
    audit: Audit,
    plan: Plan,
    *,
    progress: Display | None = None,
    workers: int = 1,
    executor: str = "local",
    deadline: Deadline | None = None,
) -> Found:
    """Run an audit and keep every result as a file: ``cases/ID.json``, or ``failed/ID.json``.

    The bytes of a case, its seconds aside, do not depend on ``workers``, as long as each case has as many threads.

    Args:
        audit: What cases depend on.
        plan: The cases.
        progress: Shows cases.
        workers: Cases that run at the same time, each in a process of its own; 1 runs them in this one.
        executor: ``local`` processes, or ``ray``.
        deadline: When it has to be over.

    Raises:
        UsageError: The budget does not even hold the essential cases, or there is no such executor.
        MissingExtraError: Ray is asked for and not installed.
        UGEError: A setting, a file or the disk is wrong; what is finished is kept.
    """
    progress = progress or Silent()
    if executor not in EXECUTORS:
        raise UsageError(f"expected an executor of {', '.join(EXECUTORS)}, got '{executor}'")
    if workers < 1:
        raise UsageError(f"expected at least one worker, got {workers}")
    opened = EXECUTORS[executor]
    execution = Execution(
        audit,
        plan,
        progress,
        lambda: opened(audit, workers, progress),
        workers,
        deadline or Deadline(),
    )
    return execution.run()
