"""Several audits side by side: arranged, and written as page, Markdown, CSV and JSON. Needs no torch."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from uge import extras
from uge.auditing.summary import (
    HELD_SHARE,
    HOLDS,
    NOISE,
    HackerResult,
    Result,
    Summary,
    capital,
    clean_shares,
    listed,
    number,
)
from uge.auditing.worst_case import Attacked
from uge.auditing.worst_results import spread as worst_spread
from uge.errors import OutputExistsError, UsageError
from uge.files import check_output, write_atomic, write_json, writes
from uge.report.description import value_at
from uge.report.heat_map import AttackRow, Cell, HeatMap, arrange, scale_of
from uge.report.page import AuditedFolder, load_audit, page_environment
from uge.report.tables import FAMILY_TITLES, csv_text, markdown_table, spread

COMBINED = "the two best"
COMBINATION = "combination"
CSV_COLUMNS = ["protection", "role", "network", "scheme", "family", "holds", "last", "best", "std", "clean", "seeds"]
WORST_COLUMNS = ["worst case", "long form", "clean", "without the copy", "SSIM"]
SAME_IN_RECIPES = [
    "optimizer",
    "lr",
    "momentum",
    "weight_decay",
    "epochs",
    "batch_size",
    "schedule",
    "augment",
    "size",
]


class Standing(BaseModel):
    """One protection in a line; accuracies are results of groups of cases.

    Attributes:
        name: Name of the audit.
        method: Method of the manifest; empty where there is none.
        budget: Claimed bound in 8-bit levels; None where none is claimed.
        clean: Largest clean control among the networks that were trained plainly.
        gap: The smaller of last and best epochs; None without an authorised network.
        holds: True if the strongest hacker with the folder alone fails by the audit's rule (docs/audit.md); None
            without its clean control.
        label: The verdict in a few words.
        partial: True if something was left out of the audit or failed.
        plain: The strongest hacker of those that only train.
        free: The strongest hacker of those with the folder alone.
        strongest: The strongest of all.
        authorized: The first authorised network.
        worst: The worst case at the usual length; None where it was not looked for.
        worst_long: The same in the long form.
        alone: Training on the labelled images without the copy, in the worst case.
        ssim: Mean similarity to the originals, from the facts of a worst case or the manifest; None where unknown.
    """

    name: str
    method: str
    budget: int | None
    clean: float | None
    gap: float | None
    holds: bool | None
    label: str
    partial: bool
    plain: HackerResult | None
    free: HackerResult | None
    strongest: HackerResult | None
    authorized: Result | None
    worst: Attacked | None = None
    worst_long: Attacked | None = None
    alone: Attacked | None = None
    ssim: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Audits side by side.

    Attributes:
        standings: Protections, the one that holds best first.
        heat: Every attack on every protection.
        warnings: Reasons against comparing the numbers.
        summaries: Summaries of the audits by name.
    """

    standings: list[Standing]
    heat: HeatMap
    warnings: list[str]
    summaries: Mapping[str, Summary]

    def to_pandas(self) -> Any:
        """Table of attacks and protections (``pandas.DataFrame``): the strongest network's last accuracy in percent.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        pandas = extras.load("pandas", "hf", "Comparison.to_pandas")
        values: dict[str, dict[str, float]] = {}
        for name, summary in self.summaries.items():
            for hacker in summary.hackers:
                column = values.setdefault(name, {})
                column[hacker.scheme] = max(hacker.last, column.get(hacker.scheme, 0.0))
        return pandas.DataFrame({standing.name: values.get(standing.name, {}) for standing in self.standings})


def load_audits(runs: Sequence[str | Path]) -> dict[str, AuditedFolder]:
    """Audits by name.

    Raises:
        UsageError: Fewer than two, two of one name, or no cases in one.
        DataError: A file is damaged.
    """
    audits: dict[str, AuditedFolder] = {}
    for text in map(str, runs):
        name, separator, folder = text.partition("=")
        path = Path(folder if separator else text)
        name = name if separator else path.resolve().name.removesuffix(".audit")
        if name in audits:
            raise UsageError(f"two audits are named '{name}'; give one as NAME=FOLDER")
        audits[name] = load_audit(path)
    if len(audits) < 2:
        raise UsageError(f"a comparison needs at least two audit folders, got {len(audits)}")
    return audits


def compare(audits: Mapping[str, AuditedFolder]) -> Comparison:
    """Arrange audits: attacks by family, protections by the worst case.

    Where some audit has no worst case, protections are arranged by the strongest hacker with the folder alone.
    """
    standings = [_standing(name, audit) for name, audit in audits.items()]
    by_worst = all(standing.worst for standing in standings)

    def place(standing: Standing) -> tuple[float, str]:
        if by_worst and standing.worst:
            return standing.worst.reached.value, standing.name
        return standing.free.reached if standing.free else -1.0, standing.name

    standings.sort(key=place)
    heat = _heat({standing.name: audits[standing.name].summary for standing in standings})
    summaries = {name: audit.summary for name, audit in audits.items()}
    return Comparison(standings, heat, _warnings(audits, standings), summaries)


def _standing(name: str, audit: AuditedFolder) -> Standing:
    summary = audit.summary
    manifest = audit.manifest
    unbounded = value_at(manifest, "method_details", "linf_claimed") is False
    plain = [hacker for hacker in summary.hackers if hacker.scheme == "direct"]
    free = [hacker for hacker in summary.hackers if hacker.holds == "nothing"]
    chance = summary.chance or 0.0
    shares = [share for _, share in clean_shares(free, chance)]
    worst = summary.worst_case
    return Standing(
        name=name,
        method=value_at(manifest, "method") or "",
        budget=None if unbounded else value_at(manifest, "budget", "levels"),
        clean=max((hacker.clean for hacker in plain if hacker.clean is not None), default=None),
        gap=min((gap for gap in (summary.gap, summary.gap_best) if gap is not None), default=None),
        holds=max(shares) <= HELD_SHARE if shares else None,
        label=summary.label,
        partial=summary.partial,
        plain=max(plain, key=_strength, default=None),
        free=max(free, key=_strength, default=None),
        strongest=max(summary.hackers, key=_strength, default=None),
        authorized=summary.authorized,
        worst=worst.short.worst if worst else None,
        worst_long=worst.long.worst if worst and worst.long else None,
        alone=worst.short.no_copy if worst else None,
        ssim=summary.facts.get("ssim") or value_at(manifest, "measured", "ssim"),
    )


def _strength(hacker: HackerResult) -> tuple[float, float]:
    return hacker.reached, hacker.last


def _heat(summaries: Mapping[str, Summary]) -> HeatMap:
    # Title of the family → attack → audit → its strongest result.
    attacks: dict[str, dict[str, dict[str, HackerResult]]] = {title: {} for title in FAMILY_TITLES.values()}
    for name, summary in summaries.items():
        for hacker in (*summary.hackers, *summary.yardsticks):
            # Which two are combined depends on the protection: all stand in one line.
            row = COMBINED if hacker.family == COMBINATION else hacker.scheme
            results = attacks.setdefault(FAMILY_TITLES.get(hacker.family, hacker.family), {}).setdefault(row, {})
            results[name] = max(results.get(name, hacker), hacker, key=_strength)
    meant = [summary.authorized for summary in summaries.values()]
    cells = [None if top is None else Cell(top.last, top.best, "", "", top.seeds) for top in meant]
    return arrange(
        list(summaries),
        scale_of(list(summaries.values())),
        {title: rows for title, rows in attacks.items() if rows},
        clean=[max(summary.clean.values(), default=None) for summary in summaries.values()],
        authorized=[AttackRow("authorised", "from its key", "", cells)] if any(cells) else [],
        strongest=[max(summary.hackers, key=_strength) for summary in summaries.values() if summary.hackers],
    )


def _warnings(audits: Mapping[str, AuditedFolder], standings: Sequence[Standing]) -> list[str]:
    summaries = {name: audit.summary for name, audit in audits.items()}
    warnings = [f"{name}: {warning}" for name, summary in summaries.items() for warning in summary.given]
    conditions = {name: _conditions(audit) for name, audit in audits.items()}
    for condition in dict.fromkeys(condition for known in conditions.values() for condition in known):
        values = {name: known.get(condition) for name, known in conditions.items()}
        warnings += [f"Not the same {condition} ({_listed(values)})."] if len(set(values.values())) > 1 else []
    controls = {standing.name: standing.clean for standing in standings if standing.clean is not None}
    differ = max(controls.values(), default=0.0) - min(controls.values(), default=0.0) > NOISE
    shown = {name: number(value) for name, value in controls.items()}
    # Which combination is the best depends on the folder.
    single = {name: [h for h in summary.hackers if h.family != COMBINATION] for name, summary in summaries.items()}
    free = {name: {h.scheme for h in hackers if h.holds == "nothing"} for name, hackers in single.items()}
    everything = set[str]().union(*free.values())
    lacking = {name: sorted(everything - attacks) for name, attacks in free.items() if everything - attacks}
    without = "; ".join(f"{name}: without {listed(names)}" for name, names in lacking.items())
    partial = ", ".join(name for name, summary in summaries.items() if summary.partial)
    warnings += [
        f"Clean controls differ by more than {NOISE:.0f} points ({_listed(shown)})." if differ else "",
        f"Not the same attacks ({without}). A protection that was attacked less may look stronger." if without else "",
        f"Not complete: {partial}. What was not tried there may do better." if partial else "",
        f"One seed: differences under about {NOISE:.0f} points mean nothing."
        if any(summary.seeds == 1 for summary in summaries.values())
        else "",
    ]
    return [warning for warning in warnings if warning]


def _conditions(audit: AuditedFolder) -> dict[str, Any]:
    case = next((c for c in audit.cases if c.role == "hacker" and c.scheme == "direct"), audit.cases[0])
    summary = audit.summary
    worst = summary.worst_case
    return {
        "worst case": None if worst is None else f"{worst.short.epochs} epochs, {worst.labelled} labelled images",
        **{name.replace("_", " "): case.recipe.get(name) for name in SAME_IN_RECIPES},
        "milestones": tuple(case.recipe.get("milestones") or ()) or None,
        "precision": case.environment.get("precision"),
        "number of test images": summary.facts.get("test_images"),
        "networks": " and ".join(sorted({hacker.network for hacker in summary.hackers if hacker.holds != "key"})),
        "number of seeds": summary.seeds,
    }


def _listed(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{name}: {'unknown' if value is None else value}" for name, value in values.items())


@writes("out")
def write_comparison(
    runs: Sequence[str | Path], out: Path, *, overwrite: bool = False
) -> tuple[Comparison, list[Path]]:
    """Compare audit folders: a page, and the same as Markdown, CSV and JSON beside it.

    Args:
        runs: Audit folders, at least two; ``NAME=FOLDER`` gives one a name other than its folder's.
        out: The page, ``.html``; the others have the same name with ``.md``, ``.csv`` and ``.json``.
        overwrite: Replace existing files.

    Returns:
        The comparison, and the files.

    Raises:
        UsageError: Fewer than two folders, two of one name, no cases in one, ``out`` is no page, or another process is
            writing it.
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
    comparison = compare(load_audits(runs))
    for path, text in zip(files, (as_page(comparison), as_markdown(comparison), as_csv(comparison)), strict=False):
        write_atomic(path, text)
    summaries = {
        name: summary.model_dump(mode="json", exclude={"report", "verdict"})
        for name, summary in comparison.summaries.items()
    }
    write_json(files[-1], {**as_json(comparison), "summaries": summaries})
    return comparison, files


def as_page(comparison: Comparison) -> str:
    """One self-contained HTML page; equal input gives equal text."""
    environment = page_environment()
    environment.globals |= {
        "result_text": result_text,
        "named": named,
        "worst_cells": worst_cells,
        "worst_columns": WORST_COLUMNS,
    }
    title, sentence = _verdict(comparison.standings)
    return environment.get_template("comparison.html.j2").render(comparison=comparison, title=title, sentence=sentence)


def _verdict(standings: Sequence[Standing]) -> tuple[str, str]:
    first = standings[0]
    if first.worst is not None and all(standing.worst for standing in standings):
        return (
            f"The lowest worst case is that of {first.name}: {worst_spread(first.worst.reached)} %",
            f"On it {first.worst.name} reaches most. The originals give {worst_spread(first.worst.clean)} %, the "
            f"labelled images without any copy {worst_spread(first.alone.reached if first.alone else None)} %.",
        )
    judged = [standing for standing in standings if standing.holds is not None]
    if not judged:
        return "Nothing to judge", "No audit has both clean controls and hackers with the folder alone."
    first = judged[0]
    holding = [standing.name for standing in judged if standing.holds]
    so_far = " so far" if any(standing.partial for standing in judged) else ""
    best = f"Hackers stay furthest back on {first.name}: {named(first.free)}, of {number(first.clean)} on clean images."
    unjudged = [standing.name for standing in standings if standing.holds is None]
    best += f" Not judged, for want of a clean control that learns: {', '.join(unjudged)}." if unjudged else ""
    if not holding:
        return "None of them holds", f"On every copy some hacker with the folder alone learns. {best}"
    return (
        f"{len(holding)} of {len(judged)} hold{'s' if len(holding) == 1 else ''}{so_far} against hackers without help",
        f"Hackers with the folder alone fail on {', '.join(holding)}{so_far}. {best}",
    )


def as_markdown(comparison: Comparison) -> str:
    """The same as two tables in Markdown."""
    standings = [
        [
            standing.name,
            "none" if standing.budget is None else f"{standing.budget}/255",
            result_text(standing.plain),
            named(standing.free),
            named(standing.strongest),
            result_text(standing.authorized),
            number(standing.gap),
            standing.label + (" (partial)" if standing.partial else ""),
        ]
        for standing in comparison.standings
    ]
    heat = comparison.heat
    worst = [[standing.name, *worst_cells(standing)] for standing in comparison.standings if standing.worst is not None]
    columns = [
        "protection",
        "claimed bound",
        "plain training",
        "strongest with the folder alone",
        "strongest of all",
        "authorised",
        "gap",
        "verdict",
    ]
    rows = itertools.chain(filter(None, [heat.clean]), heat.authorized, *(family.shown for family in heat.families))
    attacks = [[row.name, row.held, *map(_cell_text, row.cells)] for row in rows]
    lines = [
        *([*markdown_table(["protection", *WORST_COLUMNS], worst), ""] if worst else []),
        *markdown_table(columns, standings),
        "",
        *markdown_table(["attack", "holds", *heat.columns], attacks),
        "",
        *(f"- {warning}" for warning in comparison.warnings),
    ]
    return "\n".join(lines).rstrip() + "\n"


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


def worst_cells(standing: Standing) -> list[str]:
    """Texts for :data:`WORST_COLUMNS`."""
    return [
        worst_text(standing.worst),
        worst_text(standing.worst_long),
        worst_spread(standing.worst.clean if standing.worst else None),
        worst_spread(standing.alone.reached if standing.alone else None),
        "–" if standing.ssim is None else f"{standing.ssim:.3f}",
    ]


def worst_text(attacked: Attacked | None) -> str:
    """``jpeg10 41.2 ± 0.8, renamed one to one``."""
    if attacked is None:
        return "–"
    renamed = "" if attacked.naming == "as is" else f", renamed {attacked.naming}"
    return f"{attacked.scheme} {worst_spread(attacked.reached)}{renamed}"


def as_csv(comparison: Comparison) -> str:
    """Every group of cases of every audit, one a line, with :data:`CSV_COLUMNS`."""
    roles = {"authorized": ("authorized_all", "variants"), "hacker": ("hackers",), "yardstick": ("yardsticks",)}
    records = (
        {**result.model_dump(), "protection": name, "role": role}
        for name, summary in comparison.summaries.items()
        for role, fields in roles.items()
        for field in fields
        for result in getattr(summary, field)
    )
    return csv_text(CSV_COLUMNS, records)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Standings and warnings as JSON values (docs/formats.md)."""
    return {
        "standings": [standing.model_dump(mode="json") for standing in comparison.standings],
        "warnings": comparison.warnings,
        "holds": HOLDS,
    }


def text_comparison(comparison: Comparison) -> str:
    """Standings for a terminal."""
    lines = [f"{standing.name}: worst case {worst_text(standing.worst)}" for standing in comparison.standings]
    lines = [line for line, standing in zip(lines, comparison.standings, strict=True) if standing.worst]
    lines += [
        f"{standing.name}: strongest with the folder alone: "
        + (f"{standing.free.scheme} {number(standing.free.last)} %" if standing.free else "no hacker without help")
        + f"; {capital(standing.label)}"
        for standing in comparison.standings
    ]
    return "\n".join([*lines, *(f"doubt: {warning}" for warning in comparison.warnings)])
