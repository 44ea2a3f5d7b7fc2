"""Summary of an audit as values: the fields of ``summary.json`` (docs/formats.md, "Summary"). Needs no torch."""

import statistics
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

NOISE = 3.0
"""Differences below this many points mean nothing when there is one seed."""
Interval = tuple[float, float]
Holds = Literal["nothing", "public", "clean", "key"]
HOLDS: dict[Holds, str] = {
    "nothing": "nothing but the published folder",
    "public": "other public images or a public checkpoint as well",
    "clean": "some of the originals as well",
    "key": "the key or the trained authorised network",
}
"""Assets of hackers beyond their own means, from the published folder alone to the key."""


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; the deviation of a single value is ``None``.

    Raises:
        statistics.StatisticsError: There is no value.
    """
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def with_key(text: str, key: int) -> str:
    """Text with the number of the key where it is not the first."""
    return f"{text}, key {key}" if key else text


class Result(BaseModel):
    """Mean over the seeds of one (network, scheme), in percent on the clean test set.

    Attributes:
        network: Name of the architecture.
        scheme: Name of the attack, or of a variant of authorised training.
        family: Kind of attack.
        holds: Assets of the hacker beyond the published folder.
        about: The attack in one plain sentence; may be empty.
        last: Mean accuracy after the last epoch.
        best: Mean of the best epochs.
        clean: Mean last-epoch accuracy of the clean control, ``None`` without one.
        clean_best: The same of its best epochs.
        std: Sample standard deviation of the last-epoch accuracies; ``None`` with one seed.
        std_best: The same of the best epochs.
        seeds: Number of seeds.
        key: Number of the authorised network, or of the teacher, where there are several.
    """

    network: str
    scheme: str
    family: str
    holds: Holds
    about: str
    last: float
    best: float
    clean: float | None
    clean_best: float | None
    std: float | None
    std_best: float | None
    seeds: int
    key: int

    @property
    def name(self) -> str:
        """``network (scheme)``, with the number of the key where it is not the first."""
        return f"{self.network} ({with_key(self.scheme, self.key)})"

    @property
    def delta(self) -> float | None:
        """Accuracy after the last epoch minus the clean control, in points; ``None`` without a clean control."""
        return None if self.clean is None else self.last - self.clean

    @property
    def reached(self) -> float:
        """Accuracy that counts for a hacker: the larger of last and best epoch, since training may stop early."""
        return max(self.last, self.best)


class HackerResult(Result):
    """A hacker's result.

    Attributes:
        same_architecture: True if an authorised network has the same architecture.
        alone: For a hacker with a share of the originals: accuracy of training on these alone, without the published
            copy (the yardstick of the same share, last or best epoch, the larger); ``None`` where that was not run.
    """

    same_architecture: bool = False
    alone: float | None = None

    @property
    def owes_nothing(self) -> bool:
        """True if the published copy adds nothing to the hacker's originals alone, noise aside."""
        return self.alone is not None and self.reached <= self.alone + NOISE

    def kept(self, chance: float) -> float | None:
        """Share that the hacker reaches of the clean control's gain over chance; best or last epoch, the larger.

        Args:
            chance: Accuracy of guessing, in percent.

        Returns:
            0 for guessing, 1 for as good as clean; ``None`` without a clean control.
        """
        return None if self.clean is None else (self.reached - chance) / max(self.clean - chance, 1e-9)


class Margin(BaseModel):
    """Distance of the strongest hacker from the reference, seed by seed, in points on the clean test set.

    Attributes:
        kind: ``gap``: behind the authorised network; ``protection``: behind the hacker's own clean control.
        holds: Largest asset of the hackers that count here.
        last: Mean over the seeds, after the last epochs.
        last_interval: 95 % t-interval over ``seeds``; ``None`` with fewer than two.
        best: The same at the best epochs.
        best_interval: Its interval.
        seeds: Number of seeds that both sides have.
        network: Network of the strongest hacker at the last epochs.
        scheme: Attack of that hacker.
        accuracy: Mean accuracy of that hacker.
        network_best: Network of the strongest hacker at the best epochs.
        scheme_best: Attack of that hacker.
        accuracy_best: Mean accuracy of that hacker.
    """

    kind: Literal["gap", "protection"]
    holds: Holds
    last: float
    last_interval: Interval | None
    best: float
    best_interval: Interval | None
    seeds: int
    network: str
    scheme: str
    accuracy: float
    network_best: str
    scheme_best: str
    accuracy_best: float

    @property
    def smaller(self) -> tuple[float, Interval | None, str]:
        """The smaller of both, its interval, and its epochs: ``last`` or ``best``."""
        last = (self.last, self.last_interval, "last")
        return last if self.last <= self.best else (self.best, self.best_interval, "best")


class Doubt(BaseModel):
    """A reason to doubt an audit.

    Attributes:
        check: Name of the check.
        what: The observation, one sentence.
        meaning: Consequence for the numbers.
        advice: Remedy.
    """

    check: str
    what: str
    meaning: str
    advice: str

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, self.meaning, self.advice) if part)


class Summary(BaseModel):
    """Result of an audit.

    Attributes:
        clean: Mean last-epoch accuracy of the clean control of each network.
        authorized: The first authorised network; ``None`` when the audit had no key.
        authorized_all: All authorised networks, in the order of the cases.
        variants: The authorised networks under changed training.
        hackers: One entry per (network, scheme), strongest first.
        yardsticks: Training on leaked originals alone; these do not count as attacks.
        margin: The one number: the gap, or the protection where there is no authorised network.
        margins: The same against those hackers alone that hold no more than ``holds``, from least to most.
        gap: Authorised last minus the strongest hacker, in points, mean over the seeds.
        gap_best: The same with best epochs.
        strongest: ``network`` and ``scheme`` of the hacker with the largest last-epoch accuracy.
        seeds: Seeds of the group that has fewest.
        chance: Accuracy of guessing, in percent; ``None`` when the number of classes is unknown.
        cases: Ids of the cases that count; other files in the folder do not.
        ran: Number of cases.
        planned: Number of cases of a complete audit.
        left_out: Attacks that were not run: ``attack``, ``network``, ``reason``.
        failed: Ids of cases that gave no result.
        facts: Facts about the data; see :mod:`uge.auditing.checks`.
        given: Reasons to doubt the audit that came from outside the checks.
        doubts: Doubts of the checks.
        warnings: ``given`` and ``doubts`` as sentences.
        headline: The one number in a sentence.
        label: The verdict in a few words.
        report: Path of the HTML page, when one was written.
        verdict: The verdict in one sentence.
    """

    clean: dict[str, float] = Field(default_factory=dict)
    authorized: Result | None = None
    authorized_all: list[Result] = Field(default_factory=list)
    variants: list[Result] = Field(default_factory=list)
    hackers: list[HackerResult] = Field(default_factory=list)
    yardsticks: list[HackerResult] = Field(default_factory=list)
    margin: Margin | None = None
    margins: list[Margin] = Field(default_factory=list)
    gap: float | None = None
    gap_best: float | None = None
    strongest: dict[Literal["network", "scheme"], str] | None = None
    seeds: int = 0
    chance: float | None = None
    cases: list[str] = Field(default_factory=list)
    ran: int = 0
    planned: int | None = None
    left_out: list[dict[str, str]] = Field(default_factory=list)
    failed: list[str] = Field(default_factory=list)
    facts: dict[str, Any] = Field(default_factory=dict)
    given: list[str] = Field(default_factory=list)
    doubts: list[Doubt] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    headline: str = ""
    label: str = ""
    report: str | None = None
    verdict: str = ""

    @property
    def partial(self) -> bool:
        """True if something was left out or gave no result."""
        return bool(self.left_out or self.failed or self.ran < (self.planned or 0))
