"""A comparison as a page, Markdown, CSV, JSON, and lines for a terminal. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from uge.auditing.summary import HOLDS, Result, Summary
from uge.errors import OutputExistsError, UsageError
from uge.files import check_output, write_atomic, write_json
from uge.report.compare import Comparison, Standing, compare, load_runs
from uge.report.heat import Cell
from uge.report.page import Run, capital, page_environment
from uge.report.tables import csv_text, markdown_table, number, spread

FIELDS = ["protection", "role", "network", "scheme", "family", "holds", "last", "best", "std", "clean", "seeds"]
"""Columns of the CSV file: one line for each group of cases."""
STANDING_COLUMNS = [
    "protection",
    "claimed bound",
    "plain training",
    "strongest who holds nothing else",
    "strongest of all",
    "authorised",
    "gap",
    "verdict",
]


def write_comparison(runs: Sequence[str | Path], out: Path, *, overwrite: bool = False) -> list[Path]:
    """Compare audit folders: a page, and the same as Markdown, CSV and JSON beside it.

    Args:
        runs: Audit folders, at least two; ``NAME=FOLDER`` gives one a name other than its folder's.
        out: The page, ``.html``; the others have the same name with ``.md``, ``.csv`` and ``.json``.
        overwrite: Replace existing files.

    Returns:
        The files.

    Raises:
        UsageError: Fewer than two folders, two of one name, no cases in one, or ``out`` is no page.
        OutputExistsError: A file exists.
        DataError: A file of an audit is damaged.
        StorageError: The disk is full or read-only.
    """
    if out.suffix != ".html":
        raise UsageError(f"expected a file name that ends in .html for the comparison, got {out}")
    files = [out.with_suffix(ending) for ending in (".html", ".md", ".csv", ".json")]
    for path in files:
        if path.is_dir():
            raise OutputExistsError(f"expected a file name for the comparison, but {path} is a folder")
        check_output(path, overwrite=overwrite)
    found = load_runs(runs)
    comparison = compare(found)
    write_atomic(files[0], as_page(comparison))
    write_atomic(files[1], as_markdown(comparison))
    write_atomic(files[2], as_csv(found))
    write_json(files[3], as_json(comparison, found))
    return files


def as_page(comparison: Comparison) -> str:
    """One self-contained HTML page; equal input gives equal text."""
    environment = page_environment()
    environment.globals |= {"result_text": result_text, "named": named}
    title, sentence = _verdict(comparison.standings)
    template = environment.get_template("comparison.html.j2")
    return template.render(comparison=comparison, title=title, sentence=sentence)


def _verdict(standings: Sequence[Standing]) -> tuple[str, str]:
    """The result in a few words and in a sentence."""
    judged = [one for one in standings if one.holds is not None]
    if not judged:
        return "Nothing to judge", "No audit has both clean controls and hackers who hold nothing but the folder."
    first, standing = judged[0], [one.name for one in judged if one.holds]
    so_far = " so far" if any(one.partial for one in judged) else ""
    best = f"Hackers stay furthest back on {first.name}: {named(first.free)}, of {number(first.clean)} on clean images."
    if not standing:
        return "None of them holds", f"On every copy some hacker who holds nothing else learns. {best}"
    title = f"{len(standing)} of {len(judged)} hold{'s' * (len(standing) == 1)}{so_far} against hackers without help"
    return title, f"Hackers who hold nothing but the folder fail on {', '.join(standing)}{so_far}. {best}"


def as_markdown(comparison: Comparison) -> str:
    """The same as two tables in Markdown."""
    standings = []
    for one in comparison.standings:
        budget = "none" if one.budget is None else f"{one.budget}/255"
        cells = [one.name, budget, result_text(one.plain), named(one.free), named(one.strongest)]
        cells += [result_text(one.authorized), number(one.gap), one.label + (" (partial)" if one.partial else "")]
        standings.append(cells)
    heat = comparison.heat
    top = [*([heat.clean] if heat.clean else []), *heat.authorized]
    rows = [*top, *(line for family in heat.families for line in family.shown)]
    attacks = [[line.name, line.held, *map(_cell_text, line.cells)] for line in rows]
    lines = markdown_table(STANDING_COLUMNS, standings)
    lines += ["", *markdown_table(["attack", "holds", *heat.columns], attacks)]
    return "\n".join([*lines, "", *(f"- {warning}" for warning in comparison.warnings)]).rstrip() + "\n"


def _cell_text(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    text = f"**{number(cell.last)}**" if cell.strongest else number(cell.last)
    text = f"{text} ({number(cell.best)})" if cell.seeds else text
    return f"{text} {cell.note}".rstrip()


def result_text(result: Result | None) -> str:
    """``59.0 ± 1.0 (60.2)``: last epoch, and the best in brackets."""
    return "–" if result is None else f"{spread(result.last, result.std)} ({number(result.best)})"


def named(result: Result | None) -> str:
    """The same after the attack's name."""
    return "–" if result is None else f"{result.scheme} {result_text(result)}"


def _results(summary: Summary) -> Iterable[tuple[str, Result]]:
    yield from (("authorized", one) for one in (*summary.authorized_all, *summary.variants))
    yield from (("hacker", one) for one in summary.hackers)
    yield from (("yardstick", one) for one in summary.yardsticks)


def as_csv(runs: Mapping[str, Run]) -> str:
    """Every group of cases of every audit, one a line, with :data:`FIELDS`."""
    return csv_text(
        FIELDS,
        (
            {**one.model_dump(), "protection": name, "role": role}
            for name, run in runs.items()
            for role, one in _results(run.summary)
        ),
    )


def as_json(comparison: Comparison, runs: Mapping[str, Run]) -> dict[str, Any]:
    """Standings, warnings, and the summary of every audit (docs/formats.md)."""
    standings = []
    for one in comparison.standings:
        results = {name: value and value.model_dump(mode="json") for name, value in _results_of(one).items()}
        plain = {name: value for name, value in vars(one).items() if name not in results}
        standings.append({**plain, **results})
    return {
        "standings": standings,
        "warnings": comparison.warnings,
        "holds": HOLDS,
        "summaries": {name: run.summary.model_dump(mode="json", exclude={"report"}) for name, run in runs.items()},
    }


def _results_of(one: Standing) -> dict[str, Result | None]:
    return {"plain": one.plain, "free": one.free, "strongest": one.strongest, "authorized": one.authorized}


def text_comparison(comparison: Mapping[str, Any]) -> str:
    """Standings for a terminal, from :func:`as_json`."""
    lines = []
    for one in comparison["standings"]:
        free = one["free"]
        words = f"{free['scheme']} {number(free['last'])} %" if free else "no hacker without help"
        lines.append(f"{one['name']}: strongest who holds nothing else: {words}; {capital(one['label'])}")
    return "\n".join([*lines, *(f"doubt: {warning}" for warning in comparison["warnings"])])
