"""The figures of the report. Each is drawn twice: wide for a desktop, narrow for a phone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from uge.audit.cases import Case
from uge.report.svg import AUTHORIZED, CLEAN, GRID, HACKER, INK, MUTED, PAPER, SMALL, canvas, plain, to_svg
from uge.report.tables import Row, number, spread

WIDE, NARROW = 920, 340
MOST_POINTS = 240
_DASHES: dict[str, Any] = {"direct": "-", "distill": (0, (5, 2))}
_OTHER_DASHES: list[Any] = [(0, (1, 1.6)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 3))]
LOSSES = {
    "loss": "total loss",
    "gradient_matching": "gradient matching",
    "feature_distance": "feature distance",
    "undistill": "undistill",
    "linf": "largest change (L∞)",
    "mean_abs_delta": "mean change",
}
"""Fields of a ``step`` event that are drawn, and what they are called."""


def bars(rows: Sequence[Row], chance: float | None, *, narrow: bool = False) -> str:
    """Last-epoch accuracies as bars, with ± std, best epochs, clean controls and the chance line."""
    width, step = (NARROW, 54) if narrow else (WIDE, 40)
    height = len(rows) * step + 48
    labels = [plain(row.label, 40) for row in rows]
    left = 6 if narrow else min(330, 14 + 7.1 * max(map(len, labels)))
    right = 92
    top = max(itertools.chain.from_iterable((r.last + (r.std or 0), r.best, r.clean or 0) for r in rows))
    with canvas(width, height) as figure:
        axes = figure.add_axes((left / width, 40 / height, (width - left - right) / width, (height - 44) / height))
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        for place, row in enumerate(rows):
            y = place + (0.22 if narrow else 0)
            colour = AUTHORIZED if row.role == "authorized" else HACKER
            half = 0.18 if narrow else 0.29
            axes.barh(y, row.last, height=2 * half, color=colour, linewidth=0)
            if row.std is not None:
                axes.errorbar(row.last, y, xerr=row.std, color=INK, elinewidth=1.4, capsize=3.5, capthick=1.4)
            if row.clean is not None:
                axes.plot([row.clean] * 2, [y - half - 0.1, y + half + 0.1], color=CLEAN, linewidth=4)
            axes.plot(
                row.best, y, "D", color=PAPER, markeredgecolor=INK, markersize=7, markeredgewidth=1.3, clip_on=False
            )
            axes.text(1.0, y, f"  {spread(row.last, row.std)}", transform=axes.get_yaxis_transform(), va="center")
            if narrow:
                axes.text(0, y - 0.45, labels[place], fontsize=SMALL, va="center")
            if chance is not None:
                # On a phone the line would run through the labels between the bars.
                reach = half + 0.04 if narrow else 0.5
                axes.plot([chance] * 2, [y - reach, y + reach], color=INK, linewidth=1.2, linestyle=(0, (2, 2)))
        axes.set_xlim(0, min(100, max(top * 1.06, 10)))
        axes.set_ylim(len(rows) - 0.4, -0.62)
        axes.spines["left"].set_visible(False)
        axes.set_yticks([] if narrow else range(len(rows)), [] if narrow else labels)
        axes.tick_params(axis="y", labelcolor=INK, labelsize=13)
        axes.set_xlabel(
            "test accuracy, %" if narrow else "accuracy on clean test images, %", color=MUTED, fontsize=SMALL
        )
        said = "; ".join(f"{row.label} {number(row.last)} (clean control {number(row.clean)})" for row in rows)
        return to_svg(figure, f"bars{'-n' if narrow else ''}", f"Bar chart of test accuracies in percent: {said}.")


def curves(cases: Sequence[Case], *, narrow: bool = False) -> str:
    """Test accuracy by epoch: one panel per network, mean over the seeds, all seeds as a band.

    Returns:
        The figure; an empty string when no case has a history of two epochs.
    """
    cases = [case for case in cases if len(case.history) > 1]
    order = {"authorized": 0, "hacker": 1, "clean": 2}
    networks = list(dict.fromkeys(case.network for case in sorted(cases, key=lambda c: (order[c.role], c.network))))
    if not networks:
        return ""
    dashes = scheme_dashes(cases)
    top = max(epoch.test_accuracy for case in cases for epoch in case.history)
    with canvas(*_panel_size(len(networks), narrow)) as figure:
        for axes, network in zip(_panels(figure, len(networks), narrow), networks, strict=True):
            # Clean controls below, the authorised network on top.
            for role, colour in (("clean", CLEAN), ("hacker", HACKER), ("authorized", AUTHORIZED)):
                for (scheme, _, _), group in _groups(cases, network, role).items():
                    epochs, mean, low, high = _average(group)
                    axes.fill_between(epochs, low, high, color=colour, alpha=0.16, linewidth=0)
                    axes.plot(epochs, mean, color=colour, linestyle=dashes[scheme], linewidth=1.9)
            axes.set_title(
                plain(network, 20 if narrow else 30), loc="left", fontsize=SMALL if narrow else 13, color=INK
            )
            axes.set_ylim(0, min(100, top * 1.06))
            axes.locator_params(axis="y", nbins=5)
            _whole_ticks(axes, "epoch")
        names = ", ".join(networks)
        return to_svg(figure, f"curves{'-n' if narrow else ''}", f"Test accuracy by epoch, one panel each for {names}.")


def scheme_dashes(cases: Sequence[Case]) -> dict[str, Any]:
    """A line style for every scheme: solid for direct training, dashed for distillation, others after that."""
    others = sorted({case.scheme for case in cases} - set(_DASHES))
    return {**_DASHES, **dict(zip(others, itertools.cycle(_OTHER_DASHES), strict=False))}


def losses(events: Sequence[Mapping[str, Any]], kind: str, axis: str, *, narrow: bool = False) -> str:
    """What the protector minimised, one panel per loss, over its steps.

    Args:
        events: Of ``protect.jsonl``.
        kind: Which events: ``step`` of the generator, or ``refine`` for passes of direct optimisation.
        axis: Name of the horizontal axis.
        narrow: For a phone.

    Returns:
        The figure; an empty string when there are fewer than two such events.
    """
    rows = [event for event in events if event.get("event") == kind]
    series = {name: _series(rows, name) for name in LOSSES}
    series = {name: points for name, points in series.items() if len(points) > 1}
    if not series:
        return ""
    with canvas(*_panel_size(len(series), narrow)) as figure:
        for axes, (name, points) in zip(_panels(figure, len(series), narrow), series.items(), strict=True):
            axes.plot(*zip(*_thinned(points), strict=True), color=INK, linewidth=1.5)
            axes.set_title(LOSSES[name], loc="left", fontsize=SMALL if narrow else 13, color=INK)
            axes.margins(y=0.08)
            axes.locator_params(axis="y", nbins=4)
            _whole_ticks(axes, axis)
        said = "; ".join(f"{LOSSES[n]} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for n, points in series.items())
        return to_svg(figure, f"{kind}{'-n' if narrow else ''}", f"Losses by {axis}: {said}.")


def _whole_ticks(axes: Any, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.set_xlabel(label, color=MUTED, fontsize=SMALL)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def _panel_size(count: int, narrow: bool) -> tuple[float, float]:
    columns = _columns(count, narrow)
    return (NARROW if narrow else WIDE), math.ceil(count / columns) * (168 if narrow else 226)


def _columns(count: int, narrow: bool) -> int:
    if narrow:
        return min(count, 2)
    return max(count, 3) if count <= 5 else next((c for c in (4, 3, 5) if count % c == 0), 4)


def _panels(figure: Any, count: int, narrow: bool) -> list[Any]:
    columns = _columns(count, narrow)
    lines = math.ceil(count / columns)
    width, height = figure.get_size_inches() * 72
    figure.subplots_adjust(
        left=36 / width,
        right=1 - 8 / width,
        top=1 - 28 / height,
        bottom=42 / height,
        wspace=0.3 if narrow else 0.22,
        hspace=0.85 if narrow else 0.5,
    )
    return [figure.add_subplot(lines, columns, number + 1) for number in range(count)]


def _groups(cases: Sequence[Case], network: str, role: str) -> dict[tuple[str, str, int], list[Case]]:
    found: dict[tuple[str, str, int], list[Case]] = {}
    for case in cases:
        if case.network == network and case.role == role:
            found.setdefault((case.scheme, case.start, case.key), []).append(case)
    return found


def _average(group: Sequence[Case]) -> tuple[list[int], list[float], list[float], list[float]]:
    # Only epochs that every seed has: otherwise the mean would jump where a shorter run ends.
    length = min(len(case.history) for case in group)
    columns = [[case.history[i].test_accuracy for case in group] for i in range(length)]
    epochs = [epoch.epoch for epoch in group[0].history[:length]]
    return epochs, [fmean(c) for c in columns], [min(c) for c in columns], [max(c) for c in columns]


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    points = []
    for number_, row in enumerate(rows, 1):
        value, place = row.get(name), row.get("step", number_)
        if isinstance(value, int | float) and isinstance(place, int | float) and math.isfinite(value):
            points.append((float(place), float(value)))
    return points


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``MOST_POINTS`` points, each the mean of its neighbours."""
    size = math.ceil(len(points) / MOST_POINTS)
    blocks = [points[i : i + size] for i in range(0, len(points), size)]
    return [(fmean(x for x, _ in block), fmean(y for _, y in block)) for block in blocks]
