"""A summary as rows: the same ones for the HTML page and for the terminal."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

from uge.audit.metrics import HackerResult, Result, Summary

SCHEMES = {
    "direct": "trained on labels",
    "distill": "distilled",
    "distill-inside": "distilled with the network in hand",
    "distill-jpeg75": "distilled, JPEG 75",
    "grayscale": "labels, gray images",
    "jpeg75": "labels, JPEG 75",
    "jpeg10": "labels, JPEG 10",
    "axis-removal": "labels, colour axes guessed",
    "other-key": "labels, a key of the hacker's own",
}
"""Plain words for attacks; others are shown by their names."""


@dataclass(frozen=True)
class Row:
    """One line of the results table; accuracies in percent on the clean test set.

    Attributes:
        role: ``authorized`` or ``hacker``.
        network: Name of the architecture.
        scheme: How it was trained, as in the cases.
        how: The same in plain words.
        last: Mean after the last epoch.
        std: Sample standard deviation of ``last``; ``None`` with one seed.
        best: Mean of the best epochs.
        clean: Clean control; ``None`` without one.
        delta: ``last`` minus ``clean`` in points; ``None`` without a clean control.
        seeds: Number of seeds.
        strongest: Whether it is the strongest hacker.
        same_architecture: Whether a hacker has an authorised network's architecture.
    """

    role: Literal["authorized", "hacker"]
    network: str
    scheme: str
    how: str
    last: float
    std: float | None
    best: float
    clean: float | None
    delta: float | None
    seeds: int
    strongest: bool = False
    same_architecture: bool = False

    @property
    def label(self) -> str:
        """``network, how`` for axes and captions."""
        return f"{self.network}, {self.how}" if self.role == "hacker" else f"{self.network}, authorised"

    @property
    def remark(self) -> str:
        """What is special about the row, or nothing."""
        remarks = ["strongest"] if self.strongest else []
        return ", ".join(remarks + (["same architecture"] if self.same_architecture else []))


def rows(summary: Summary) -> list[Row]:
    """Authorised networks in their order, then hackers, strongest first."""
    top = summary.strongest
    found = [_row("authorized", result) for result in summary.authorized_all or _first(summary)]
    marked = False
    for hacker in summary.hackers:
        strongest = not marked and top is not None and (hacker.network, hacker.scheme) == (top.network, top.scheme)
        marked = marked or strongest
        found.append(_row("hacker", hacker, strongest))
    return found


def _first(summary: Summary) -> list[Result]:
    return [summary.authorized] if summary.authorized else []


def _row(role: Literal["authorized", "hacker"], result: Result, strongest: bool = False) -> Row:
    how = "from its key" if role == "authorized" else SCHEMES.get(result.scheme, result.scheme)
    return Row(
        role=role,
        network=result.network,
        scheme=result.scheme,
        how=f"{how}, key {result.key}" if result.key else how,
        last=result.last,
        std=result.std,
        best=result.best,
        clean=result.clean,
        delta=None if result.clean is None else result.last - result.clean,
        seeds=result.seeds,
        strongest=strongest,
        same_architecture=isinstance(result, HackerResult) and result.same_architecture,
    )


def number(value: float | None, *, signed: bool = False) -> str:
    """One decimal with a real minus sign; an en dash for ``None``."""
    if value is None:
        return "–"
    text = f"{value:+.1f}" if signed else f"{value:.1f}"
    return "0.0" if text in {"-0.0", "+0.0"} else text.replace("-", "−")


def spread(value: float, std: float | None) -> str:
    """``59.0 ± 1.0``, or ``59.0`` with one seed."""
    return number(value) if std is None else f"{number(value)} ± {number(std)}"


def text_table(summary: Summary) -> str:
    """The results as plain text for a terminal, without colours; two lines on the gap below the table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for name, justify in [("who", "left"), ("network", "left"), ("how", "left"), ("last %", "right")]:
        table.add_column(name, justify="right" if justify == "right" else "left", no_wrap=True)
    for name in ("best %", "clean %", "Δ clean", "seeds"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows(summary):
        cells = ["authorised" if row.role == "authorized" else "hacker", row.network]
        cells += [row.how + (" *" if row.strongest else ""), spread(row.last, row.std), number(row.best)]
        cells += [number(row.clean), number(row.delta, signed=True), str(row.seeds)]
        # Text keeps square brackets in names from being read as markup.
        table.add_row(*map(Text, cells))
    buffer = io.StringIO()
    Console(file=buffer, width=200, color_system=None, force_terminal=False).print(table)
    lines = [line.rstrip() for line in buffer.getvalue().splitlines()]
    if summary.strongest:
        lines += ["", "* strongest hacker"]
    if summary.gap is not None:
        lines.append(f"gap: {number(summary.gap)} points (last epochs), {number(summary.gap_best)} (best epochs)")
    if summary.chance is not None:
        lines.append(f"chance: {number(summary.chance)} %")
    return "\n".join(lines)
