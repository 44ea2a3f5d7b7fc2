"""Experiments as Markdown, CSV, JSON and one self-contained HTML page: ours beside the paper's. Needs no torch."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from markupsafe import Markup

from uge.auditing.summary import number
from uge.files import JSON, write_atomic, write_json
from uge.paper.ledger import PaperLedger
from uge.paper.plan import Section
from uge.paper.results import Entry, ExperimentResults, distinct
from uge.paper.scale import Scale, label
from uge.progress import duration
from uge.report.line_plot import Line, plot, swatch
from uge.report.page import page_environment
from uge.report.pictures import load_pictures
from uge.report.tables import csv_text, markdown_table, spread

TEMPLATES = Path(__file__).parent / "templates"
# Kind and dashes of the lines of a drawing, by column.
STYLES = (("authorized", ""), ("hacker", ""), ("hacker", "5 3"), ("clean", ""))
NOT_RUN = "not run"
LEGEND = (
    "Clean test accuracy in percent: ours after the last epoch (best epoch) / the paper's, then the difference in "
    "points. Rows marked † are not in the paper's table."
)


def write_pages(results: ExperimentResults, scale: Scale, ledger: PaperLedger) -> list[Path]:
    """Write ``NAME.md``, ``.csv``, ``.json`` and ``.html`` into the folder of results.

    Raises:
        StorageError: They cannot be written.
    """
    base = ledger.folder / results.experiment.name
    texts = {".md": markdown(results, scale), ".html": page(results, scale, ledger)}
    if results.entries:
        records = [record(results, entry) for entry in results.entries]
        texts[".csv"] = csv_text(list(records[0]), records)
    for ending, text in texts.items():
        write_atomic(base.with_suffix(ending), text)
    write_json(base.with_suffix(".json"), as_json(results, scale))
    return [base.with_suffix(ending) for ending in (*texts, ".json")]


def beside(entry: Entry) -> str:
    """Text of a cell: ours, the paper's number and the difference, as in ``74.0 ± 0.5 (74.2) / 75.0, −1.0``."""
    measured = entry.measured
    ours = state_text(entry)
    if measured.last is not None:
        best = "" if measured.best is None else f" ({number(measured.best)})"
        part = "" if measured.seeds == measured.wanted else f" [{measured.seeds} of {measured.wanted} seeds]"
        ours = f"{spread(measured.last, measured.std)}{best}{part}"
    if entry.cell.paper is None:
        return ours
    difference = "" if entry.difference is None else f", {number(entry.difference, signed=True)}"
    return f"{ours} / {number(entry.cell.paper)}{difference}"


def state_text(entry: Entry) -> str:
    """Text of a cell without a number."""
    if entry.measured.state == "failed":
        return "failed"
    return "no data" if entry.measured.reason else NOT_RUN


def row_name(section: Section, row: str) -> str:
    """Name of a row; rows that the paper does not have are marked."""
    return f"{row} †" if row in section.added else row


def notes(results: ExperimentResults, scale: Scale) -> list[str]:
    """Sentences to read with the numbers: scale, stand-ins, reasons of empty cells."""
    sentences = [f"Scale {scale.name}. {scale.about}".strip()]
    if scale.networks:
        stand_ins = ", ".join(f"{new} stands in for {old}" for old, new in scale.networks.items())
        sentences.append(f"Networks: {stand_ins}.")
    for section in results.experiment.sections:
        if section.stand_in:
            sentences.append(
                f"{section.title}: measured on {label(section.stand_in)}, not on the paper's images, so no difference "
                "is given."
            )
    units = [unit for entry in results.entries for unit in entry.cell.all_units]
    if any(unit.of.method == "uge" and unit.recipe.epochs < 100 for unit in units):
        sentences.append("Networks train for fewer epochs here than in the paper; see the recipes in the JSON file.")
    reasons = distinct(entry.measured.reason for entry in results.entries)
    return sentences + [f"Not measured: {reason}." for reason in reasons if reason]


def markdown(results: ExperimentResults, scale: Scale) -> str:
    """Markdown page of an experiment."""
    paragraphs = [f"# {results.experiment.title}", *notes(results, scale), *([LEGEND] if results.entries else [])]
    lines = [line for paragraph in paragraphs for line in (paragraph, "")]
    for section in results.experiment.sections:
        rows = (
            [row_name(section, row), *(beside(entry) if entry else "" for entry in entries)]
            for row in section.rows
            for entries in [[results.at(section, row, column) for column in section.columns]]
        )
        lines += [f"## {section.title}", "", *markdown_table(["", *section.columns], rows), ""]
    for copy, drawn in results.pictures.items():
        text = "done" if drawn.state == "done" else drawn.reason or NOT_RUN
        lines.append(f"- {label(copy.images.name)}, {copy.method}: {text}")
    return "\n".join(lines).rstrip() + "\n"


def record(results: ExperimentResults, entry: Entry) -> JSON:
    """Plain values of a cell; accuracies in percent."""
    measured = entry.measured
    values = {
        "experiment": results.experiment.name,
        "section": entry.section.title,
        "row": entry.cell.row,
        "column": entry.cell.column,
        "added": entry.cell.row in entry.section.added,
        "state": measured.state,
        "ours": measured.last,
        "std": measured.std,
        "best": measured.best,
        "std_best": measured.std_best,
        "clean_control": measured.clean,
        "seeds": measured.seeds,
        "wanted": measured.wanted,
        "paper": entry.cell.paper,
        "difference": entry.difference,
        "seconds": round(sum(measured.costs.values()), 1),
        "hardware": "; ".join(measured.hardware),
        "reason": measured.reason,
        "images": entry.section.stand_in or entry.section.title,
    }
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}


def as_json(results: ExperimentResults, scale: Scale) -> JSON:
    """JSON of an experiment; cells name recipes and protections by number."""
    recipes = distinct(recipe for entry in results.entries for recipe in entry.measured.recipes)
    protections = distinct(copy for entry in results.entries for copy in entry.measured.protections)
    cells = [
        {
            **record(results, entry),
            "recipes": [recipes.index(recipe) for recipe in entry.measured.recipes],
            "protections": [protections.index(copy) for copy in entry.measured.protections],
            "cases": list(entry.measured.cases),
        }
        for entry in results.entries
    ]
    return {
        "schema": 1,
        "experiment": results.experiment.name,
        "title": results.experiment.title,
        "scale": scale.model_dump(mode="json"),
        "states": results.counts,
        "cells": cells,
        "recipes": list(recipes),
        "protections": list(protections),
        "pictures": [
            {"images": copy.images.name, "method": copy.method, "state": drawn.state}
            for copy, drawn in results.pictures.items()
        ],
    }


def page(results: ExperimentResults, scale: Scale, ledger: PaperLedger) -> str:
    """HTML page of an experiment; equal results give equal text.

    Args:
        results: An experiment with its results.
        scale: Scale of the results.
        ledger: Folder of results, with the pictures.
    """
    environment = page_environment(TEMPLATES)
    environment.globals |= {"state_text": state_text, "row_name": row_name, "duration": duration, "label": label}
    listed = as_json(results, scale)
    return environment.get_template("page.html.j2").render(
        own_css=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        results=results,
        states=results.counts,
        notes=notes(results, scale),
        hardware=distinct(text for entry in results.entries for text in entry.measured.hardware),
        seconds=shared_seconds(results.entries),
        drawings={id(section): _drawing(results, section) for section in results.experiment.sections},
        pictures=[
            (copy, drawn, load_pictures(ledger.place("pictures", copy)) if drawn.state == "done" else None)
            for copy, drawn in results.pictures.items()
        ],
        recipes=[json.dumps(recipe, ensure_ascii=False) for recipe in listed["recipes"]],
        protections=[json.dumps(copy, ensure_ascii=False) for copy in listed["protections"]],
        id=id,
    )


def shared_seconds(entries: Iterable[Entry]) -> float:
    """Computing time behind cells; cells that share a result share its time."""
    return sum({name: seconds for entry in entries for name, seconds in entry.measured.costs.items()}.values())


def _drawing(results: ExperimentResults, section: Section) -> tuple[Markup, list[tuple[Markup, str]]] | None:
    """Columns over rows as lines, and their legend; None where nothing was measured or is to be drawn."""
    if not results.experiment.drawn:
        return None
    lines = []
    legend = []
    for (kind, dash), column in zip(STYLES, section.columns, strict=False):
        entries = [entry for row in section.rows if (entry := results.at(section, row, column))]
        measured = [(re.sub("[^0-9.]", "", entry.cell.row), entry.measured) for entry in entries]
        points = [(float(x or 0), y.last, y.std or 0.0) for x, y in measured if y.last is not None]
        if points:
            band = [(y - std, y + std) for _, y, std in points] if any(std for *_, std in points) else []
            lines.append(Line([(x, y) for x, y, _ in points], kind, dash, band, dots=True))
            legend.append((swatch(kind, dash), column))
    if not lines:
        return None
    about = f"{section.title}: test accuracy in percent of {', '.join(section.columns)} over {', '.join(section.rows)}"
    x_label = "ρ" if section.rows[0].startswith("ρ") else "authorised networks"
    return plot(lines, low=0, high=100, x_label=x_label, description=about), legend
