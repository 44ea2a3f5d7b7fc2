"""Several audits side by side: which protection holds against what. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uge.auditing.summary import NOISE, HackerResult, Holds, Result, Summary
from uge.auditing.verdict import HELD_SHARE, judgeable, listed
from uge.errors import UsageError
from uge.report.heat import Cell, Family, HeatMap, Line, scale_of
from uge.report.page import Run, load_run
from uge.report.story import look
from uge.report.tables import FAMILIES, HELD, number, words

NONE: Holds = "nothing"
COMBINED = "the two best"


@dataclass(frozen=True)
class Standing:
    """One protection in a line; accuracies are results of groups of cases.

    Attributes:
        name: What it is called here.
        method: As the manifest says; empty where there is none.
        budget: Claimed bound in 8-bit levels; None where none is claimed.
        clean: Clean control of the plain hacker who learns most from the originals.
        plain: The strongest hacker who only trains.
        free: The strongest hacker who holds nothing but the published folder.
        strongest: The strongest of all.
        authorized: The first authorised network.
        gap: The smaller of last and best epochs; None without an authorised network.
        holds: Whether the strongest who holds nothing fails by the audit's rule (docs/audit.md); None without his
            clean control.
        label: The verdict in a few words.
        partial: Whether something was left out of its audit or failed.
    """

    name: str
    method: str
    budget: int | None
    clean: float | None
    plain: HackerResult | None
    free: HackerResult | None
    strongest: HackerResult | None
    authorized: Result | None
    gap: float | None
    holds: bool | None
    label: str
    partial: bool


@dataclass(frozen=True)
class Comparison:
    """Protections, the one that holds best first, what was tried on each, and what forbids comparing them."""

    standings: list[Standing]
    heat: HeatMap
    warnings: list[str]


def load_runs(runs: Sequence[str | Path]) -> dict[str, Run]:
    """Audits by name.

    Raises:
        UsageError: Fewer than two, two of one name, or no cases in one.
        DataError: A file is damaged.
    """
    found: dict[str, Run] = {}
    for text in map(str, runs):
        name, separator, folder = text.partition("=")
        path = Path(folder if separator else text)
        name = name if separator else path.resolve().name.removesuffix(".audit")
        if name in found:
            raise UsageError(f"two audits are named '{name}'; give one as NAME=FOLDER")
        found[name] = load_run(path)
    if len(found) < 2:
        raise UsageError(f"a comparison needs at least two audit folders, got {len(found)}")
    return found


def compare(runs: Mapping[str, Run]) -> Comparison:
    """Arrange audits: protections by the strongest hacker who holds nothing, attacks by family."""
    standings = sorted((_standing(name, run) for name, run in runs.items()), key=_place)
    summaries = {one.name: runs[one.name].summary for one in standings}
    return Comparison(standings, _heat(summaries), _warnings(runs, standings))


def _standing(name: str, run: Run) -> Standing:
    summary, levels = run.summary, look(run.manifest, "budget", "levels")
    claimed = look(run.manifest, "method_details", "linf_claimed") is not False
    gaps = [gap for gap in (summary.gap, summary.gap_best) if gap is not None]
    controls = [control for hacker in _plain(summary) if (control := hacker.clean) is not None]
    free = [hacker for hacker in summary.hackers if hacker.holds == NONE]
    chance = summary.chance or 0.0
    kept = [one.kept(chance) or 0.0 for one in judgeable(free, chance)]
    return Standing(
        name=name,
        method=look(run.manifest, "method") or "",
        budget=levels if claimed and isinstance(levels, int) else None,
        clean=max(controls, default=None),
        plain=_top(_plain(summary)),
        free=_top(free),
        strongest=_top(summary.hackers),
        authorized=summary.authorized,
        gap=min(gaps, default=None),
        holds=max(kept) <= HELD_SHARE if kept else None,
        label=summary.label,
        partial=summary.partial,
    )


def _place(one: Standing) -> tuple[float, str]:
    return (-1.0 if one.free is None else _reached(one.free)[0], one.name)


def _plain(summary: Summary) -> list[HackerResult]:
    return [hacker for hacker in summary.hackers if hacker.scheme == "direct"]


def _top(hackers: Iterable[HackerResult]) -> HackerResult | None:
    return max(hackers, key=_reached, default=None)


def _reached(hacker: HackerResult) -> tuple[float, float]:
    """What counts of a hacker: the better of last and best epoch, since he may stop early."""
    return max(hacker.last, hacker.best), hacker.last


def _heat(summaries: Mapping[str, Summary]) -> HeatMap:
    scale = scale_of(list(summaries.values()))
    tried: dict[str, dict[str, dict[str, HackerResult]]] = {}
    for name, summary in summaries.items():
        for hacker in (*summary.hackers, *summary.yardsticks):
            family = tried.setdefault(FAMILIES.get(hacker.family, hacker.family), {})
            # Which two are combined depends on the protection: all stand in one line.
            cells = family.setdefault(COMBINED if hacker.family == "combination" else hacker.scheme, {})
            cells[name] = max(cells.get(name, hacker), hacker, key=_reached)

    def cell(name: str, result: HackerResult | None) -> Cell | None:
        top = _top(summaries[name].hackers)
        if result is None:
            return None
        note = result.scheme if result.family == "combination" else ""
        return scale.cell(result, note=note, strongest=result is top)

    def line(scheme: str, cells: Mapping[str, HackerResult]) -> Line:
        one = next(iter(cells.values()))
        about, held = ("", "") if scheme == COMBINED else (words(one), HELD[one.holds])
        return Line(scheme, about, held, [cell(name, cells.get(name)) for name in summaries])

    families = []
    order = list(FAMILIES.values())
    for title in sorted(tried, key=lambda title: order.index(title) if title in order else len(order)):
        attacks = tried[title]
        lines = [line(scheme, cells) for scheme, cells in attacks.items()]
        families.append(Family(title, lines, [], max(r.last for cells in attacks.values() for r in cells.values())))
    controls = [max(summary.clean.values(), default=None) for summary in summaries.values()]
    clean = [None if value is None else scale.control(value) for value in controls]
    meant = [summary.authorized for summary in summaries.values()]
    authorized = [None if one is None else Cell(one.last, one.best, "", "", one.seeds) for one in meant]
    return HeatMap(
        columns=list(summaries),
        clean=Line("clean control", "trained on the originals", "", clean) if any(clean) else None,
        authorized=[Line("authorised", "from its key", "", authorized)] if any(authorized) else [],
        families=families,
        scale=scale,
    )


def _warnings(runs: Mapping[str, Run], standings: Sequence[Standing]) -> list[str]:
    """Why numbers of different columns may not be compared."""
    conditions = {name: _conditions(run) for name, run in runs.items()}
    found = [f"{name}: {warning}" for name, run in runs.items() for warning in run.summary.given]
    for what in dict.fromkeys(what for one in conditions.values() for what in one):
        values = {name: one.get(what) for name, one in conditions.items()}
        if len(set(values.values())) > 1:
            found.append(f"Not the same {what} ({_listed(values)}).")
    controls = {one.name: one.clean for one in standings if one.clean is not None}
    if controls and max(controls.values()) - min(controls.values()) > NOISE:
        shown = _listed({name: number(value) for name, value in controls.items()})
        found.append(f"Clean controls differ by more than {NOISE:.0f} points ({shown}).")
    tried = {name: _free_attacks(run.summary) for name, run in runs.items()}
    everything = set[str]().union(*tried.values())
    lacking = {name: sorted(everything - there) for name, there in tried.items() if everything - there}
    if lacking:
        without = "; ".join(f"{name}: without {listed(names)}" for name, names in lacking.items())
        found.append(f"Not the same attacks ({without}). Who was attacked less may look stronger.")
    partial = [name for name, run in runs.items() if run.summary.partial]
    if partial:
        found.append(f"Not complete: {', '.join(partial)}. What was not tried there may do better.")
    if any(run.summary.seeds == 1 for run in runs.values()):
        found.append(f"One seed: differences under about {NOISE:.0f} points mean nothing.")
    return found


def _free_attacks(summary: Summary) -> set[str]:
    """Attacks that need nothing but the folder; which combination is the best depends on the folder."""
    return {one.scheme for one in summary.hackers if one.holds == NONE and one.family != "combination"}


def _conditions(run: Run) -> dict[str, Any]:
    """What must be the same in all audits."""
    case = next((case for case in run.cases if case.role == "hacker" and case.scheme == "direct"), run.cases[0])
    names = (
        "optimizer",
        "lr",
        "momentum",
        "weight_decay",
        "epochs",
        "batch_size",
        "schedule",
        "augment",
        "size",
    )
    return {
        **{name.replace("_", " "): case.recipe.get(name) for name in names},
        "milestones": tuple(case.recipe.get("milestones") or ()) or None,
        "precision": case.environment.get("precision"),
        "number of test images": run.summary.facts.get("test_images"),
        "networks": " and ".join(sorted({hacker.network for hacker in run.summary.hackers if hacker.holds != "key"})),
        "number of seeds": run.summary.seeds,
    }


def _listed(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{name}: {'unknown' if value is None else value}" for name, value in values.items())
