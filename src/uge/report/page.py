"""An audit folder as one self-contained HTML page: no script, nothing fetched, equal input gives equal bytes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from pydantic import ValidationError

from uge.auditing.checks import RETENTION
from uge.auditing.summarize import summarize, verdict
from uge.auditing.summary import HOLDS, NOISE, Summary
from uge.auditing.verdict import certainty, partial
from uge.cases.case import Case, read_cases
from uge.errors import DataError, OutputExistsError, UsageError
from uge.files import JSON, check_output, read_events, read_json, write_atomic
from uge.report import curves, story
from uge.report.heat import heat_map
from uge.report.pictures import load_attacked, load_pictures
from uge.report.quality import QualityView, load_quality
from uge.report.tables import number, rows, spread, words

log = logging.getLogger(__name__)
TEMPLATES = Path(__file__).parent / "templates"
_CHANGED = "The stored summary does not match the cases; this page shows what the cases say."


def write_report(run: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Write the report of an audit.

    Args:
        run: Audit folder (docs/formats.md, "Audit folder"). Only ``cases/`` is needed. What was left out and what
            is known of the data comes from ``summary.json``, whose numbers are compared with the cases;
            ``manifest.json``, ``pictures/``, ``attacked/``, ``quality/`` and ``protect.jsonl`` are shown if there.
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
    write_atomic(out, render(load_run(run)))
    log.info("wrote the report %s", out)
    return out


@dataclass(frozen=True)
class Run:
    """An audit folder, read.

    Attributes:
        folder: Where it is.
        cases: Those that the audit's last run counted, at least one; what is left of earlier runs is not among them.
        manifest: Of the published folder; empty where that had none.
        quality: How the published images differ from the originals, if that was measured.
        summary: What the cases say, with what the stored summary alone knows.
    """

    folder: Path
    cases: list[Case]
    manifest: JSON
    quality: QualityView | None
    summary: Summary


def load_run(folder: Path) -> Run:
    """Read an audit folder.

    Raises:
        UsageError: It has no cases.
        DataError: A file in it is damaged.
    """
    cases = read_cases(folder)
    if not cases:
        raise UsageError(
            f"expected audit cases in {folder / 'cases'}, found none; run the audit first or check the path"
        )
    manifest = read_json(folder / "manifest.json") if (folder / "manifest.json").is_file() else {}
    stored, quality = _stored(folder / "summary.json"), load_quality(folder / "quality")
    if stored.cases:
        cases = [case for case in cases if case.id in stored.cases]
    return Run(folder, cases, manifest, quality, _summary(stored, cases, manifest, quality))


def page_environment(*folders: Path) -> jinja2.Environment:
    """Templates of these folders, then those of the report, with how numbers are written.

    A page takes the style sheet as ``css``.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    environment.globals |= {"css": css, "number": number, "spread": spread, "words": words, "certainty": certainty}
    return environment


def render(run: Run) -> str:
    """The page as text; see :func:`write_report`."""
    cases, manifest, quality, summary = run.cases, run.manifest, run.quality, run.summary
    events = read_events(run.folder / "protect.jsonl")
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            name=story.look(manifest, "name") or "",
            headline=story.headline(manifest, cases, summary),
            label=capital(summary.label),
            verdict=verdict(summary),
            partial=partial(summary),
            summary=summary,
            margin=summary.margin,
            holds=HOLDS,
            noise_points=NOISE,
            retention=RETENTION,
            heat=heat_map(summary),
            rows=rows(summary),
            groups=curves.by_attack(cases, summary),
            legend=curves.legend(cases),
            losses=[*curves.losses(events, "step", "step"), *curves.losses(events, "refine", "pass")],
            attacked=load_attacked(run.folder / "attacked"),
            pictures=load_pictures(run.folder / "pictures", story.look(manifest, "budget", "levels")),
            quality=quality,
            protection=story.protection(manifest),
            audit=story.audit(summary, cases),
            settings=story.settings(manifest, cases),
            limits=story.limits(summary, cases),
        )
    )


def capital(text: str) -> str:
    """The text with a capital first letter; the others stay."""
    return text[:1].upper() + text[1:]


def _stored(path: Path) -> Summary:
    """What the audit wrote; empty where it wrote nothing.

    Raises:
        DataError: The file is no summary.
    """
    try:
        return Summary.model_validate(read_json(path)) if path.is_file() else Summary()
    except ValidationError as error:
        raise DataError(f"expected a summary in {path}, got {error.errors()[0]['msg']}; run the audit again") from error


def _summary(
    stored: Summary, cases: Sequence[Case], manifest: Mapping[str, Any], quality: QualityView | None
) -> Summary:
    """What the cases say, with what the stored summary alone knows."""
    names = story.look(manifest, "classes")
    count = len(names) if isinstance(names, list) and names else round(100 / stored.chance) if stored.chance else None
    levels = [story.look(manifest, "measured", "linf_levels"), quality and quality.found.get("linf_levels")]
    facts: dict[str, Any] = {
        "budget_levels": story.look(manifest, "budget", "levels"),
        "linf_levels": max((level for level in levels if isinstance(level, int)), default=None),
    }

    def again(given: Sequence[str]) -> Summary:
        return summarize(
            cases,
            classes=count,
            left_out=stored.left_out,
            planned=stored.planned,
            failed=stored.failed,
            warnings=given,
            facts={**facts, **stored.facts},
        )

    summary = again(stored.given)
    here, there = _numbers(summary), _numbers(stored)
    if stored != Summary() and not all(_close(here.get(key), there.get(key)) for key in here.keys() | there.keys()):
        return again([*stored.given, _CHANGED])
    return summary


def _numbers(summary: Summary) -> Mapping[str, Any]:
    found = {f"{hacker.name} {hacker.key}": hacker.last for hacker in summary.hackers}
    return {**found, "authorised": summary.authorized.last if summary.authorized else None}


def _close(a: float | None, b: float | None) -> bool:
    # Stored numbers may have been rounded to one decimal.
    return a is b if a is None or b is None else abs(a - b) < 0.1
