"""A summary as rows: the same ones for the HTML page and for the terminal."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from uge.auditing.summary import HackerResult, Result, Summary, counted, extent, number, with_key
from uge.auditing.worst_case import Form

ASSETS = {"nothing": "", "public": "public images", "few": "labelled images", "clean": "originals", "key": "key"}
FAMILY_TITLES = {
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
MOST_LINES = 29


@dataclass(frozen=True)
class Row:
    """One line of the results table.

    Attributes:
        role: ``authorised`` or ``hacker``.
        result: Accuracies in percent on the clean test set.
        how: The attack, with the number of the key where it is not the first.
        remarks: Remarks on the row; may be empty.
    """

    role: Literal["authorised", "hacker"]
    result: Result
    how: str
    remarks: str = ""


def rows(summary: Summary) -> list[Row]:
    """Authorised networks in their order, then hackers, strongest first."""
    table = [Row("authorised", result, with_key("from its key", result.key)) for result in summary.authorized_all]
    for hacker in summary.hackers:
        remarks = {
            "strongest": hacker is summary.hackers[0],
            "same architecture": hacker.same_architecture,
            "no more than from the originals alone": hacker.owes_nothing,
        }
        shown = ", ".join(remark for remark, holds in remarks.items() if holds)
        table.append(Row("hacker", hacker, with_key(hacker.scheme, hacker.key), shown))
    return table


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


def by_family(results: Iterable[HackerResult]) -> dict[str, dict[str, list[HackerResult]]]:
    """Title of the family → attack → results, each in the order of ``results``."""
    families: dict[str, dict[str, list[HackerResult]]] = {}
    for hacker in results:
        family = families.setdefault(FAMILY_TITLES.get(hacker.family, hacker.family), {})
        family.setdefault(hacker.scheme, []).append(hacker)
    return families


def text_table(summary: Summary, most: int = 5) -> str:
    """The results as plain text for a terminal, without colours, in less than 30 lines: the one number first.

    Args:
        summary: Summary of the audit.
        most: How many of the strongest hackers are listed.
    """
    lines = [summary.headline, f"verdict: {summary.label}", ""] if summary.headline else []
    results = rows(summary)
    authorized = [row for row in results if row.role == "authorised"][:3]
    hackers = [row for row in results if row.role == "hacker"]
    if summary.worst_case is None:
        lines += _columns([*authorized, *hackers[:most]])
        rest = len(hackers) - most
        lines += ["", "* strongest hacker" + (f"; {rest} weaker ones are in the report" if rest > 0 else "")]
    else:
        lines += [*_worst_columns(summary.worst_case.short, most), ""]
        lines += [*_columns(authorized), ""] if authorized else []
    counts = [
        counted(summary.ran, "case"),
        extent(summary),
        counted(len({hacker.network for hacker in summary.hackers}), "network"),
        counted(summary.seeds, "seed"),
        f"{len(summary.left_out)} left out" if summary.left_out else "",
        f"{len(summary.failed)} failed" if summary.failed else "",
        "" if summary.chance is None else f"chance {number(summary.chance)} %",
    ]
    lines.append(", ".join(filter(None, counts)))
    shown = summary.warnings[: MOST_LINES - len(lines) - 1]
    lines += [f"doubt: {warning}" for warning in shown]
    hidden = len(summary.warnings) - len(shown)
    return "\n".join([*lines, f"{hidden} more reasons for doubt are in the report"] if hidden else lines)


def _worst_columns(form: Form, most: int) -> list[str]:
    lines = [["attack", "network", "names", "reached %", "last %", "best %", "chosen %", "bound %", "clean %", "seeds"]]
    for row in [*([form.no_copy] if form.no_copy else []), *form.attacks[:most]]:
        reached = spread(row.reached.value, row.reached.std)
        numbers = [row.last, row.best, row.chosen.value, row.oracle, None if row.clean is None else row.clean.value]
        lines.append([row.scheme, row.network, row.naming, reached, *map(number, numbers), f"{row.seeds}"])
    return _aligned(lines)


def _columns(results: Sequence[Row]) -> list[str]:
    lines = [["who", "network", "how", "last %", "best %", "clean %", "Δ clean", "seeds"]]
    for row in results:
        result = row.result
        how = row.how + (" *" if row.remarks.startswith("strongest") else "")
        texts = [row.role, result.network, how, spread(result.last, result.std)]
        numbers = [number(result.best), number(result.clean), number(result.delta, signed=True), f"{result.seeds}"]
        lines.append(texts + numbers)
    return _aligned(lines)


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    # Text to the left, numbers to the right.
    padded = [
        [cell.ljust(width) for cell, width in zip(line[:3], widths[:3], strict=True)]
        + [cell.rjust(width) for cell, width in zip(line[3:], widths[3:], strict=True)]
        for line in lines
    ]
    return ["  ".join(line).rstrip() for line in padded]
