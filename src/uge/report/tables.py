"""A summary as rows: the same ones for the HTML page and for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from uge.auditing.summary import HackerResult, Result, Summary
from uge.auditing.verdict import counted, extent

WORDS = {
    "direct": "trained on the labels",
    "distill": "trained with the answers of the authorised network",
    "distill-inside": "the same, with the network in hand",
    "distill-jpeg75": "the same, on JPEG 75 copies",
    "grayscale": "trained on gray images",
    "jpeg75": "trained on JPEG 75 copies",
    "jpeg10": "trained on JPEG 10 copies",
    "axis-removal": "colour axes guessed and taken out",
    "other-key": "trained behind a key of the hacker's own",
}
"""Plain words for attacks of audits whose cases do not say what was done."""
HELD = {"nothing": "", "public": "public images", "clean": "originals", "key": "key"}
"""What a hacker holds, in a word."""
FAMILIES = {
    "plain": "Plain training",
    "preprocess": "Filters of the images",
    "augment": "Augmentation",
    "train": "Other ways of training",
    "purify": "Purification",
    "transfer": "Transfer from other data",
    "knowledge": "Knowledge of the key or the network",
    "combination": "Combinations",
    "yardstick": "For comparison: without the published copy",
}
"""Titles of the families of attacks."""
MOST_LINES = 29


@dataclass(frozen=True)
class Row:
    """One line of the results table; accuracies in percent on the clean test set.

    Attributes:
        role: ``authorized`` or ``hacker``.
        network: Name of the architecture.
        scheme: How it was trained, as in the cases.
        how: The same in words: the attack, and the key where it is not the first.
        last: Mean after the last epoch.
        std: Sample standard deviation of ``last``; ``None`` with one seed.
        best: Mean of the best epochs.
        clean: Clean control; ``None`` without one.
        delta: ``last`` minus ``clean`` in points; ``None`` without a clean control.
        seeds: Number of seeds.
        strongest: Whether it is the strongest hacker.
        same_architecture: Whether a hacker has an authorised network's architecture.
        owes_nothing: Whether a hacker gets no more than from his leaked originals alone.
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
    owes_nothing: bool = False

    @property
    def label(self) -> str:
        """``network, how`` for axes and captions."""
        return f"{self.network}, {self.how}" if self.role == "hacker" else f"{self.network}, authorised"

    @property
    def remark(self) -> str:
        """What is special about the row, or nothing."""
        remarks = ["strongest"] if self.strongest else []
        remarks += ["same architecture"] if self.same_architecture else []
        return ", ".join(remarks + (["no more than his originals alone"] if self.owes_nothing else []))


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
    how = "from its key" if role == "authorized" else result.scheme
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
        owes_nothing=isinstance(result, HackerResult) and result.owes_nothing,
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


def markdown_table(columns: Sequence[str], cells: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; a ``|`` within a cell is escaped.

    Args:
        columns: Names of the columns; the first may be empty.
        cells: One sequence of texts for each line, as long as ``columns``.
    """
    head, *body = (
        "| " + " | ".join(text.replace("|", "\\|") for text in line).lstrip() + " |" for line in (columns, *cells)
    )
    return [head, "|---" * len(columns) + "|", *body]


def csv_text(columns: Sequence[str], records: Iterable[Mapping[str, Any]]) -> str:
    """CSV with a line of names, then one line for each record; ``None`` gives an empty cell.

    Args:
        columns: Keys of the records that are written, in this order; other keys are left out.
        records: Values by name.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()


def words(result: Result) -> str:
    """An attack in plain words; its name where nothing else is known."""
    return result.about or WORDS.get(result.scheme, "")


def by_family(summary: Summary) -> dict[str, dict[str, list[HackerResult]]]:
    """Title of the family → attack → results, the strongest family and attack first, yardsticks last."""
    found: dict[str, dict[str, list[HackerResult]]] = {}
    for hacker in (*summary.hackers, *summary.yardsticks):  # Hackers come strongest first.
        family = found.setdefault(FAMILIES.get(hacker.family, hacker.family), {})
        family.setdefault(hacker.scheme, []).append(hacker)
    return found


def text_table(summary: Summary, most: int = 5) -> str:
    """The results as plain text for a terminal, without colours, in less than 30 lines: the one number first.

    Args:
        summary: What the audit found.
        most: How many of the strongest hackers are listed.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for name in ("who", "network", "how"):
        table.add_column(name, no_wrap=True)
    for name in ("last %", "best %", "clean %", "Δ clean", "seeds"):
        table.add_column(name, justify="right", no_wrap=True)
    found = rows(summary)
    authorized = [row for row in found if row.role == "authorized"][:3]
    hackers = [row for row in found if row.role == "hacker"]
    for row in [*authorized, *hackers[:most]]:
        cells = ["authorised" if row.role == "authorized" else "hacker", row.network]
        cells += [row.how + (" *" if row.strongest else ""), spread(row.last, row.std), number(row.best)]
        cells += [number(row.clean), number(row.delta, signed=True), str(row.seeds)]
        # Text keeps square brackets in names from being read as markup.
        table.add_row(*map(Text, cells))
    buffer = io.StringIO()
    Console(file=buffer, width=200, color_system=None, force_terminal=False).print(table)
    lines = [summary.headline, f"verdict: {summary.label}", ""] if summary.headline else []
    lines += [line.rstrip() for line in buffer.getvalue().splitlines()]
    rest = len(hackers) - most
    lines += ["", "* strongest hacker" + (f"; {rest} weaker ones are in the report" if rest > 0 else "")]
    lines.append(_counts(summary))
    lines += [f"doubt: {warning}" for warning in summary.warnings[: MOST_LINES - len(lines) - 1]]
    hidden = len(summary.warnings) - sum(line.startswith("doubt: ") for line in lines)
    return "\n".join([*lines, f"{hidden} more reasons for doubt are in the report"] if hidden else lines)


def _counts(summary: Summary) -> str:
    networks = len({hacker.network for hacker in summary.hackers})
    parts = [
        counted(summary.ran, "case"),
        extent(summary),
        counted(networks, "network"),
        counted(summary.seeds, "seed"),
    ]
    parts += [f"{len(summary.left_out)} left out"] if summary.left_out else []
    parts += [f"{len(summary.failed)} failed"] if summary.failed else []
    parts += [f"chance {number(summary.chance)} %"] if summary.chance is not None else []
    return ", ".join(parts)
