"""Execution of an audit's plan within a budget of time."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from uge.auditing.plan import LeftOut, Plan, combinations
from uge.cases.case import YARDSTICK, Case, Job
from uge.cases.material import CopyMaterial
from uge.cases.pool import EXECUTORS, Outcome, Pool, open_pool, require_ray, threads_each
from uge.errors import UsageError
from uge.learning.recipes import LONGER
from uge.learning.training import evaluate, fit, steps_per_epoch
from uge.processes import TRIES
from uge.progress import Display, Silent, duration
from uge.runtime import stream_seed

FULL = "full"
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_WARM_STEPS = 3
_STEPS = 8
_TESTED = 500
COMBINED = 1.5  # Time kept for a combination of two attacks in a limited audit, in units of plain training.
COMBINATION = "the combination of the two best attacks"


def parse_budget(text: str) -> float | None:
    """Seconds of a budget such as ``90s``, ``10m``, ``1h`` or ``1h30m``; None for ``full``.

    Raises:
        UsageError: It is none of these, or zero.
    """
    if text == FULL:
        return None
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not seconds or "".join(number + unit for number, unit in parts) != text:
        raise UsageError(f"expected a budget such as 90s, 10m, 1h or {FULL}, got '{text}'")
    return seconds


@dataclass
class Pace:
    """Estimates of the seconds that cases take, corrected by every finished case.

    Attributes:
        plain: Network → seconds of plain training.
        factors: Attack or variant → its time in units of plain training, where it was measured.
    """

    plain: dict[str, float] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)

    def seconds(self, job: Job) -> float:
        """Estimate for a case; 0 where nothing is known of its network."""
        return self._plain(job) * self.factors.get(job.scheme, job.entry.cost)

    def learn(self, job: Job, seconds: float) -> None:
        """Correct the estimates by a finished case."""
        if job.essential:
            self.plain[job.network] = seconds / (LONGER if job.long else 1)
        elif self.plain.get(job.network):
            self.factors[job.scheme] = seconds / self._plain(job)

    def _plain(self, job: Job) -> float:
        return self.plain.get(job.network, 0.0) * (LONGER if job.long else 1)


def by_damage(jobs: Iterable[Job], seconds: Callable[[Job], float]) -> list[Job]:
    """Sort jobs into the order of a limited audit.

    Repetition by repetition: clean controls, the authorised network and plain hackers first, then attacks by
    expected damage per second (points of accuracy that they usually win back, over the time they take), then
    yardsticks and variants of the authorised training, at last attacks on clean images. On the protections that were
    measured the strongest attack is known within 3 points after a twentieth of the whole time
    (``benchmarks/verdict.py``).
    """

    def place(job: Job) -> tuple[int, int, float]:
        attack = job.role == "hacker" and job.family != YARDSTICK
        kind = 0 if job.essential else 2 if not attack else 1 if job.data == "protected" else 3
        worth = job.entry.expected / max(seconds(job), 1e-9) if attack else 0.0
        return job.seed, kind, -worth

    return sorted(jobs, key=place)


def time_left(seconds: float | None, clock: Callable[[], float] = time.monotonic) -> Callable[[], float]:
    """Function that gives the seconds until the end of an audit.

    Args:
        seconds: Seconds from now to the end; None for never, which gives infinity.
        clock: Gives seconds that only go forward.
    """
    end = math.inf if seconds is None else clock() + seconds
    return lambda: end - clock()


def warm_up(material: CopyMaterial, network: str, threads: int | None = None) -> float:
    """Seconds of plain training of a network, estimated from a few steps and a part of the test images.

    Args:
        material: Images, recipe and device.
        network: Name of the architecture.
        threads: Threads of a worker; by default those of this process.
    """
    store = material.protected
    recipe = material.recipe
    size = min(recipe.batch_size, len(store))
    learner = material.network(Job("hacker", network, "random", "direct", "protected", 0))
    marks = list[float]()

    def mark(step: int, _: object) -> None:
        if material.runtime.device.type == "cuda":
            torch.cuda.synchronize(material.runtime.device)
        marks.append(time.perf_counter())

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        fit(
            learner,
            store.subset(torch.arange(min(len(store), (_WARM_STEPS + _STEPS) * size))),
            recipe.model_copy(update={"epochs": 1, "lr": 1e-3}),
            seed=stream_seed(material.seed, "warm-up"),
            runtime=material.runtime,
            observer=mark,
        )
        part = material.test.subset(torch.arange(min(len(material.test), _TESTED)))
        began = time.perf_counter()
        evaluate(learner, part, material.runtime)
        tested = (time.perf_counter() - began) * len(material.test) / len(part)
    finally:
        torch.set_num_threads(before)
    steps = [after - earlier for earlier, after in itertools.pairwise(marks)]
    step = statistics.median(steps[_WARM_STEPS:] or steps)
    return recipe.epochs * (steps_per_epoch(len(store), size) * step + tested)


@dataclass(frozen=True)
class Forecast:
    """Estimate of the time that a plan takes, made before it is run.

    Attributes:
        seconds: Of every job, by its id, in the order in which a limited audit runs them.
        workers: Jobs that run at the same time.
        left_out: Ids of jobs for which the time would not last; empty without a limit.
    """

    seconds: dict[str, float]
    workers: int
    left_out: list[str]

    @property
    def total(self) -> float:
        """Seconds from start to end, of what is not left out."""
        return sum(value for name, value in self.seconds.items() if name not in self.left_out) / self.workers


def forecast(
    jobs: Iterable[Job], plain: Callable[[str], float], *, workers: int = 1, limit: float | None = None
) -> Forecast:
    """Estimate a plan from the time of plain training.

    Args:
        jobs: Jobs that are not finished.
        plain: Gives the seconds of plain training of a network; :func:`warm_up` measures them.
        workers: Jobs that run at the same time.
        limit: Seconds that there are; None for no limit.
    """
    jobs = list(jobs)
    pace = Pace(plain={name: plain(name) for name in dict.fromkeys(job.network for job in jobs)})
    seconds = {job.id: pace.seconds(job) for job in by_damage(jobs, pace.seconds)}
    left_out = list[str]()
    spent = 0.0
    for name, value in seconds.items():
        if limit is not None and (spent + value) / workers > limit:
            left_out.append(name)
        else:
            spent += value
    return Forecast(seconds, workers, left_out)


@dataclass(frozen=True)
class AuditResult:
    """Cases of an audit, and those that it lacks.

    Attributes:
        cases: Finished cases in the order of the plan.
        left_out: Attacks that were not run, and why.
        failed: Ids of cases that were tried and gave no result.
        planned: Number of cases of a complete audit, without those that it cannot run for want of something.
    """

    cases: list[Case]
    left_out: list[LeftOut]
    failed: list[str]
    planned: int


@dataclass
class Schedule:
    """Execution of one plan.

    Attributes:
        material: Images, keys, recipe and seeds of the cases.
        plan: The cases.
        progress: Shows cases.
        open_pool: Opens the workers, when the first case is to be run.
        workers: Cases that run at the same time.
        left: Gives the seconds that are left. Where these are finite, cases are run in the order of :func:`by_damage`,
            and none is started that would end too late.
        warm_up: Gives the seconds of plain training of a network of which no case is finished.
    """

    material: CopyMaterial
    plan: Plan
    progress: Display
    open_pool: Callable[[], contextlib.AbstractContextManager[Pool]]
    workers: int
    left: Callable[[], float]
    warm_up: Callable[[str], float]

    def __post_init__(self) -> None:
        self._pace = Pace()
        self._cases: dict[Job, Case] = {}
        self._failed: set[Job] = set()
        self._tries = Counter[Job]()
        self._left_out = list(self.plan.left_out)
        self._planned = list(self.plan.jobs)
        self._stack = contextlib.ExitStack()
        self._pool: Pool | None = None

    def run(self) -> AuditResult:
        """Run every case that is not finished yet.

        Raises:
            UsageError: The budget does not even hold the essential cases.
            UGEError: A setting, a file or the disk is wrong; finished cases are kept.
        """
        jobs = self.plan.jobs
        with self._stack:
            if self.plan.combine:
                # The combinations are of the best attacks of the first repetition.
                first = [job for job in jobs if job.seed == 0]
                self._run(first, reserved={job.network for job in first if job.role == "hacker"})
                combined = combinations(self._cases.values(), 1 + max(job.seed for job in jobs))
                jobs = (*(job for job in combined if job not in jobs), *(job for job in jobs if job.seed > 0))
                self._planned += [job for job in jobs if job not in self._planned]
            self._run(jobs)
            for stage in self.plan.then:
                later = [job for job in stage(list(self._cases.values())) if job not in self._planned]
                self._planned += later
                self._run(later, essential=False)
        return AuditResult(
            [self._cases[job] for job in self._planned if job in self._cases],
            # One reason for each attack and network: those of other repetitions differ in the seconds that were left.
            list({(entry.attack, entry.network): entry for entry in reversed(self._left_out)}.values())[::-1],
            [job.id for job in self._planned if job in self._failed],
            len(self._planned),
        )

    def _run(self, jobs: Sequence[Job], reserved: Iterable[str] = (), essential: bool = True) -> None:
        """Run jobs; a limited audit keeps time for a combination on each network of ``reserved``.

        Args:
            jobs: The jobs.
            reserved: Networks of combinations that follow.
            essential: False for a later stage, of which nothing must be run.

        Raises:
            UsageError: The time that is left does not hold the essential cases.
        """
        finished = {job: case for job in jobs if (case := self.material.finished(job)) is not None}
        self._cases |= finished
        for job, case in finished.items():
            self._pace.learn(job, case.seconds)
        pending = [job for job in jobs if job not in finished]
        if math.isfinite(self.left()):
            for network in dict.fromkeys(job.network for job in pending if job.network not in self._pace.plain):
                with self.progress.stage(f"time {network}"):
                    self._pace.plain[network] = self.warm_up(network)
            pending = by_damage(pending, self._pace.seconds)
            first = [job for job in pending if job.essential and job.seed == 0 and essential]
            needed = sum(map(self._pace.seconds, first)) / self.workers
            left = max(self.left(), 0.0)
            if needed > left:
                raise UsageError(
                    f"clean controls, the authorised network and plain training alone take about {duration(needed)}, "
                    f"but {duration(left)} of the budget are left; give a larger --budget or fewer networks"
                )
        seconds = COMBINED * sum(self._pace.plain.get(name, 0.0) for name in reserved) / self.workers
        while pending or self._running:
            self._start_ready(pending, seconds)
            if self._pool is not None and self._running:
                for outcome in self._pool.wait():
                    self._settle(outcome, pending)

    @property
    def _running(self) -> list[Job]:
        return [] if self._pool is None else self._pool.running

    def _start_ready(self, pending: list[Job], reserved: float) -> None:
        # Start the jobs for which there are workers, and leave out those that cannot be run any more.
        for job in list(pending):
            teacher = self._teacher(job)
            if teacher is not None and (teacher in pending or teacher in self._running):
                continue
            reason = self._obstacle(job, teacher, reserved)
            if reason:
                pending.remove(job)
                self._left_out.append(LeftOut(job.title, job.network, reason))
                continue
            if self._pool is None:
                self._pool = self._stack.enter_context(self.open_pool())
            if len(self._pool.running) >= self._pool.size:
                return
            pending.remove(job)
            self._tries[job] += 1
            number = len(self._cases) + len(self._failed) + len(self._pool.running) + 1
            self._pool.start(job, f"audit {number}/{len(self._planned)} {job.id}")

    def _teacher(self, job: Job) -> Job | None:
        same = (other for other in self._planned if (other.seed, other.key) == (job.seed, job.key))
        return next((other for other in same if other.teaches), None) if job.taught else None

    def _obstacle(self, job: Job, teacher: Job | None, reserved: float) -> str:
        # Reason why a job cannot be run, in one sentence; empty where it can.
        if teacher is not None and teacher not in self._cases:
            return f"the authorised network of {teacher.id}, which it needs, was not trained"
        needed = self._pace.seconds(job)
        left = self.left()
        free = left if job.essential else left - reserved
        if needed <= free:
            return ""
        held = f", {duration(reserved)} of them kept for {COMBINATION}" if free < left and needed <= left else ""
        return f"no time: it takes about {duration(needed)}, and {duration(max(left, 0))} of the budget were left{held}"

    def _settle(self, outcome: Outcome, pending: list[Job]) -> None:
        job = outcome.job
        if outcome.case is not None:
            self.material.ledger.keep(outcome.case)
            self._cases[job] = outcome.case
            self._pace.learn(job, outcome.seconds)
        elif outcome.killed and self._tries[job] < TRIES:
            self.progress.note(f"{job.id}: {outcome.error}; it is run once more")
            pending.insert(0, job)
        else:
            self._failed.add(job)
            self.progress.note(f"{job.id}: failed, {outcome.error}")
            self.material.ledger.fail(job.id, outcome.error, tries=self._tries[job], job=vars(job))


def execute(
    material: CopyMaterial,
    plan: Plan,
    *,
    progress: Display | None = None,
    workers: int = 1,
    executor: str = "local",
    left: Callable[[], float] | None = None,
) -> AuditResult:
    """Run an audit and write every result to its ledger.

    The bytes of a case, its seconds aside, do not depend on ``workers``, as long as each case has as many threads.

    Args:
        material: Images, keys, recipe and seeds of the cases.
        plan: The cases.
        progress: Shows cases.
        workers: Cases that run at the same time, each in a process of its own; 1 runs them in this one.
        executor: A name in :data:`uge.cases.pool.EXECUTORS`.
        left: Seconds that are left, from :func:`time_left`; infinite by default.

    Raises:
        UsageError: The budget does not even hold the essential cases, or there is no such executor.
        MissingExtraError: Ray is asked for and not installed.
        UGEError: A setting, a file or the disk is wrong; finished cases are kept.
    """
    progress = progress or Silent()
    if executor not in EXECUTORS:
        raise UsageError(f"expected an executor of {', '.join(EXECUTORS)}, got '{executor}'")
    if workers < 1:
        raise UsageError(f"expected at least one worker, got {workers}")
    if executor == "ray":
        require_ray()
    return Schedule(
        material,
        plan,
        progress,
        lambda: open_pool(material, executor, workers, progress),
        workers,
        left or time_left(None),
        lambda network: warm_up(material, network, threads_each(workers)),
    ).run()
