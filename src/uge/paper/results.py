"""From files of results to what stands in a cell: mean and spread over repetitions, and its state. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from uge.auditing.summary import mean_std
from uge.cases.case import Case
from uge.files import JSON
from uge.paper.cells import Cell, Experiment, Section
from uge.paper.ledger import PaperLedger
from uge.paper.specs import ORIGINAL, Copy, Federation, Unit

State = Literal["done", "missing", "failed"]
HALVES = {"first 5 classes": 0, "last 5 classes": 1}


@dataclass(frozen=True)
class Measured:
    """What was measured for one cell; accuracies in percent on clean test images.

    Attributes:
        state: ``done``: every repetition is there; ``failed``: one failed; else ``missing``.
        last: Mean after the last epoch, over the repetitions that are there.
        std: Sample standard deviation of ``last``; None with one repetition.
        best: Mean of the best epochs.
        std_best: Sample standard deviation of ``best``.
        clean: Mean of the clean controls after the last epoch.
        seeds: Repetitions that are there.
        wanted: Repetitions that were asked for.
        costs: Seconds by result: of the cell's own runs, and of the protection of what they see.
        reason: Why it is not done, in one sentence; empty where it was simply not run.
        hardware: What it was measured on.
        recipes: How its networks trained.
        protections: What made the copies that they saw.
        cases: Ids of its case files.
    """

    state: State
    last: float | None = None
    std: float | None = None
    best: float | None = None
    std_best: float | None = None
    clean: float | None = None
    seeds: int = 0
    wanted: int = 1
    costs: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    hardware: tuple[str, ...] = ()
    recipes: tuple[JSON, ...] = ()
    protections: tuple[JSON, ...] = ()
    cases: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Computing time behind the cell; other cells may share it."""
        return sum(self.costs.values())


@dataclass(frozen=True)
class Entry:
    """A cell with what was measured."""

    section: Section
    cell: Cell
    measured: Measured

    @property
    def added(self) -> bool:
        """Whether its row is ours, not the paper's."""
        return self.cell.row in self.section.added

    @property
    def difference(self) -> float | None:
        """Ours (last epoch) minus the paper's, in points; None with other images than the paper's."""
        if self.cell.paper is None or self.measured.last is None or self.section.stand_in:
            return None
        return self.measured.last - self.cell.paper


@dataclass(frozen=True)
class Pictured:
    """A copy whose images are shown.

    Attributes:
        copy: What is shown.
        state: ``done``, ``failed``, or ``missing``: not drawn, or its images are not at hand.
        result: What its protection left; None unless it is done.
        reason: Why it is not done, in one sentence; empty where it was simply not run.
    """

    copy: Copy
    state: State
    result: JSON | None
    reason: str


@dataclass(frozen=True)
class Shown:
    """An experiment with its results."""

    experiment: Experiment
    entries: tuple[Entry, ...] = field(default_factory=tuple)
    pictures: tuple[Pictured, ...] = ()

    def at(self, section: Section, row: str, column: str) -> Entry | None:
        """The entry at a place of a section."""
        found = (one for one in self.entries if one.section is section)
        return next((one for one in found if (one.cell.row, one.cell.column) == (row, column)), None)

    @property
    def counts(self) -> dict[str, int]:
        """How many cells (or pictures) are in which state."""
        states = [one.measured.state for one in self.entries]
        states += [one.state for one in self.pictures]
        return {state: states.count(state) for state in ("done", "missing", "failed")}


def look(experiment: Experiment, kept: PaperLedger) -> Shown:
    """What a folder of results says of an experiment."""
    entries = tuple(
        Entry(section, cell, _federated(cell, kept) if cell.federations else _trained(cell, kept))
        for section in experiment.sections
        for cell in section.cells
    )
    return Shown(experiment, entries, tuple(_pictured(copy, kept) for copy in experiment.pictures))


def _pictured(copy: Copy, kept: PaperLedger) -> Pictured:
    found = kept.result(copy) if (kept.picture(copy) / "pictures.json").is_file() else None
    state: State = "done" if found else "failed" if kept.failure(copy) else "missing"
    return Pictured(copy, state, found, "" if found else _why(kept, copy))


def _trained(cell: Cell, kept: PaperLedger) -> Measured:
    groups = [[kept.case(unit) for unit in group] for group in cell.units]
    whole = [[case for case in group if case is not None] for group in groups if None not in group]
    controls = [case for group in cell.control for unit in group if (case := kept.case(unit)) is not None]
    units = [unit for group in cell.units for unit in group]
    cases = [case for group in whole for case in group]
    copies = [unit.of for unit in dict.fromkeys(units) if unit.of.method != ORIGINAL]
    made = {copy.id: found for copy in dict.fromkeys(copies) if (found := kept.result(copy)) is not None}
    reason = next((why for unit in units if kept.case(unit) is None and (why := _why(kept, unit))), "")
    return Measured(
        **_means([fmean(c.last for c in group) for group in whole], [fmean(c.best for c in group) for group in whole]),
        **_state(len(whole), len(groups), reason, any(kept.failure(spec) for spec in _behind(units))),
        clean=fmean(case.last for case in controls) if controls else None,
        costs={case.id: case.seconds for case in cases} | {name: float(one["seconds"]) for name, one in made.items()},
        hardware=_hardware(case.environment for case in cases),
        recipes=_distinct(_recipe(case) for case in cases),
        protections=_distinct(
            {name: value for name, value in copy.model_dump(mode="json").items() if name not in ("images", "seed")}
            for copy in copies
        ),
        cases=tuple(dict.fromkeys(case.id for case in cases)),
    )


def _behind(units: Sequence[Unit]) -> list[Unit | Copy]:
    return [one for unit in units for one in (unit, unit.of, unit.teacher) if one is not None]


def _why(kept: PaperLedger, spec: Unit | Copy | Federation) -> str:
    """Why something is not there: its own failure, that of what it needs, or images that are not at hand."""
    images = spec.of.images if isinstance(spec, Unit) else spec.images
    behind: list[Unit | Copy | Federation] = [spec]
    if isinstance(spec, Unit):
        behind = [one for one in (spec, spec.teacher, spec.of) if one is not None]
    found = next((why for one in behind if (why := kept.failure(one))), None)
    return found or str(kept.images(images.name).get("reason", ""))


def _federated(cell: Cell, kept: PaperLedger) -> Measured:
    found = [(run, kept.result(run)) for run in cell.federations]
    there = [(run, result) for run, result in found if result is not None]
    values = [federated_value(result["columns"], run, cell.row, cell.column) for run, result in there]
    clean_column = cell.column[:-1] + "N" if cell.column[-2:] in ("-H", "-D") else "Joint"
    control = [federated_value(result["columns"], run, cell.row, clean_column) for run, result in there]
    reason = next((_why(kept, run) for run, result in found if result is None), "")
    clean = [last for last, _ in control if last is not None] if cell.column != clean_column else []
    lasts = [last for last, _ in values if last is not None]
    bests = [best for _, best in values if best is not None]
    return Measured(
        **_means(lasts, bests),
        **_state(len(lasts), len(found), reason, any(kept.failure(run) for run in cell.federations)),
        clean=fmean(clean) if clean else None,
        costs={run.id: float(result["seconds"]) for run, result in there},
        hardware=_hardware(result["environment"] for _, result in there),
        recipes=_distinct(one.json_dict() for run, _ in there for one in (run.recipe, *run.recipes.values())),
        protections=_distinct({"method": run.method, "rho": run.rho, "settings": run.settings} for run, _ in there),
        cases=tuple(run.id for run, _ in there),
    )


def federated_value(columns: JSON, run: Federation, row: str, column: str) -> tuple[float | None, float | None]:
    """One number of Table 9 from the columns of a federated run: last epoch, best epoch.

    Args:
        columns: As ``uge federated`` writes them: ``joint``, ``separate-0``, ``server-0``, ``global``, ``cnn-n`` …
        run: Says which networks the hackers are.
        row: The paper's row: first or last five classes, or their average.
        column: The paper's column.
    """
    small, large = run.hackers[0], run.hackers[-1]
    heads = {"CNN": small, "Res18": large}
    own = {"Separate": ["separate-0", "separate-1"], "Server1": ["server-0"], "Server2": ["server-1"]}
    if column in own:
        # Each of them was trained on one part only, and is measured on that part's classes.
        numbers = [int(name[-1]) for name in own[column]]
        parts = {n: columns[name]["parts"][n] for n, name in zip(numbers, own[column], strict=True)}
        wanted = [parts.get(HALVES[row])] if row in HALVES else list(parts.values())
        return (None if None in wanted else fmean(value for value in wanted if value is not None)), None
    head, _, kind = column.partition("-")
    found = columns[f"{heads[head]}-{kind.lower()}" if kind else column.lower()]
    if row in HALVES:
        return found["parts"][HALVES[row]], None
    return found["average"], found["best"]


def _means(lasts: Sequence[float], bests: Sequence[float]) -> dict[str, Any]:
    last, std = mean_std(lasts) if lasts else (None, None)
    best, std_best = mean_std(bests) if bests else (None, None)
    return {"last": last, "std": std, "best": best, "std_best": std_best}


def _state(there: int, wanted: int, reason: str, failed: bool) -> dict[str, Any]:
    state: State = "done" if there == wanted else "failed" if failed else "missing"
    return {"state": state, "seeds": there, "wanted": wanted, "reason": "" if there == wanted else reason}


def _recipe(case: Case) -> JSON:
    return {"network": case.network, **case.recipe}


def _hardware(environments: Any) -> tuple[str, ...]:
    texts = (f"{one.get('hardware')}, {one.get('threads')} threads, {one.get('precision')}" for one in environments)
    return tuple(dict.fromkeys(texts))


def _distinct(values: Any) -> tuple[JSON, ...]:
    found: list[JSON] = []
    for value in values:
        if value not in found:
            found.append(value)
    return tuple(found)
