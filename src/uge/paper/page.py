"""An experiment as one self-contained HTML page: ours beside the paper's. Needs no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from uge.files import JSON
from uge.paper.cells import Section
from uge.paper.ledger import PaperLedger
from uge.paper.render import as_json, notes, row_name, state_text
from uge.paper.results import Entry, Shown
from uge.paper.scale import Scale, label
from uge.paper.specs import Copy
from uge.report.line_plot import Line, plot, swatch
from uge.report.page import page_environment
from uge.report.pictures import Pictures, load_pictures

TEMPLATES = Path(__file__).parent / "templates"
_STYLES = (("authorized", ""), ("hacker", ""), ("hacker", "5 3"), ("clean", ""))


def page(shown: Shown, scale: Scale, kept: PaperLedger) -> str:
    """The page as text; equal results give equal text.

    Args:
        shown: An experiment with its results.
        scale: At which scale.
        kept: Where its pictures lie.
    """
    environment = page_environment(TEMPLATES)
    environment.globals |= {"state_text": state_text, "row_name": row_name, "minutes": minutes, "label": label}
    environment.globals |= {"at": shown.at}
    found = as_json(shown, scale)
    return environment.get_template("page.html.j2").render(
        own_css=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        shown=shown,
        states=shown.counts,
        notes=notes(shown, scale),
        hardware=list(dict.fromkeys(text for entry in shown.entries for text in entry.measured.hardware)),
        seconds=sum(shared(shown.entries).values()),
        drawings={id(section): _drawing(shown, section) for section in shown.experiment.sections},
        pictures=[(one.copy, _pictures(kept, one.copy, one.result), one.reason) for one in shown.pictures],
        recipes=[json.dumps(one, ensure_ascii=False) for one in found["recipes"]],
        protections=[json.dumps(one, ensure_ascii=False) for one in found["protections"]],
        id=id,
    )


def minutes(seconds: float) -> str:
    """A duration for people: ``42 s``, ``3.5 min``, ``1.2 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def shared(entries: Sequence[Entry]) -> dict[str, float]:
    """Seconds by result; cells that share a result share its time."""
    return {name: seconds for entry in entries for name, seconds in entry.measured.costs.items()}


def _pictures(kept: PaperLedger, copy: Copy, record: JSON | None) -> Pictures | None:
    return load_pictures(kept.picture(copy)) if record else None


@dataclass(frozen=True)
class Drawing:
    """Columns over rows, and what the lines mean."""

    svg: Markup
    legend: list[tuple[Markup, str]]


def _drawing(shown: Shown, section: Section) -> Drawing | None:
    """The drawing of a section; None where nothing was measured, or nothing is to be drawn."""
    if not shown.experiment.drawn:
        return None
    lines, legend = [], []
    for (kind, dash), column in zip(_STYLES, section.columns, strict=False):
        entries = [shown.at(section, row, column) for row in section.rows]
        found = [(_place(one.cell.row), one.measured.last, one.measured.std or 0.0) for one in entries if one]
        points = [(x, y, std) for x, y, std in found if y is not None]
        if points:
            band = [(y - std, y + std) for _, y, std in points] if any(std for *_, std in points) else []
            lines.append(Line([(x, y) for x, y, _ in points], kind, dash, band, dots=True))
            legend.append((swatch(kind, dash), column))
    if not lines:
        return None
    about = f"{section.title}: test accuracy in percent of {', '.join(section.columns)} over {', '.join(section.rows)}"
    label = "ρ" if section.rows[0].startswith("ρ") else "authorised networks"
    return Drawing(plot(lines, low=0, high=100, x_label=label, description=about), legend)


def _place(row: str) -> float:
    """The number in a row's name: its budget, or how many networks."""
    found = re.search(r"[0-9.]+", row)
    return float(found[0]) if found else 0.0
