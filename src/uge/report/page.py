"""An audit folder as one self-contained HTML page: no script, nothing fetched, equal input gives equal bytes."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2
from markupsafe import Markup
from pydantic import ValidationError

from uge.auditing import worst_results
from uge.auditing.checks import RETENTION
from uge.auditing.summarize import summarize
from uge.auditing.summary import HOLDS, NOISE, Summary, capital, certainty, number, partial
from uge.cases.case import Case, read_cases
from uge.errors import DataError, OutputExistsError, UsageError, printable
from uge.files import JSON, check_output, read_events, read_json, write_atomic, writes
from uge.report import curves, description
from uge.report.heat_map import heat_map
from uge.report.pictures import QualityView, load_attacked, load_pictures, load_quality
from uge.report.tables import rows, spread

log = logging.getLogger(__name__)
TEMPLATES = Path(__file__).parent / "templates"
_CHANGED = "The stored summary does not match the cases; this page shows what the cases say."


@dataclass(frozen=True)
class AuditedFolder:
    """An audit with its folder.

    Attributes:
        folder: The audit folder.
        cases: Cases that count, at least one; the folder may hold more from earlier runs.
        summary: Their summary.
    """

    folder: Path
    cases: Sequence[Case]
    summary: Summary

    @functools.cached_property
    def manifest(self) -> JSON:
        """The published folder's manifest; empty where that had none."""
        path = self.folder / "manifest.json"
        return read_json(path) if path.is_file() else {}

    @functools.cached_property
    def quality(self) -> QualityView | None:
        """Measured differences between published images and originals, if there are any."""
        return load_quality(self.folder / "quality")


@writes("out")
def write_report(run: Path | AuditedFolder, out: Path, *, overwrite: bool = False) -> Path:
    """Write the report of an audit.

    Args:
        run: An audit that is at hand, or an audit folder (docs/formats.md, "Audit folder"). Of a folder only
            ``cases/`` is needed. Attacks that were left out and facts about the data come from its ``summary.json``,
            whose numbers are compared with the cases; ``manifest.json``, ``pictures/``, ``attacked/``, ``quality/``
            and ``protect.jsonl`` are shown if there.
        out: The HTML file to write.
        overwrite: Replace an existing file.

    Returns:
        ``out``.

    Raises:
        UsageError: ``run`` has no cases, or another process is writing ``out``.
        OutputExistsError: ``out`` is a folder, or exists and ``overwrite`` is false.
        DataError: A file in ``run`` is damaged.
        StorageError: The page cannot be written.
    """
    if out.is_dir():
        raise OutputExistsError(
            f"expected a file name for the report, got the folder {out}; give {out / 'report.html'}"
        )
    check_output(out, overwrite=overwrite)
    write_atomic(out, render(run if isinstance(run, AuditedFolder) else load_audit(run)))
    log.info("wrote the report %s", out)
    return out


def load_audit(folder: Path) -> AuditedFolder:
    """Read an audit folder; its summary is made anew from the cases.

    Raises:
        UsageError: It has no cases.
        DataError: A file in it is damaged.
    """
    cases = read_cases(folder)
    if not cases:
        raise UsageError(
            f"expected audit cases in {folder / 'cases'}, found none; run the audit first or check the path"
        )
    path = folder / "summary.json"
    try:
        stored = Summary.model_validate(read_json(path)) if path.is_file() else Summary()
    except ValidationError as error:
        raise DataError(f"expected a summary in {path}, got {error.errors()[0]['msg']}; run the audit again") from error
    by_id = {case.id: case for case in cases}
    counted = [by_id[name] for name in stored.cases or by_id if name in by_id]
    audit = AuditedFolder(folder, counted, stored)
    return replace(audit, summary=_counted_again(audit))


def page_environment(*folders: Path) -> jinja2.Environment:
    """Templates of these folders, then those of the report, with how numbers are written.

    A page takes the style sheet as ``css``. Characters that hide or reorder text are escaped, as in a terminal.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "css": Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        "number": number,
        "spread": spread,
        "certainty": certainty,
        "worst_spread": worst_results.spread,
    }
    return environment


def _shown(value: object) -> object:
    """Value of an expression in a page; text in the form of :func:`printable`."""
    return type(value)(printable(value, keep="\n\t")) if isinstance(value, str) else value


def render(audit: AuditedFolder) -> str:
    """The page as text; see :func:`write_report`."""
    cases = audit.cases
    manifest = audit.manifest
    summary = audit.summary
    events = read_events(audit.folder / "protect.jsonl")
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            name=description.value_at(manifest, "name") or "",
            headline=description.headline(manifest, cases, summary),
            label=capital(summary.label),
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
            attacked=load_attacked(audit.folder / "attacked"),
            pictures=load_pictures(audit.folder / "pictures", description.value_at(manifest, "budget", "levels")),
            quality=audit.quality,
            protection=description.protection(manifest),
            audit=description.audit(summary, cases),
            settings=description.settings(manifest, cases),
            limits=description.limits(summary, cases),
        )
    )


def _counted_again(audit: AuditedFolder) -> Summary:
    # Summarize the cases, with the rest from the stored summary; a warning says if their numbers differ.
    stored = audit.summary
    manifest = audit.manifest
    classes = description.value_at(manifest, "classes")
    measured = [
        description.value_at(manifest, "measured", "linf_levels"),
        audit.quality and audit.quality.figures["linf_levels"],
    ]
    again = functools.partial(
        summarize,
        audit.cases,
        classes=len(classes) if isinstance(classes, list) else round(100 / stored.chance) if stored.chance else None,
        chance=stored.chance,
        left_out=stored.left_out,
        planned=stored.planned,
        failed=stored.failed,
        facts={
            "budget_levels": description.value_at(manifest, "budget", "levels"),
            "linf_levels": max((levels for levels in measured if isinstance(levels, int)), default=None),
            **stored.facts,
        },
    )
    summary = again(warnings=stored.given)
    accuracies = [
        sorted((result.name, round(result.last, 6)) for result in (counted.authorized, *counted.hackers) if result)
        for counted in (summary, stored)
    ]
    unchanged = stored == Summary() or accuracies[0] == accuracies[1]
    return summary if unchanged else again(warnings=[*stored.given, _CHANGED])
