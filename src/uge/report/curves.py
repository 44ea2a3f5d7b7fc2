"""Accuracy by epoch, one small plot for every attack, and the protector's losses."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from markupsafe import Markup

from uge.auditing.summary import Summary, with_key
from uge.cases.case import Case, Role
from uge.report.line_plot import Line, plot, swatch
from uge.report.tables import by_family

MOST_POINTS = 120
DASHES = ("", "6 2.5", "2 2", "8 2 2 2", "4 2 1 2 1 2", "1 3")
LOSS_TITLES = {
    "loss": "total loss",
    "gradient_matching": "gradient matching",
    "feature_distance": "feature distance",
    "undistill": "undistill",
    "linf": "largest change (L∞)",
    "mean_abs_delta": "mean change",
}
Learner = tuple[str, int]  # A network, and the number of its key or of its teacher's.


@dataclass(frozen=True)
class Panel:
    """One small plot with its title and a few words beside it."""

    title: str
    note: str
    drawing: Markup


def by_attack(cases: Sequence[Case], summary: Summary) -> dict[str, list[Panel]]:
    """Test accuracy by epoch, by family: one plot for each attack, one line for each network and key, mean over seeds.

    The clean controls of the same networks, and the authorised networks, are drawn thin for comparison.
    """
    hackers = _drawn(cases, "hacker")
    meant = _drawn(cases, "authorized")
    controls = [case for case in _drawn(cases, "clean") if case.start == "random"]
    dashes = dash_patterns(hackers)
    authorized = _lines(meant, "authorized", dash_patterns(meant), thin=True)
    best = max((case.best for case in cases if len(case.history) > 1), default=100.0)
    groups: dict[str, list[Panel]] = {}
    for family, attacks in by_family([*summary.hackers, *summary.yardsticks]).items():
        for scheme, results in attacks.items():
            mine = [case for case in hackers if case.scheme == scheme]
            if not mine:
                continue
            networks = {case.network for case in mine}
            same = [case for case in controls if case.network in networks]
            ends = (f"{with_key(result.network, result.key)} ends at {result.last:.1f} %" for result in results)
            drawn = plot(
                [*_lines(same, "clean", dashes, thin=True), *authorized, *_lines(mine, "hacker", dashes)],
                low=0,
                high=min(100.0, 1.04 * best + 1),
                x_label="epoch",
                description=f"Test accuracy by epoch under {scheme}: {', '.join(ends)}.",
            )
            panel = Panel(scheme, f"{max(result.last for result in results):.1f} %", drawn)
            groups.setdefault(family, []).append(panel)
    return groups


def dash_patterns(cases: Iterable[Case]) -> dict[Learner, str]:
    """A dash pattern for every network and key, solid for the first."""
    return dict(zip(sorted({(case.network, case.key) for case in cases}), itertools.cycle(DASHES), strict=False))


def legend(cases: Sequence[Case]) -> list[tuple[Markup, str]]:
    """(Piece of line, words) for the plots by attack."""
    hackers = dash_patterns(_drawn(cases, "hacker"))
    meant = dash_patterns(_drawn(cases, "authorized"))
    return [
        *((swatch("hacker", dash), f"hacker, {with_key(*learner)}") for learner, dash in hackers.items()),
        *([(swatch("clean thin"), "clean controls")] if _drawn(cases, "clean") else []),
        *(
            (swatch("authorized thin", dash), f"authorised, {with_key(*learner)}" if len(meant) > 1 else "authorised")
            for learner, dash in meant.items()
        ),
    ]


def losses(events: Sequence[Mapping[str, Any]], kind: str, axis: str) -> list[Panel]:
    """One plot for each loss of the protector, over its steps.

    Args:
        events: Of ``protect.jsonl``.
        kind: Kind of the events: ``step`` of the generator, or ``refine`` for passes of direct optimisation.
        axis: Name of the horizontal axis.
    """
    rows = [event for event in events if event.get("event") == kind]
    panels = []
    for field, words in LOSS_TITLES.items():
        points = _series(rows, field)
        if len(points) < 2:
            continue
        values = [y for _, y in points]
        margin = 0.08 * (max(values) - min(values)) or 0.5
        drawn = plot(
            [Line(_thinned(points))],
            low=min(values) - margin,
            high=max(values) + margin,
            x_label=axis,
            description=f"{words} by {axis}: from {values[0]:.3g} to {values[-1]:.3g}.",
        )
        panels.append(Panel(words, f"{values[-1]:.3g}", drawn))
    return panels


def _drawn(cases: Iterable[Case], role: Role) -> list[Case]:
    # Cases of a role with a curve; authorised training as meant, without its variants.
    return [
        case
        for case in cases
        if case.role == role and len(case.history) > 1 and (role != "authorized" or case.scheme == "direct")
    ]


def _lines(cases: Sequence[Case], kind: str, dashes: Mapping[Learner, str], *, thin: bool = False) -> list[Line]:
    # One line for each network and key: a mean over several would hide the better one.
    groups: dict[Learner, list[Case]] = {}
    for case in cases:
        groups.setdefault((case.network, case.key), []).append(case)
    lines = []
    for learner, group in groups.items():
        # Only epochs that every seed has: otherwise the mean would jump where a shorter run ends.
        epochs = list(zip(*(case.history for case in group), strict=False))
        columns = [[epoch.test_accuracy for epoch in same] for same in epochs]
        points = [(float(same[0].epoch), fmean(column)) for same, column in zip(epochs, columns, strict=True)]
        band = [] if thin or len(group) < 2 else [(min(column), max(column)) for column in columns]
        lines.append(Line(points, kind, dashes.get(learner, ""), band, thin))
    return lines


def _series(rows: Sequence[Mapping[str, Any]], field: str) -> list[tuple[float, float]]:
    # (Step or number of the pass, value), once each: a resumed run logs again what it does again.
    values: dict[float, float] = {}
    passes: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        value = row.get(field)
        place = row.get("step", passes.setdefault(str(row.get("name", number)), len(passes) + 1))
        if isinstance(value, int | float) and isinstance(place, int | float) and math.isfinite(value):
            values[float(place)] = float(value)
    return sorted(values.items())


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    size = math.ceil(len(points) / MOST_POINTS)
    blocks = [points[i : i + size] for i in range(0, len(points), size)]
    return [(fmean(x for x, _ in block), fmean(y for _, y in block)) for block in blocks]
