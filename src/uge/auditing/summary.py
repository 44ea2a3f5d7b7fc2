"""What an audit found, as values: the fields of ``summary.json`` (docs/formats.md, "Summary"). Needs no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

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
"""What a hacker may hold, from what everybody has to what nobody should have."""


class Result(BaseModel):
    """Mean over the seeds of one (network, scheme), in percent on the clean test set.

    Attributes:
        network: Name of the architecture.
        scheme: How it was trained: name of an attack, or of a variant of authorised training.
        family: Kind of attack.
        holds: What the hacker holds besides what everybody has.
        about: The attack in one plain sentence; empty in older audits.
        last: Mean accuracy after the last epoch.
        best: Mean of the best epochs.
        clean: Mean last-epoch accuracy of the clean control, ``None`` without one.
        clean_best: The same of its best epochs.
        std: Sample standard deviation of the last-epoch accuracies; ``None`` with one seed.
        std_best: The same of the best epochs.
        seeds: How many seeds were run.
        key: Number of the authorised network it is, or was distilled from, where there are several.
    """

    model_config = ConfigDict(extra="ignore")

    network: str
    scheme: str = "direct"
    family: str = "plain"
    holds: Holds = "nothing"
    about: str = ""
    last: float
    best: float
    clean: float | None = None
    clean_best: float | None = None
    std: float | None = None
    std_best: float | None = None
    seeds: int = 1
    key: int = 0

    @property
    def name(self) -> str:
        """``network (scheme)``, with the number of the key where it is not the first."""
        return f"{self.network} ({self.scheme}{f', key {self.key}' if self.key else ''})"


class HackerResult(Result):
    """A hacker's result.

    Attributes:
        same_architecture: Whether an authorised network has the same architecture.
        alone: Where he holds a share of the originals: what these give by themselves, without the published copy
            (the yardstick of the same share, last or best epoch, the larger); ``None`` where that was not run.
    """

    same_architecture: bool = False
    alone: float | None = None

    @property
    def owes_nothing(self) -> bool:
        """Whether he gets no more with the published copy than from his originals alone, noise aside."""
        return self.alone is not None and max(self.last, self.best) <= self.alone + NOISE

    def kept(self, chance: float) -> float | None:
        """Of what the clean control learns above chance, the share that the hacker reaches; best or last, the larger.

        Args:
            chance: Accuracy of guessing, in percent.

        Returns:
            0 for guessing, 1 for as good as clean; ``None`` without a clean control.
        """
        return None if self.clean is None else (max(self.last, self.best) - chance) / max(self.clean - chance, 1e-9)


class Strongest(BaseModel):
    """The hacker with the largest last-epoch accuracy."""

    network: str
    scheme: str


class Margin(BaseModel):
    """How far the strongest hacker stays behind, seed by seed; in points of accuracy on the clean test set.

    Attributes:
        kind: ``gap``: behind the authorised network; ``protection``: behind his own clean control.
        holds: The worst of what the hackers counted here hold.
        last: Mean over the seeds, after the last epochs.
        last_interval: 95 % t-interval over ``seeds``; ``None`` with fewer than two.
        best: The same at the best epochs.
        best_interval: Its interval.
        seeds: Number of seeds that both sides really have.
        network: The strongest hacker at the last epochs.
        scheme: His attack.
        accuracy: His mean accuracy.
        network_best: The strongest at the best epochs.
        scheme_best: His attack.
        accuracy_best: His mean accuracy.
    """

    kind: Literal["gap", "protection"]
    holds: Holds = "key"
    last: float
    last_interval: Interval | None = None
    best: float
    best_interval: Interval | None = None
    seeds: int
    network: str
    scheme: str
    accuracy: float
    network_best: str
    scheme_best: str
    accuracy_best: float

    @property
    def smaller(self) -> tuple[float, Interval | None, str]:
        """The smaller of both, its interval, and whether it is of the ``last`` or ``best`` epochs."""
        last = (self.last, self.last_interval, "last")
        return last if self.last <= self.best else (self.best, self.best_interval, "best")


class Doubt(BaseModel):
    """A reason to doubt an audit.

    Attributes:
        check: Name of the check that found it.
        what: What was found, one sentence.
        meaning: What that means for the numbers.
        advice: What to do about it.
    """

    check: str
    what: str
    meaning: str = ""
    advice: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, self.meaning, self.advice) if part)


class Summary(BaseModel):
    """What an audit found.

    Attributes:
        clean: Mean last-epoch accuracy of the clean control of each network.
        authorized: The first authorised network; ``None`` when the audit had no key.
        authorized_all: All authorised networks, in the order of the cases.
        variants: The authorised networks, trained otherwise than meant.
        hackers: One entry per (network, scheme), strongest first.
        yardsticks: What hackers get without the published copy; they do not count as attacks on it.
        margin: The one number: the gap, or the protection where there is no authorised network.
        margins: The same against those hackers alone who hold no more than ``holds``, from least to most.
        gap: Authorised last minus the strongest hacker, in points, mean over the seeds.
        gap_best: The same with best epochs.
        strongest: The hacker with the largest last-epoch accuracy.
        seeds: Seeds of the group that has fewest.
        chance: Accuracy of guessing, in percent; ``None`` when the number of classes is unknown.
        cases: Their ids: what else lies in the folder does not count.
        ran: Cases that there are.
        planned: Cases that a complete audit would have had.
        left_out: What was not run: ``attack``, ``network``, ``reason``.
        failed: Ids of cases that gave no result.
        facts: What is known of the data; see :mod:`uge.auditing.checks`.
        given: Reasons to doubt the audit that came from outside the checks.
        doubts: What the checks found.
        warnings: ``given`` and ``doubts`` as sentences.
        headline: The one number in a sentence.
        label: The verdict in a few words.
        report: Path of the HTML page, when one was written.
    """

    model_config = ConfigDict(extra="ignore")

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
    strongest: Strongest | None = None
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

    @property
    def partial(self) -> bool:
        """Whether something was left out or gave no result."""
        return bool(self.left_out or self.failed or self.ran < (self.planned or 0))
