"""From cases to one summary: means over seeds, the one number with its interval. Needs no torch.

The sentences are in :mod:`uge.auditing.verdict`, the reasons for doubt in :mod:`uge.auditing.checks`.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from uge.auditing import checks
from uge.auditing.summary import HOLDS, NOISE, HackerResult, Holds, Interval, Margin, Result, Strongest, Summary
from uge.auditing.verdict import headline, label, verdict
from uge.cases.case import YARDSTICK, Case
from uge.names import CHECKPOINT, behind_key

__all__ = ["NOISE", "HackerResult", "Margin", "Result", "Strongest", "Summary", "interval", "summarize", "verdict"]

_FAMILIES = {"grayscale": "preprocess", "jpeg": "preprocess", "axis-removal": "preprocess", "distill": "knowledge"}
"""Beginnings of the names of attacks whose cases were written before cases named their family."""
_LEAKS = re.compile(r"(?:mix-clean|semi-supervised|last-layer)-(\d+)")
"""Attacks that hold so many percent of the originals."""
Value = Callable[[Case], float]


def summarize(
    cases: Iterable[Case],
    *,
    classes: int | None = None,
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
        classes: Number of classes; looked up as ``classes`` in recipe or environment of the cases when not given.
        left_out: What was not run: mappings with ``attack``, ``network`` and ``reason``.
        planned: Cases that a complete audit would have had.
        failed: Ids of cases that were tried and gave no result.
        warnings: Further reasons to doubt the audit, put first.
        facts: What is known of the data; see :mod:`uge.auditing.checks`.

    Returns:
        The summary; fields that cannot be computed are ``None`` and a warning says why.
    """
    cases = list(cases)
    controls = [case for case in cases if case.data == "clean"]
    keyed = [case for case in cases if case.role == "authorized" and case.data == "protected"]
    hacked = [case for case in cases if case.role == "hacker" and case.data == "protected"]
    attacks = _grouped(case for case in hacked if _family(case) != YARDSTICK)
    yardsticks = _grouped(case for case in hacked if _family(case) == YARDSTICK)
    meant = _grouped(case for case in keyed if case.scheme == "direct")
    networks = {behind_key(case.network) for case in keyed}

    authorized = [Result(**_means(group, controls)) for group in meant.values()]
    measures = [HackerResult(**_means(group, controls)) for group in yardsticks.values()]
    alone = {(one.network, one.scheme): max(one.last, one.best) for one in measures}
    hackers = [
        HackerResult(
            **_means(group, controls),
            same_architecture=behind_key(network) in networks,
            alone=alone.get((network, _yardstick(scheme))),
        )
        for (network, scheme, _), group in attacks.items()
    ]
    hackers.sort(key=lambda hacker: (-hacker.last, -hacker.best, hacker.network, hacker.scheme))
    margins = _margins(next(iter(meant.values()), None), list(attacks.values()), controls)
    margin = margins[-1] if margins else None
    gap = margin if margin is not None and margin.kind == "gap" else None
    count = classes or _classes(cases)
    summary = Summary(
        clean={name: _mean(_control(controls, name)) for name in sorted({case.network for case in controls})},
        authorized=authorized[0] if authorized else None,
        authorized_all=authorized,
        variants=[Result(**_means(g, controls)) for g in _grouped(c for c in keyed if c.scheme != "direct").values()],
        hackers=hackers,
        yardsticks=measures,
        margin=margin,
        margins=margins,
        gap=None if gap is None else gap.last,
        gap_best=None if gap is None else gap.best,
        strongest=Strongest(network=hackers[0].network, scheme=hackers[0].scheme) if hackers else None,
        seeds=min((result.seeds for result in [*authorized, *hackers]), default=0),
        chance=100 / count if count else None,
        cases=[case.id for case in cases],
        ran=len(cases),
        planned=planned,
        left_out=[dict(item) for item in left_out],
        failed=list(failed),
        facts=dict(facts or {}),
        given=list(warnings),
    )
    doubts = checks.look(cases, summary, summary.facts)
    summary = summary.model_copy(update={"doubts": doubts, "warnings": [*warnings, *map(str, doubts)]})
    return summary.model_copy(update={"headline": headline(summary), "label": label(summary)})


def interval(values: Sequence[float]) -> Interval | None:
    """The 95 % confidence interval of a mean by Student's t, or ``None`` for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit

    mean = statistics.fmean(values)
    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / len(values) ** 0.5
    return mean - half, mean + half


def _grouped(cases: Iterable[Case]) -> dict[tuple[str, str, int], list[Case]]:
    # By key as well: the mean over two keys would hide the weaker authorised network and the better teacher.
    groups: dict[tuple[str, str, int], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.network, case.scheme, case.key), []).append(case)
    return groups


def _last(case: Case) -> float:
    return case.last


def _best(case: Case) -> float:
    return case.best


def _mean(group: Sequence[Case], value: Value = _last) -> float:
    return statistics.fmean(map(value, group))


def _control(
    controls: Sequence[Case], network: str, start: str = "random", scheme: str = "direct", key: int = 0
) -> list[Case]:
    found = [case for case in controls if case.network == network]
    found = [case for case in found if case.start == start] or found
    found = [case for case in found if case.key == key] or found
    return [case for case in found if case.scheme == scheme] or [c for c in found if c.scheme == "direct"] or found


def _means(group: Sequence[Case], controls: Sequence[Case]) -> dict[str, Any]:
    one, last, best = group[0], [case.last for case in group], [case.best for case in group]
    seeds = len({case.seed for case in group})
    control = _control(controls, one.network, one.start, one.scheme, one.key)
    return {
        "network": one.network,
        "scheme": one.scheme,
        "family": _family(one),
        "holds": _holds(one),
        "about": one.about,
        "last": statistics.fmean(last),
        "best": statistics.fmean(best),
        "clean": _mean(control) if control else None,
        "clean_best": _mean(control, _best) if control else None,
        "std": statistics.stdev(last) if seeds > 1 else None,
        "std_best": statistics.stdev(best) if seeds > 1 else None,
        "seeds": seeds,
        "key": one.key,
    }


def _family(case: Case) -> str:
    older = (family for name, family in _FAMILIES.items() if case.scheme.startswith(name))
    return next(older, "plain") if case.family == "plain" else case.family


def _yardstick(scheme: str) -> str:
    """The scheme that has the same leaked originals and nothing else; empty where an attack has no share of them."""
    shares = [int(percent) for percent in _LEAKS.findall(scheme)]
    return f"clean-only-{max(shares)}" if shares else ""


def _holds(case: Case) -> Holds:
    # Distillation always had the key, also in cases that do not say what they needed.
    needs = {*case.needs} | ({"key"} if case.scheme.startswith("distill") else set())
    needs |= {"public"} if case.network.startswith(CHECKPOINT) else set()
    return next((name for name in reversed(HOLDS) if name in needs), "nothing")


def _margins(meant: list[Case] | None, attacks: list[list[Case]], controls: Sequence[Case]) -> list[Margin]:
    """The margin against everybody who holds no more than so much, for every "so much" that was tried."""
    groups = attacks if meant else [group for group in attacks if _group_control(group, controls)]
    levels, found = list(HOLDS), []
    for level in (name for name in levels if any(_holds(group[0]) == name for group in groups)):
        known = [group for group in groups if levels.index(_holds(group[0])) <= levels.index(level)]
        kind: Literal["gap", "protection"] = "gap" if meant else "protection"
        last, last_interval, seeds, top = _difference(meant, known, controls, _last)
        best, best_interval, seeds_best, top_best = _difference(meant, known, controls, _best)
        found.append(
            Margin(
                kind=kind,
                holds=level,
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
                accuracy_best=_mean(top_best, _best),
            )
        )
    return found


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
        return _per_seed(group, value).get(seed, _mean(group, value))

    def both(group: list[Case]) -> set[int]:
        return {case.seed for case in group} & {case.seed for case in reference(group)}

    strongest = max(attacks, key=lambda group: (_mean(group, value), _mean(group, _best)))
    differences, run = [], []
    for seed in sorted(_per_seed(meant or [case for group in attacks for case in group], value)):
        top = max(attacks, key=lambda group: at(group, seed))
        differences.append(at(reference(top), seed) - at(top, seed))
        if seed in both(strongest) & both(top):
            run.append(differences[-1])
    mean = min(statistics.fmean(differences), _mean(reference(strongest), value) - _mean(strongest, value))
    found = interval([mean + one - statistics.fmean(run) for one in run])
    return mean, found, len(run), strongest


def _group_control(group: Sequence[Case], controls: Sequence[Case]) -> list[Case]:
    one = group[0]
    return _control(controls, one.network, one.start, one.scheme, one.key)


def _per_seed(group: Iterable[Case], value: Value) -> dict[int, float]:
    found: dict[int, list[float]] = {}
    for case in group:
        found.setdefault(case.seed, []).append(value(case))
    return {seed: statistics.fmean(values) for seed, values in found.items()}


def _classes(cases: Sequence[Case]) -> int | None:
    for case in cases:
        for place in (case.recipe, case.environment):
            count = place.get("classes")
            if isinstance(count, int) and count > 1:
                return count
    return None
