"""What the cases of the yardstick come to: gaps, retention, targets, tables. Needs no torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from uge.cases.case import Case, read_case
from uge.errors import DataError
from uge.files import JSON, canonical_json, read_json, write_json

LOSS, PLAIN, DISTILL, GAP = 4.0, 35.0, 45.0, 20.0
"""Targets: most points lost to the clean control, largest accuracies of hackers, smallest gap in points."""

COLUMNS = {
    "authorized": ("authorized", "labels"),
    "control": ("authorized", "clean"),
    "variant": ("authorized", "labels"),
    "plain": ("hacker", "labels"),
    "distill": ("hacker", "distilled"),
    "clean": ("hacker", "clean"),
}
"""Of every kind of case: whose it is, and in which column of a table it stands."""


def finished_case(folder: Path, name: str, fingerprint: str) -> Case | None:
    """A case as it lies on disk, if it is readable and of this fingerprint."""
    try:
        case = read_case(folder / f"{name}.json")
    except (OSError, DataError):
        return None
    return case if case.fingerprint == fingerprint else None


def summarize_folder(folder: Path) -> JSON:
    """Read ``plan.json`` and the cases that it names, write ``summary.json`` beside it, and return that.

    Raises:
        DataError: There is no plan.
    """
    plan = read_json(folder / "plan.json")
    found = (finished_case(folder.parent / e["folder"] / "cases", e["id"], e["fingerprint"]) for e in plan["cases"])
    summary = summarize(plan, {case.id: case for case in found if case is not None})
    write_json(folder / "summary.json", summary)
    return summary


def summarize(plan: JSON, cases: Mapping[str, Case]) -> JSON:
    """What came of a plan.

    Args:
        plan: ``cases`` lists every planned case with ``id``, ``kind`` and ``network``, ``base`` is the architecture of
            the authorised network without a key; all but ``cases`` is copied into the result.
        cases: Those that were run, by id.

    Returns:
        JSON values, accuracies in percent, differences in points. Largest values are of the hackers that were run; a
        target is ``met`` (true or false) only when every case that it speaks of was run, else null.
    """
    planned: Sequence[JSON] = plan["cases"]

    def only(kind: str, network: str | None = None) -> Case | None:
        names = [e["id"] for e in planned if e["kind"] == kind and network in (None, e["network"])]
        return cases.get(names[0]) if names else None

    authorized, control, base = only("authorized"), only("control"), only("clean", plan["base"])
    worst = {kind: _worst(planned, cases, (kind,)) for kind in ("plain", "distill")}
    all_hackers = _worst(planned, cases, ("plain", "distill"))
    reached = None if authorized is None else authorized.last
    gap, gap_best = _minus(reached, all_hackers["last"]), _minus(reached, all_hackers["best"])
    retention = {
        "own_control": _minus(reached, None if control is None else control.last),
        "base_control": _minus(reached, None if base is None else base.last),
    }
    complete = all_hackers["missing"] == 0
    return {
        **{name: value for name, value in plan.items() if name != "cases"},
        "authorized": reached,
        "clean": None if control is None else control.last,
        "clean_base": None if base is None else base.last,
        "hackers": worst,
        "gap_last": gap,
        "gap_best": gap_best,
        "retention": retention,
        "targets": {
            "authorized": _target(retention["own_control"], at_least=-LOSS),
            "plain": _target(worst["plain"]["last"], at_most=PLAIN, complete=worst["plain"]["missing"] == 0),
            "distill": _target(worst["distill"]["last"], at_most=DISTILL, complete=worst["distill"]["missing"] == 0),
            "gap": _target(gap, at_least=GAP, complete=complete),
            "gap_best": _target(gap_best, at_least=GAP, complete=complete),
        },
        "cases": [{**e, **_figures(cases.get(e["id"]))} for e in planned],
    }


def _worst(planned: Sequence[JSON], cases: Mapping[str, Case], kinds: Sequence[str]) -> JSON:
    """The largest accuracies of the hackers of some kinds, who had them, and how many hackers were not run."""
    names = [e["id"] for e in planned if e["kind"] in kinds]
    found = [cases[name] for name in names if name in cases]
    last, best = max(found, key=lambda c: c.last, default=None), max(found, key=lambda c: c.best, default=None)
    return {
        "last": None if last is None else last.last,
        "best": None if best is None else best.best,
        "last_case": None if last is None else last.id,
        "best_case": None if best is None else best.id,
        "missing": len(names) - len(found),
    }


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else round(a - b, 4)


def _target(
    value: float | None, *, at_least: float | None = None, at_most: float | None = None, complete: bool = True
) -> JSON:
    met = None
    if value is not None and complete:
        met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    bound = {"at_most": at_most} if at_least is None else {"at_least": at_least}
    return {**bound, "value": value, "met": met}


def _figures(case: Case | None) -> JSON:
    names = ("last", "best", "best_epoch", "seconds")
    return {name: None if case is None else getattr(case, name) for name in names}


def case_table(summary: JSON) -> str:
    """One run as Markdown: its cases in their order, then the figures that are judged."""
    lines = [f"### {summary['label']}", "", "| case | last % | best % (epoch) | s |", "|---|--:|--:|--:|"]
    for e in summary["cases"]:
        best = "–" if e["best"] is None else f"{e['best']:.2f} ({e['best_epoch']})"
        lines.append(f"| {e['id']} | {_number(e['last'], 2)} | {best} | {_number(e['seconds'], 0)} |")
    lines += ["", "| target | bound | value | met |", "|---|--:|--:|---|"]
    for name, target in summary["targets"].items():
        bound = f"≥ {target['at_least']:g}" if "at_least" in target else f"≤ {target['at_most']:g}"
        met = {True: "yes", False: "no", None: "not known"}[target["met"]]
        lines.append(f"| {name} | {bound} | {_number(target['value'], 2)} | {met} |")
    kept = summary["retention"]["base_control"]
    lines += ["", f"Against the clean control of {summary['base']}: {_number(kept, 2)} points. "]
    seconds = f"{'at least ' if summary['protect']['resumed'] else ''}{summary['protect']['seconds']:.0f} s"
    return "\n".join(lines).rstrip() + f" Protected in {seconds}."


def seeds_table(results: Path) -> str:
    """All summaries of a results folder as Markdown: a row for the runs that differ in their seed only."""
    groups: dict[str, list[JSON]] = {}
    for path in sorted(results.glob("*/summary.json")):
        summary = read_json(path)
        settings = {name: value for name, value in summary["settings"].items() if name != "seed"}
        groups.setdefault(canonical_json(settings), []).append(summary)
    head = "authorized (clean) | worst plain | worst distilling | gap last / best | protect s | seeds"
    lines = [f"| run | {head} |", "|---|--:|--:|--:|--:|--:|--:|"]
    lines += [_row(aggregate(group)) for group in groups.values()]
    return "\n\n".join(["\n".join(lines), *map(networks_table, groups.values())])


def networks_table(summaries: Sequence[JSON]) -> str:
    """What every network reached, over runs that differ in their seed only, as Markdown.

    Last epoch (best epoch), each as mean ± sample standard deviation over the runs that have the case.
    """
    rows: dict[str, dict[str, list[JSON]]] = {}
    for summary in summaries:
        for entry in summary["cases"]:
            who, column = COLUMNS[entry["kind"]]
            change = changed(entry["id"]) if entry["kind"] in ("plain", "variant") else ""
            name = f"{who} {entry['network']}" + (f", {change}" if change else "")
            if entry["last"] is not None:
                rows.setdefault(name, {}).setdefault(column, []).append(entry)
    lines = [f"| {summaries[0]['group']} | on labels | distilled | on clean images |", "|---|--:|--:|--:|"]
    for name in sorted(rows, key=lambda name: not name.startswith("authorized")):
        cells = [_spread(rows[name].get(column, [])) for column in ("labels", "distilled", "clean")]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def changed(case_id: str) -> str:
    """What a case does otherwise than the first of its kind, from its id: ``…-direct-protected-WHAT-sSEED``."""
    return case_id.partition("-protected-")[2].rpartition("s")[0].rstrip("-")


def _spread(entries: Sequence[JSON]) -> str:
    if not entries:
        return "–"
    last, best = (_plus_minus(*_mean([entry[name] for entry in entries])) for name in ("last", "best"))
    return f"{last} ({best})"


def _mean(values: Sequence[float | None]) -> tuple[float | None, float | None, int]:
    """Mean and sample standard deviation of the values that are there, and how many these are."""
    there = [value for value in values if value is not None]
    mean = statistics.fmean(there) if there else None
    return mean, statistics.stdev(there) if len(there) > 1 else None, len(there)


def _plus_minus(mean: float | None, std: float | None, _: int, *, digits: int = 1) -> str:
    return _number(mean, digits) + ("" if std is None else f" ± {std:.{digits}f}")


def aggregate(summaries: Sequence[JSON]) -> JSON:
    """Mean and sample standard deviation over runs that differ in their seed only.

    Returns:
        ``group``, ``seeds``, and per figure ``(mean, std, count)``: over the runs that have the figure; the mean is
        null where none has, the deviation where fewer than two have.
    """
    figures = {
        "authorized": [s["authorized"] for s in summaries],
        "clean": [s["clean"] for s in summaries],
        "plain": [s["hackers"]["plain"]["last"] for s in summaries],
        "distill": [s["hackers"]["distill"]["last"] for s in summaries],
        "gap_last": [s["gap_last"] for s in summaries],
        "gap_best": [s["gap_best"] for s in summaries],
        "seconds": [s["protect"]["seconds"] for s in summaries],
    }
    found: JSON = {"group": summaries[0]["group"], "seeds": len(summaries)}
    for name, values in figures.items():
        found[name] = _mean(values)
    found["missing"] = sum(e["last"] is None for s in summaries for e in s["cases"])
    return found


def _row(found: JSON) -> str:
    def spread(name: str, digits: int = 1) -> str:
        return _plus_minus(*found[name], digits=digits)

    name = found["group"] + (f" ({found['missing']} cases missing)" if found["missing"] else "")
    gaps = f"{spread('gap_last')} / {spread('gap_best')}"
    cells = [f"{spread('authorized')} ({spread('clean')})", spread("plain"), spread("distill"), gaps]
    return f"| {' | '.join([name, *cells, spread('seconds', 0), str(found['seeds'])])} |"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
