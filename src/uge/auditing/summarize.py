"""From cases to one summary: means over seeds, the one number with its interval. Needs no torch.

The sentences are in :mod:`uge.auditing.summary`, the reasons for doubt in :mod:`uge.auditing.checks`.
"""

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from uge.auditing import worst_results
from uge.auditing.checks import BEST_ABOVE_LAST, NOT_CONVERGED, find_doubts
from uge.auditing.summary import (
    LEVELS,
    HackerResult,
    Holds,
    Interval,
    Margin,
    Result,
    Summary,
    headline,
    label,
    mean_std,
    partial,
    verdict,
)
from uge.cases.case import YARDSTICK, Case
from uge.names import CHECKPOINT, behind_key

_LEAKED_PERCENT = re.compile(r"(?:mix-clean|semi-supervised|last-layer)-(\d+)")
Value = Callable[[Case], float]
LAST: Value = attrgetter("last")
BEST: Value = attrgetter("best")


def summarize(
    cases: Iterable[Case],
    *,
    classes: int | None = None,
    chance: float | None = None,
    left_out: Sequence[Mapping[str, str]] = (),
    planned: int | None = None,
    failed: Sequence[str] = (),
    warnings: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
) -> Summary:
    """Average over seeds, pair every network with its clean control, and look for reasons to doubt the result.

    The clean control of a group is the mean of the clean cases of the same network; those with the same
    start and scheme are preferred where there are any.

    Args:
        cases: All cases of one audit.
        classes: Number of classes; read as ``classes`` from recipe or environment of the cases when not given.
        chance: Accuracy of guessing in percent, the share of the largest class of the test images; 100 / ``classes``
            where it is not given.
        left_out: Attacks that were not run: mappings with ``attack``, ``network`` and ``reason``.
        planned: Number of cases of a complete audit.
        failed: Ids of cases that gave no result.
        warnings: Further reasons to doubt the audit, put first.
        facts: Facts about the data; see :mod:`uge.auditing.checks`.

    Returns:
        The summary; fields that cannot be computed are ``None`` and a warning says why.
    """
    everything = list(cases)
    cases = [case for case in everything if not case.long and not worst_results.is_control(case)]
    count = classes or _classes(cases)
    known = dict(facts or {})
    summary = Summary(
        **_results(cases),
        worst_case=worst_results.worst_case(
            everything, labelled=known.get("labelled"), opened=known.get("originals_opened")
        ),
        chance=chance if chance is not None else 100 / count if count else None,
        cases=[case.id for case in everything],
        ran=len(everything),
        planned=planned,
        left_out=[dict(item) for item in left_out],
        failed=list(failed),
        facts=known,
        given=list(warnings),
    )
    worst = summary.worst_case
    if worst is not None:
        forms = filter(None, (worst.short, worst.long))
        summary = summary.model_copy(update={"seeds": min(form.worst.seeds for form in forms)})
    doubts = find_doubts(cases, summary, summary.facts)
    if worst is not None:
        # Its length is fixed, and the labelled images choose its epochs.
        doubts = [doubt for doubt in doubts if doubt.check not in (NOT_CONVERGED, BEST_ABOVE_LAST)]
    summary = summary.model_copy(update={"doubts": doubts, "warnings": [*warnings, *map(str, doubts)]})
    if worst is None:
        texts = {"headline": headline(summary), "label": label(summary), "verdict": verdict(summary)}
    else:
        texts = worst_results.texts(worst, partial(summary))
    return summary.model_copy(update=texts)


def interval(values: Sequence[float]) -> Interval | None:
    """The 95 % confidence interval of a mean by Student's t, or ``None`` for fewer than two values."""
    mean, std = mean_std(values) if values else (0.0, None)
    if std is None:
        return None
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, 0.975)) * std / len(values) ** 0.5
    return mean - half, mean + half


def _results(cases: Sequence[Case]) -> dict[str, Any]:
    controls = [case for case in cases if case.data == "clean"]
    keyed = [case for case in cases if case.role == "authorized" and case.data == "protected"]
    hacked = [case for case in cases if case.role == "hacker" and case.data == "protected"]
    meant = _grouped(case for case in keyed if case.scheme == "direct")
    attacks = _grouped(case for case in hacked if case.family != YARDSTICK)
    yardsticks = _grouped(case for case in hacked if case.family == YARDSTICK)
    authorized = [Result(**_means(group, controls)) for group in meant]
    alone = [HackerResult(**_means(group, controls)) for group in yardsticks]
    architectures = {behind_key(case.network) for case in keyed}
    hackers = [_hacker(group, controls, alone, architectures) for group in attacks]
    hackers.sort(key=lambda hacker: (-hacker.last, -hacker.best, hacker.network, hacker.scheme))
    margins = _margins(meant[0] if meant else None, attacks, controls)
    gap = margins[-1] if margins and meant else None
    return {
        "clean": {name: _mean(_control(controls, name)) for name in sorted({case.network for case in controls})},
        "authorized": authorized[0] if authorized else None,
        "authorized_all": authorized,
        "variants": [
            Result(**_means(group, controls)) for group in _grouped(case for case in keyed if case.scheme != "direct")
        ],
        "hackers": hackers,
        "yardsticks": alone,
        "margin": margins[-1] if margins else None,
        "margins": margins,
        "gap": gap and gap.last,
        "gap_best": gap and gap.best,
        "strongest": {"network": hackers[0].network, "scheme": hackers[0].scheme} if hackers else None,
        "seeds": min((result.seeds for result in [*authorized, *hackers]), default=0),
    }


def _grouped(cases: Iterable[Case]) -> list[list[Case]]:
    # By key as well: the mean over two keys would hide the weaker authorised network and the better teacher.
    groups: dict[tuple[str, str, int], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.network, case.scheme, case.key), []).append(case)
    return list(groups.values())


def _mean(group: Sequence[Case], value: Value = LAST) -> float:
    return statistics.fmean(map(value, group))


def _control(
    controls: Sequence[Case], network: str, start: str = "random", scheme: str = "direct", key: int = 0
) -> list[Case]:
    chosen = [case for case in controls if case.network == network]
    chosen = [case for case in chosen if case.start == start] or chosen
    chosen = [case for case in chosen if case.key == key] or chosen
    same = [case for case in chosen if case.scheme == scheme]
    return same or [case for case in chosen if case.scheme == "direct"] or chosen


def _group_control(group: Sequence[Case], controls: Sequence[Case]) -> list[Case]:
    first = group[0]
    return _control(controls, first.network, first.start, first.scheme, first.key)


def _means(group: Sequence[Case], controls: Sequence[Case]) -> dict[str, Any]:
    first = group[0]
    last, std = mean_std([case.last for case in group])
    best, std_best = mean_std([case.best for case in group])
    seeds = len({case.seed for case in group})
    control = _group_control(group, controls)
    return {
        "network": first.network,
        "scheme": first.scheme,
        "family": first.family,
        "holds": _holds(first),
        "about": first.about,
        "last": last,
        "best": best,
        "clean": _mean(control) if control else None,
        "clean_best": _mean(control, BEST) if control else None,
        "std": std if seeds > 1 else None,
        "std_best": std_best if seeds > 1 else None,
        "seeds": seeds,
        "key": first.key,
    }


def _hacker(
    group: Sequence[Case], controls: Sequence[Case], yardsticks: Sequence[HackerResult], authorized: set[str]
) -> HackerResult:
    first = group[0]
    shares = [int(percent) for percent in _LEAKED_PERCENT.findall(first.scheme)]
    yardstick = f"clean-only-{max(shares)}" if shares else None
    alone = [result.reached for result in yardsticks if (result.network, result.scheme) == (first.network, yardstick)]
    return HackerResult(
        **_means(group, controls),
        same_architecture=behind_key(first.network) in authorized,
        alone=alone[-1] if alone else None,
    )


def _holds(case: Case) -> Holds:
    needs = {*case.needs, "public"} if case.network.startswith(CHECKPOINT) else {*case.needs}
    return next((name for name in reversed(LEVELS) if name in needs), "nothing")


def _margins(meant: list[Case] | None, attacks: list[list[Case]], controls: Sequence[Case]) -> list[Margin]:
    groups = attacks if meant else [group for group in attacks if _group_control(group, controls)]
    margins = []
    for level in sorted({LEVELS.index(_holds(group[0])) for group in groups}):
        holding = [group for group in groups if LEVELS.index(_holds(group[0])) <= level]
        last, last_interval, seeds, top = _difference(meant, holding, controls, LAST)
        best, best_interval, seeds_best, top_best = _difference(meant, holding, controls, BEST)
        margins.append(
            Margin(
                kind="gap" if meant else "protection",
                holds=LEVELS[level],
                last=last,
                last_interval=last_interval,
                best=best,
                best_interval=best_interval,
                seeds=min(seeds, seeds_best),
                network=top[0].network,
                scheme=top[0].scheme,
                accuracy=_mean(top),
                network_best=top_best[0].network,
                scheme_best=top_best[0].scheme,
                accuracy_best=_mean(top_best, BEST),
            )
        )
    return margins


def _difference(
    meant: list[Case] | None, attacks: Sequence[list[Case]], controls: Sequence[Case], value: Value
) -> tuple[float, Interval | None, int, list[Case]]:
    """Reference minus the strongest attack, seed by seed: mean, interval, its seeds, and the strongest on average.

    For the mean, a group that lacks a seed counts there with its mean. Where groups have different seeds the mean over
    seeds can lie above the difference of the means; then the smaller one counts. The interval is around the mean, and
    as wide as the seeds say that the reference and the strongest attack both have.
    """

    def reference(group: list[Case]) -> list[Case]:
        return meant or _group_control(group, controls)

    def at(group: list[Case], seed: int) -> float:
        return _mean([case for case in group if case.seed == seed] or group, value)

    def both(group: list[Case]) -> set[int]:
        return {case.seed for case in group} & {case.seed for case in reference(group)}

    strongest = max(attacks, key=lambda group: (_mean(group, value), _mean(group, BEST)))
    differences = []
    paired = []  # Only seeds that both sides really have.
    for seed in sorted({case.seed for case in meant or [case for group in attacks for case in group]}):
        top = max(attacks, key=lambda group: at(group, seed))
        differences.append(at(reference(top), seed) - at(top, seed))
        if seed in both(strongest) & both(top):
            paired.append(differences[-1])
    mean = min(statistics.fmean(differences), _mean(reference(strongest), value) - _mean(strongest, value))
    shifted = [mean + difference - statistics.fmean(paired) for difference in paired]
    return mean, interval(shifted), len(paired), strongest


def _classes(cases: Sequence[Case]) -> int | None:
    counts = (place.get("classes") for case in cases for place in (case.recipe, case.environment))
    return next((count for count in counts if isinstance(count, int) and count > 1), None)
