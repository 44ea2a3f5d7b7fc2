"""Experiments as Markdown, CSV, LaTeX and JSON: ours beside the paper's. Needs no torch."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from uge.files import JSON, canonical_json, write_atomic, write_json
from uge.paper.cells import Section
from uge.paper.ledger import PaperLedger
from uge.paper.results import Entry, Shown
from uge.paper.scale import Scale, label
from uge.report.tables import number, spread

NOT_RUN = "not run"
LEGEND = (
    "Clean test accuracy in percent: ours after the last epoch (best epoch) / the paper's, then the difference in "
    "points. Rows marked † are not in the paper's table."
)


def state_text(entry: Entry) -> str:
    """What stands in a cell without a number."""
    if entry.measured.state == "failed":
        return "failed"
    return "no data" if entry.measured.reason else NOT_RUN


def ours(entry: Entry) -> str:
    """``74.0 ± 0.5 (74.2)``, or why there is no number."""
    found = entry.measured
    if found.last is None:
        return state_text(entry)
    best = "" if found.best is None else f" ({number(found.best)})"
    part = "" if found.seeds == found.wanted else f" [{found.seeds} of {found.wanted} seeds]"
    return f"{spread(found.last, found.std)}{best}{part}"


def beside(entry: Entry) -> str:
    """Ours, the paper's, and the difference."""
    if entry.cell.paper is None:
        return ours(entry)
    difference = "" if entry.difference is None else f", {number(entry.difference, signed=True)}"
    return f"{ours(entry)} / {number(entry.cell.paper)}{difference}"


def row_name(section: Section, row: str) -> str:
    """A row's name; those that the paper does not have are marked."""
    return f"{row} †" if row in section.added else row


def notes(shown: Shown, scale: Scale) -> list[str]:
    """What must be read with the numbers: scale, stand-ins, why cells are empty."""
    found = [f"Scale {scale.name}. {scale.about}".strip()]
    if scale.networks:
        found.append(
            "Networks: " + ", ".join(f"{new} stands in for {old}" for old, new in scale.networks.items()) + "."
        )
    for section in shown.experiment.sections:
        if section.stand_in:
            found.append(
                f"{section.title}: measured on {label(section.stand_in)}, not on the paper's images, so no difference "
                "is given."
            )
    if any(unit.of.method == "uge" and unit.recipe.epochs < 100 for c in shown.entries for unit in c.cell.all_units):
        found.append("Networks train for fewer epochs here than in the paper; see the recipes in the JSON file.")
    reasons = dict.fromkeys(entry.measured.reason for entry in shown.entries if entry.measured.reason)
    return found + [f"Not measured: {reason}." for reason in reasons]


def markdown(shown: Shown, scale: Scale) -> str:
    """The experiment as a Markdown page."""
    lines = [f"# {shown.experiment.title}", ""]
    lines += [line for note in notes(shown, scale) for line in (note, "")]
    if shown.entries:
        lines += [LEGEND, ""]
    for section in shown.experiment.sections:
        lines += [f"## {section.title}", "", "| | " + " | ".join(section.columns) + " |"]
        lines.append("|---" * (len(section.columns) + 1) + "|")
        for row in section.rows:
            entries = [shown.at(section, row, column) for column in section.columns]
            cells = [beside(entry) if entry else "" for entry in entries]
            lines.append(f"| {row_name(section, row)} | " + " | ".join(cells) + " |")
        lines.append("")
    for one in shown.pictures:
        text = "done" if one.state == "done" else one.reason or NOT_RUN
        lines.append(f"- {label(one.copy.images.name)}, {one.copy.method}: {text}")
    return "\n".join(lines).rstrip() + "\n"


FIELDS = (
    *("experiment", "section", "row", "column", "added", "state", "ours", "std", "best", "std_best", "clean_control"),
    *("seeds", "wanted", "paper", "difference", "seconds", "hardware", "reason", "images"),
)


def record(shown: Shown, entry: Entry) -> JSON:
    """One cell as plain values, by the names in :data:`FIELDS`; accuracies in percent."""
    found = entry.measured
    values = (
        *(shown.experiment.name, entry.section.title, entry.cell.row, entry.cell.column, entry.added, found.state),
        *(_rounded(one) for one in (found.last, found.std, found.best, found.std_best, found.clean)),
        *(found.seeds, found.wanted, entry.cell.paper, _rounded(entry.difference), round(found.seconds, 1)),
        *("; ".join(found.hardware), found.reason, entry.section.stand_in or entry.section.title),
    )
    return dict(zip(FIELDS, values, strict=True))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def as_csv(shown: Shown) -> str:
    """One line a cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(record(shown, entry) for entry in shown.entries)
    return text.getvalue()


def as_json(shown: Shown, scale: Scale) -> JSON:
    """Everything that is known of an experiment; recipes and protections once, by number."""
    recipes: list[JSON] = []
    protections: list[JSON] = []

    def numbers(table: list[JSON], values: Sequence[JSON]) -> list[int]:
        table.extend(value for value in values if canonical_json(value) not in map(canonical_json, table))
        places = [canonical_json(value) for value in table]
        return [places.index(canonical_json(value)) for value in values]

    cells = [
        record(shown, entry)
        | {
            "recipes": numbers(recipes, entry.measured.recipes),
            "protections": numbers(protections, entry.measured.protections),
            "cases": list(entry.measured.cases),
        }
        for entry in shown.entries
    ]
    pictures = [
        {"images": one.copy.images.name, "method": one.copy.method, "state": one.state} for one in shown.pictures
    ]
    return {
        "schema": 1,
        "experiment": shown.experiment.name,
        "title": shown.experiment.title,
        "scale": scale.model_dump(mode="json"),
        "states": shown.counts,
        "cells": cells,
        "recipes": recipes,
        "protections": protections,
        "pictures": pictures,
    }


_TEX = {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "±": r"$\pm$", "−": "$-$", "†": r"$\dagger$", "ρ": r"$\rho$"}


def tex(text: str) -> str:
    """Text for LaTeX."""
    return re.sub("[" + "".join(_TEX) + "]", lambda match: _TEX[match[0]], text)


def latex(shown: Shown, scale: Scale) -> str:
    """The experiment as LaTeX tables; needs the package ``booktabs``."""
    parts = [f"% {shown.experiment.title}, scale {scale.name}. {LEGEND}"]
    for section in shown.experiment.sections:
        parts += [rf"\begin{{tabular}}{{l{'r' * len(section.columns)}}}", r"\toprule"]
        parts += [" & ".join([tex(section.title), *map(tex, section.columns)]) + r" \\", r"\midrule"]
        for row in section.rows:
            entries = [shown.at(section, row, column) for column in section.columns]
            cells = [tex(beside(entry)) if entry else "--" for entry in entries]
            parts.append(" & ".join([tex(row_name(section, row)), *cells]) + r" \\")
        parts += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(parts).rstrip() + "\n"


def write_all(shown: Shown, scale: Scale, kept: PaperLedger) -> list[Path]:
    """Write ``NAME.md``, ``.csv``, ``.tex``, ``.json`` and ``.html`` into the folder of results.

    Raises:
        StorageError: They cannot be written.
    """
    from uge.paper.page import page

    base = kept.folder / shown.experiment.name
    texts = {"md": markdown(shown, scale), "html": page(shown, scale, kept)}
    if shown.entries:
        texts |= {"csv": as_csv(shown), "tex": latex(shown, scale)}
    for ending, text in texts.items():
        write_atomic(base.with_suffix(f".{ending}"), text)
    write_json(base.with_suffix(".json"), as_json(shown, scale))
    return [base.with_suffix(f".{ending}") for ending in (*texts, "json")]


def summary_line(shown: Shown) -> str:
    """``table1: 54 done, 84 missing, 0 failed``."""
    return f"{shown.experiment.name}: " + ", ".join(f"{count} {state}" for state, count in shown.counts.items())
