"""An audit folder as one self-contained HTML page: no script, nothing fetched, equal input gives equal bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from pydantic import ValidationError

from uge.audit.cases import Case, read_cases
from uge.audit.metrics import NOISE, Summary, summarize, verdict
from uge.errors import DataError, OutputExistsError, UsageError
from uge.report import figures, story
from uge.report.pictures import load_pictures
from uge.report.tables import SCHEMES, Row, number, rows, spread
from uge.runs import check_output, read_events, read_json, write_atomic

log = logging.getLogger(__name__)
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Figure:
    """One drawing in the widths of a desktop and of a phone."""

    wide: Markup
    narrow: Markup


def write_report(run: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Write the report of an audit.

    Args:
        run: Audit folder (docs/design.md, "Audit folder"). Only ``cases/`` is needed; ``summary.json`` is
            compared with the cases, and ``manifest.json``, ``pictures/`` and ``protect.jsonl`` are shown if there.
        out: The HTML file to write.
        overwrite: Replace an existing file.

    Returns:
        ``out``.

    Raises:
        UsageError: ``run`` has no cases, or ``out`` is a folder.
        OutputExistsError: ``out`` exists and ``overwrite`` is false.
        DataError: A file in ``run`` is damaged.
        StorageError: The page cannot be written.
    """
    if out.is_dir():
        raise OutputExistsError(
            f"expected a file name for the report, got the folder {out}; give {out / 'report.html'}"
        )
    check_output(out, overwrite=overwrite)
    cases = read_cases(run)
    if not cases:
        raise UsageError(f"expected audit cases in {run / 'cases'}, found none; run the audit first or check the path")
    write_atomic(out, render(run, cases))
    log.info("wrote the report %s", out)
    return out


def render(run: Path, cases: Sequence[Case]) -> str:
    """The page as text; see :func:`write_report`."""
    manifest = read_json(run / "manifest.json") if (run / "manifest.json").is_file() else {}
    classes = story.look(manifest, "classes")
    summary = summarize(cases, classes=len(classes) if isinstance(classes, list) and classes else None)
    warnings = summary.warnings + _deviations(run / "summary.json", summary)
    table, events = rows(summary), read_events(run / "protect.jsonl")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"number": number, "spread": spread, "noise_points": NOISE}
    return environment.get_template("report.html.j2").render(
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        name=story.look(manifest, "name") or "",
        headline=story.headline(manifest, cases, summary),
        verdict=verdict(summary),
        summary=summary,
        gaps=_gaps(summary),
        authorized=next((row for row in table if row.role == "authorized"), None),
        strongest=next((row for row in table if row.strongest), None),
        warnings=warnings,
        rows=table,
        bars=_figure(lambda narrow: figures.bars(table, summary.chance, narrow=narrow)) if table else None,
        curves=_figure(lambda narrow: figures.curves(cases, narrow=narrow)),
        legend=_legend(cases, table),
        step_losses=_figure(lambda narrow: figures.losses(events, "step", "step", narrow=narrow)),
        pass_losses=_figure(lambda narrow: figures.losses(events, "refine", "pass", narrow=narrow)),
        pictures=load_pictures(run / "pictures", story.look(manifest, "budget", "levels")),
        protection=story.protection(manifest),
        audit=story.audit(cases),
        settings=story.settings(manifest, cases),
        limits=story.limits(summary, cases),
    )


def _figure(draw: Callable[[bool], str]) -> Figure | None:
    wide = draw(False)
    # The drawings escape every name themselves; see uge.report.svg.
    return Figure(Markup(wide), Markup(draw(True))) if wide else None


def _gaps(summary: Summary) -> list[tuple[str, float]]:
    """Both gaps with their names, the smaller (which counts) first."""
    found = [("last epochs", summary.gap), ("best epochs", summary.gap_best)]
    return sorted(((name, gap) for name, gap in found if gap is not None), key=lambda pair: pair[1])


def _legend(cases: Sequence[Case], table: Sequence[Row]) -> list[tuple[str, str, str]]:
    """(CSS class of the colour, dash pattern, words) for the training curves."""
    roles = {case.role for case in cases if len(case.history) > 1}
    items = [("clean", "", "clean control")] if "clean" in roles else []
    items += [("authorized", "", "authorised")] if "authorized" in roles else []
    dashes = figures.scheme_dashes(cases)
    for scheme in dict.fromkeys(case.scheme for case in cases if case.role == "hacker" and len(case.history) > 1):
        style = dashes[scheme]
        pattern = "" if style == "-" else " ".join(f"{2 * length:g}" for length in style[1])
        items.append(("hacker", pattern, f"hacker, {SCHEMES.get(scheme, scheme)}"))
    return items


def _deviations(path: Path, summary: Summary) -> list[str]:
    """A warning if a stored summary says something else than the cases do.

    Raises:
        DataError: The file is no summary.
    """
    if not path.is_file():
        return []
    try:
        stored = Summary.model_validate(read_json(path))
    except ValidationError as error:
        raise DataError(f"expected a summary in {path}, got {error.errors()[0]['msg']}; run the audit again") from error
    here, there = _numbers(summary), _numbers(stored)
    if all(_close(here.get(key), there.get(key)) for key in here.keys() | there.keys()):
        return [warning for warning in stored.warnings if warning not in summary.warnings]
    return ["The stored summary does not match the cases; this page shows what the cases say."]


def _numbers(summary: Summary) -> Mapping[str, Any]:
    found = {f"{hacker.name} {hacker.key}": hacker.last for hacker in summary.hackers}
    return {**found, "authorised": summary.authorized.last if summary.authorized else None}


def _close(a: float | None, b: float | None) -> bool:
    # Stored numbers may have been rounded to one decimal.
    return a is b if a is None or b is None else abs(a - b) < 0.1
