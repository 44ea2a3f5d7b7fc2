"""Time of an audit: its budget, estimates for cases, and the order of a limited audit."""

from __future__ import annotations

import itertools
import re
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from uge.cases.case import YARDSTICK
from uge.cases.job import Job
from uge.cases.material import CopyMaterial
from uge.errors import UsageError
from uge.learning.training import evaluate, fit, steps_per_epoch
from uge.runtime import stream_seed

FULL = "full"
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_WARM_STEPS = 3
_STEPS = 8
_TESTED = 500

Clock = Callable[[], float]


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


def in_words(seconds: float) -> str:
    """Duration as text: ``45 s``, ``12 min`` or ``2.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


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
        return self.plain.get(job.network, 0.0) * self.factors.get(job.scheme, job.entry.cost)

    def learn(self, job: Job, seconds: float) -> None:
        """Correct the estimates by a finished case."""
        if job.essential:
            self.plain[job.network] = seconds
        elif self.plain.get(job.network):
            self.factors[job.scheme] = seconds / self.plain[job.network]


def by_damage(jobs: Iterable[Job], seconds: Callable[[Job], float]) -> list[Job]:
    """Sort jobs into the order of a limited audit.

    Repetition by repetition: clean controls, the authorised network and plain hackers first, then attacks by
    expected damage per second (points of accuracy that they usually win back, over the time they take), then
    yardsticks and variants of the authorised training.
    """

    def place(job: Job) -> tuple[int, int, float]:
        attack = job.role == "hacker" and job.family != YARDSTICK
        kind = 0 if job.essential else 1 if attack else 2
        worth = job.entry.expected / max(seconds(job), 1e-9) if kind == 1 else 0.0
        return job.seed, kind, -worth

    return sorted(jobs, key=place)


@dataclass
class Deadline:
    """End of an audit.

    Attributes:
        end: On the clock; None for never.
        clock: Seconds that only go forward.
    """

    end: float | None = None
    clock: Clock = time.monotonic

    @classmethod
    def after(cls, seconds: float | None, clock: Clock = time.monotonic) -> Deadline:
        """Deadline some seconds from now; None for never."""
        return cls(None if seconds is None else clock() + seconds, clock)

    @property
    def left(self) -> float:
        """Seconds that are left; infinity where there is no end."""
        return float("inf") if self.end is None else self.end - self.clock()

    def check(self, essential: Iterable[Job], pace: Pace, workers: int) -> None:
        """Refuse a budget that does not hold the essential cases.

        Args:
            essential: Clean controls, the authorised network and plain hackers that are still to be run.
            pace: Estimates of their time.
            workers: Cases that run at the same time.

        Raises:
            UsageError: They would take longer than the time that is left.
        """
        needed = sum(pace.seconds(job) for job in essential) / workers
        if needed > max(self.left, 0.0):
            raise UsageError(
                f"clean controls, the authorised network and plain training alone take about {in_words(needed)}, but "
                f"{in_words(max(self.left, 0))} of the budget are left; give a larger --budget or fewer networks"
            )


def warm_up(material: CopyMaterial, network: str, threads: int | None = None) -> float:
    """Seconds of plain training of a network, estimated from a few steps and a part of the test images.

    Args:
        material: Images, recipe and device.
        network: Name of the architecture.
        threads: Threads of a worker; by default those of this process.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        return _plain_seconds(material, network)
    finally:
        torch.set_num_threads(before)


def _plain_seconds(material: CopyMaterial, network: str) -> float:
    store = material.protected
    recipe = material.recipe
    device = material.runtime.device
    size = min(recipe.batch_size, len(store))
    count = min(len(store), (_WARM_STEPS + _STEPS) * size)
    learner = material.network(Job("hacker", network, "random", "direct", "protected", 0))
    marks = list[float]()

    def mark(step: int, _: object) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        marks.append(time.perf_counter())

    fit(
        learner,
        store.subset(torch.arange(count)),
        recipe.model_copy(update={"epochs": 1, "lr": 1e-3}),
        seed=stream_seed(material.seed, "warm-up"),
        runtime=material.runtime,
        observer=mark,
    )
    steps = [after - before for before, after in itertools.pairwise(marks)]
    step = statistics.median(steps[_WARM_STEPS:] or steps)
    part = material.test.subset(torch.arange(min(len(material.test), _TESTED)))
    began = time.perf_counter()
    evaluate(learner, part, material.runtime)
    tested = (time.perf_counter() - began) * len(material.test) / len(part)
    return recipe.epochs * (steps_per_epoch(len(store), size) * step + tested)
