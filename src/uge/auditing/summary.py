"""Summary of an audit: fields of ``summary.json`` (docs/formats.md, "Summary"), and its sentences. Needs no torch."""

import html
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from uge import extras
from uge.auditing.worst_case import WorstCase
from uge.names import PLUS, is_keyed

NOISE = 3.0  # Differences below this many points mean nothing when there is one seed.
LEARNS = 5.0  # Points below its clean control up to which the authorised network learns as well.
NO_JUDGEMENT = "nothing learned, no judgement"
PARTLY = 15.0  # Points below its clean control up to which it learns with a loss.
FAIL_SHARE = 1 / 3  # Share of the clean control's gain over chance up to which a hacker fails.
HELD_SHARE = 2 / 3  # Share of that gain above which a hacker learns.
Interval = tuple[float, float]
Holds = Literal["nothing", "public", "few", "clean", "key"]
HOLDS: dict[Holds, str] = {
    "nothing": "nothing but the published folder",
    "public": "other public images or a public checkpoint as well",
    "few": "a few labelled clean images as well",
    "clean": "some of the originals as well",
    "key": "the key or the trained authorised network",
}
"""Assets of hackers beyond their own means, from the published folder alone to the key."""
LEVELS = list(HOLDS)


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
        worst_case: The worst case; ``None`` where nothing was measured on labelled images. Headline, label and verdict
            are then about it.
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
    facts: dict[str, int | float | None] = Field(default_factory=dict)
    given: list[str] = Field(default_factory=list)
    doubts: list[Doubt] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    headline: str = ""
    label: str = ""
    report: str | None = None
    verdict: str = ""
    worst_case: WorstCase | None = None

    def to_pandas(self) -> Any:
        """Table of every network and attack (``pandas.DataFrame``), the strongest first, accuracies in percent.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        pandas = extras.load("pandas", "hf", "Summary.to_pandas")
        own = [("authorised", row) for row in self.authorized_all]
        rows = [*own, *(("attack", row) for row in self.hackers), *(("yardstick", row) for row in self.yardsticks)]
        columns = ["role", "network", "attack", "last", "best", "clean", "seeds"]
        return pandas.DataFrame(
            [(role, row.network, row.scheme, row.last, row.best, row.clean, row.seeds) for role, row in rows],
            columns=columns,
        )

    def _repr_html_(self) -> str:
        # What notebooks show.
        parts = [f"<p><b>{html.escape(self.headline)}</b></p>", f"<p>{html.escape(self.verdict)}</p>"]
        parts += [f"<li>{html.escape(warning)}</li>" for warning in self.warnings]
        return "".join(parts)

    @property
    def partial(self) -> bool:
        """True if something was left out or gave no result."""
        return bool(self.left_out or self.failed or self.ran < (self.planned or 0))


def label(summary: Summary) -> str:
    """The verdict in a few words, by the first rule that holds.

    A hacker "breaks" the protection by reaching more than 2/3 of the clean control's gain over chance, at the last or
    the best epoch. Of several the one that needs least is named. Hackers whose clean control is missing or hardly
    above chance are not judged. A hacker whose leaked originals alone give as much breaks nothing.
    """
    chance = summary.chance or 0.0
    first = summary.authorized
    judged = clean_shares(summary.hackers, chance)
    shares = {hacker.name: share for hacker, share in judged if not hacker.owes_nothing}
    breaking = [hacker for hacker, _ in judged if shares.get(hacker.name, 0.0) > HELD_SHARE]
    if not summary.hackers:
        return "not attacked"
    if _nothing_learned(summary):
        return NO_JUDGEMENT
    if first is not None and first.clean is not None and first.clean - first.last > PARTLY:
        return "the authorised network does not learn" + (", hackers do" if breaking else "")
    if breaking:
        return _broken(breaking)
    level = next((margin for margin in summary.margins if margin.kind == "gap" and not separated(margin)), None)
    if level is not None:
        free = level.holds == "nothing"
        hacker = "a keyed hacker" if free and _keyed(level) else f"{level.network} ({level.scheme})"
        return f"not separated from {hacker}" + ("" if free else f", which holds {HOLDS[level.holds]}")
    if len(judged) < len(summary.hackers):
        return "cannot be judged without clean controls that learn"
    so_far = " so far" if summary.partial else ""
    if max(shares.values(), default=0.0) > FAIL_SHARE:
        return f"partly: hackers are held back but still learn{so_far}"
    tried, known = _tried_and_known(summary)
    return f"holds{so_far} against " + (
        "everything tried" if tried == known else f"the {counted(tried, 'attack')} tried, of {known}"
    )


def _nothing_learned(summary: Summary) -> bool:
    """True where clean controls were run, and neither they nor the authorised network are clearly above chance."""
    chance = summary.chance
    if chance is None or not summary.clean:
        return False
    own = [result.last for result in summary.authorized_all]
    return all(too_low(value, chance) for value in (*summary.clean.values(), *own))


def extent(summary: Summary) -> str:
    """``16 of 58 attacks`` were tried; ``58 attacks`` if there are no more, or their number is unknown."""
    tried, known = _tried_and_known(summary)
    return counted(tried, "attack") if tried == known else f"{tried} of {counted(known, 'attack')}"


def _tried_and_known(summary: Summary) -> tuple[int, int]:
    # Combinations of two are no attacks of their own.
    tried = len({hacker.scheme for hacker in summary.hackers if PLUS not in hacker.scheme})
    known = summary.facts.get("attacks")
    return tried, max(tried, known) if isinstance(known, int) else tried


def counted(count: int, noun: str) -> str:
    """``1 seed``, ``2,000 images``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _broken(breaking: Sequence[HackerResult]) -> str:
    if any(hacker.scheme == "direct" and not is_keyed(hacker.network) for hacker in breaking):
        return "does not protect: plain training learns from it"
    freest = min(breaking, key=lambda hacker: (LEVELS.index(hacker.holds), -hacker.reached))
    others = len({hacker.scheme for hacker in breaking} - {freest.scheme})
    more = f" and {counted(others, 'more attack')}" if others else ""
    if freest.holds != "nothing":
        return f"broken by {freest.scheme}{more}, only with {HOLDS[freest.holds]}"
    if _keyed(freest):
        return "not separated from a keyed hacker" + (f"; broken by {others} more" if others else "")
    return f"broken by {freest.scheme}{more}"


def _keyed(hacker: HackerResult | Margin) -> bool:
    return hacker.scheme == "other-key" or is_keyed(hacker.network)


def too_low(clean: float, chance: float) -> bool:
    """True for a clean control that proves nothing.

    That is below the smaller of a fifth of the way from chance to 100 %, and twice chance or 5 points above it.
    """
    return clean < min(chance + (100 - chance) / 5, max(2 * chance, chance + 5))


def clean_shares(hackers: Iterable[HackerResult], chance: float) -> list[tuple[HackerResult, float]]:
    """The hackers with a clean control that learns, each with its share of that control's gain over chance.

    The share is 0 for guessing and 1 for an accuracy as good as clean; best or last epoch counts, the larger. A control
    with less than a third of the gain of the best one says that its network hardly learns at all, on whatever images:
    it decides nothing.

    Args:
        hackers: Results; those without such a control are left out.
        chance: Accuracy of guessing, in percent.
    """
    controlled = [(hacker, hacker.clean) for hacker in hackers if hacker.clean is not None]
    best = max((clean for _, clean in controlled), default=chance)
    return [
        (hacker, (hacker.reached - chance) / max(clean - chance, 1e-9))
        for hacker, clean in controlled
        if not too_low(clean, chance) and clean - chance >= (best - chance) / 3
    ]


def separated(margin: Margin) -> bool:
    """True if the smaller margin is above the noise of one seed, and its interval above zero."""
    value, interval, _ = margin.smaller
    return value > NOISE and (interval is None or interval[0] > 0)


def headline(summary: Summary) -> str:
    """The one number with its interval, its two sides, and a note if the audit is partial."""
    margin = summary.margin
    if margin is None:
        text = "no number: " + ("no clean control to compare with" if summary.hackers else "no hacker was tried")
    else:
        first = summary.authorized if margin.kind == "gap" else None
        against = f"authorised {first.network} {number(first.last)} % against" if first else None
        text = (
            f"{margin.kind}: {number(margin.last)} points ({certainty(margin.last_interval)}) at the last epoch, "
            f"{number(margin.best)} ({certainty(margin.best_interval)}) at the best; "
            f"{against or 'strongest hacker against its clean control:'} "
            f"{margin.network} by {margin.scheme} with {number(margin.accuracy)} %"
        )
    return f"{text}; {partial(summary)}" if summary.partial else text


def certainty(interval: Interval | None) -> str:
    """``95 % interval 1.0 to 3.0``, or ``one seed``."""
    return "one seed" if interval is None else f"95 % interval {number(interval[0])} to {number(interval[1])}"


def partial(summary: Summary, most: int = 6) -> str:
    """``partial: 3 of 8 cases; left out: …; failed: …``; empty for a complete audit."""
    if not summary.partial:
        return ""
    # An attack that could not run was not planned, and is left out on every network and seed at once.
    total = max(summary.planned or 0, summary.ran + len(summary.left_out) + len(summary.failed))
    parts = [f"partial: {summary.ran} of {'at least ' if summary.left_out else ''}{total} cases"]
    missing = {"left out": [item.get("attack", "?") for item in summary.left_out], "failed": summary.failed}
    parts += [f"{reason}: {listed(names, most)}" for reason, names in missing.items() if names]
    return "; ".join(parts)


def listed(names: Iterable[str], most: int = 4) -> str:
    """Names once each, the first few of them; empty for none."""
    distinct = list(dict.fromkeys(names))
    rest = len(distinct) - most
    return ", ".join(distinct[:most]) + (f" and {rest} more" if rest > 0 else "")


def number(value: float | None, *, signed: bool = False) -> str:
    """One decimal with a real minus sign, and with a plus sign if ``signed``; an en dash for ``None``."""
    text = "–" if value is None else f"{value:{'+' if signed else ''}.1f}"
    return "0.0" if text in {"-0.0", "+0.0"} else text.replace("-", "−")


def capital(text: str) -> str:
    """The text with a capital first letter; the others stay."""
    return text[:1].upper() + text[1:]


def verdict(summary: Summary) -> str:
    """The verdict in one plain sentence.

    Thresholds, on last-epoch means for the authorised network and on the better of last and best epoch for hackers:

    * authorised: within 5 points of its clean control (or above it) "learns about as well as from clean data";
      within 15 "learns, with a loss"; otherwise "does not learn properly".
    * hackers: of the clean control's gain over chance, every hacker keeps at most 1/3: "the hackers
      tried fail"; at most 2/3: "are held back but still learn"; more: "still learn". A hacker without a clean
      control is not judged; the sentence says so, unless another one learns anyway.
      Where chance is unknown it counts as 0.
    * gap: the smaller of last and best epochs; at most 3 points, or an interval that reaches zero, means no real
      advantage.
    * with one seed, differences under about 3 points mean nothing, and the sentence says so.
    """
    if summary.hackers and _nothing_learned(summary):
        top = max(summary.clean.values())
        return (
            f"Nothing was learned, not even from the originals ({number(top)}% at most, chance is "
            f"{number(summary.chance)}%): no judgement; train longer, on more images, or with a smaller network."
        )
    parts = [_authorized_part(summary.authorized, summary.facts), _hacker_part(summary)]
    margin = summary.margin
    if margin is not None and margin.kind == "gap":
        gap, _, which = margin.smaller
        little = "" if separated(margin) else ", no real advantage over the strongest hacker"
        parts.append(f"the gap is {number(gap)} points ({which} epochs){little}")
    if summary.seeds == 1:
        parts.append(f"with one seed, differences under about {NOISE:.0f} points mean nothing")
    if summary.partial:
        parts.append("the audit is partial, and what was left out may do better")
    return capital("; ".join(parts)) + "."


def _authorized_part(result: Result | None, facts: Mapping[str, Any]) -> str:
    if result is None and facts.get("originals_opened"):
        return (
            f"all {facts['originals_opened']:,} sealed originals were opened and compared with the copy, so that "
            "authorised training is training on the originals"
        )
    if result is None:
        return "the authorised network was not tested (no key)"
    if result.clean is None:
        return f"the authorised {result.network} reaches {result.last:.1f}%, with no clean control to compare with"
    learns = {LEARNS: "learns about as well as from clean data", PARTLY: "learns, with a loss"}
    within = (words for most, words in learns.items() if result.clean - result.last <= most)
    how = next(within, "does not learn properly")
    return f"the authorised {result.network} {how} ({result.last:.1f}% against {result.clean:.1f}% clean)"


def _hacker_part(summary: Summary) -> str:
    if not summary.hackers:
        return "no hacker was tried"
    top = summary.hackers[0]
    chance = summary.chance or 0.0
    shares = [share for _, share in clean_shares(summary.hackers, chance)]
    if max(shares, default=0.0) > HELD_SHARE:
        how = "hackers still learn"
    elif len(shares) < len(summary.hackers):
        how = "the hackers cannot all be judged for lack of a clean control that learns"
    else:
        how = "the hackers tried " + ("fail" if max(shares) <= FAIL_SHARE else "are held back but still learn")
    clean = f" against {top.clean:.1f}% clean" if top.clean is not None else ""
    return f"{how}, the strongest being {top.name} with {top.last:.1f}%{clean}"
