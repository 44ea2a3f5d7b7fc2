"""Results of cells from files: mean and spread over repetitions, and state. Needs no torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal, TypeVar

from uge.auditing.summary import mean_std
from uge.files import JSON, canonical_json
from uge.paper.ledger import PaperLedger, Spec
from uge.paper.plan import Cell, Experiment, Section
from uge.paper.specs import ORIGINAL, Copy, Federation, Unit

HALVES = {"first 5 classes": 0, "last 5 classes": 1}
Value = TypeVar("Value")


@dataclass(frozen=True)
class Measured:
    """Measurements of one cell; accuracies in percent on clean test images.

    Attributes:
        state: ``done``: every repetition is there; ``failed``: one failed; else ``missing``.
        last: Mean after the last epoch, over the repetitions that are there.
        std: Sample standard deviation of ``last``; None with one repetition.
        best: Mean of the best epochs.
        std_best: Sample standard deviation of ``best``.
        clean: Mean of the clean controls after the last epoch.
        seeds: Number of repetitions that are there.
        wanted: Number of repetitions that were asked for.
        costs: Seconds by result: of the cell's own runs, and of the protection of their images.
        reason: Cause in one sentence where the cell is not done; empty where it was simply not run.
        hardware: Machines, threads and precisions.
        recipes: Recipes of its networks.
        protections: Settings of the copies that they trained on.
        cases: Ids of its case files.
    """

    state: Literal["done", "missing", "failed"]
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


@dataclass(frozen=True)
class Entry:
    """Cell with its measurements."""

    section: Section
    cell: Cell
    measured: Measured

    @property
    def difference(self) -> float | None:
        """Ours (last epoch) minus the paper's, in points; None with other images than the paper's."""
        if self.cell.paper is None or self.measured.last is None or self.section.stand_in:
            return None
        return self.measured.last - self.cell.paper


@dataclass(frozen=True)
class ExperimentResults:
    """Table or figure with its results; for pictures of a copy, these are a state and a reason."""

    experiment: Experiment
    entries: tuple[Entry, ...]
    pictures: dict[Copy, Measured]

    def at(self, section: Section, row: str, column: str) -> Entry | None:
        """Entry at a place of a section."""
        here = (entry for entry in self.entries if entry.section is section)
        return next((entry for entry in here if (entry.cell.row, entry.cell.column) == (row, column)), None)

    @property
    def counts(self) -> dict[str, int]:
        """Number of cells (or pictures) by state."""
        states = [measured.state for measured in (*(entry.measured for entry in self.entries), *self.pictures.values())]
        return {state: states.count(state) for state in ("done", "missing", "failed")}


def read_results(experiment: Experiment, ledger: PaperLedger) -> ExperimentResults:
    """Results of an experiment in a folder of results."""
    entries = tuple(
        Entry(section, cell, _federated(cell, ledger) if cell.federations else _trained(cell, ledger))
        for section in experiment.sections
        for cell in section.cells
    )
    return ExperimentResults(experiment, entries, {copy: _drawn(copy, ledger) for copy in experiment.pictures})


def _drawn(copy: Copy, ledger: PaperLedger) -> Measured:
    if ledger.result(copy) and (ledger.place("pictures", copy) / "pictures.json").is_file():
        return Measured("done")
    return Measured("failed" if _failures(ledger, [copy]) else "missing", reason=_reason(ledger, [copy]))


def _trained(cell: Cell, ledger: PaperLedger) -> Measured:
    there = {unit: ledger.case(unit) for group in cell.units for unit in group}
    whole = [[case for unit in group if (case := there[unit])] for group in cell.units if all(map(there.get, group))]
    cases = [case for group in whole for case in group]
    copies = list(dict.fromkeys(unit.of for unit in there if unit.of.method != ORIGINAL))
    made = {copy.id: float(result["seconds"]) for copy in copies if (result := ledger.result(copy)) is not None}
    return _measured(
        ledger,
        lasts=[fmean(case.last for case in group) for group in whole],
        bests=[fmean(case.best for case in group) for group in whole],
        wanted=len(cell.units),
        missing=[unit for unit, case in there.items() if case is None],
        clean=[case.last for group in cell.control for unit in group if (case := ledger.case(unit)) is not None],
        costs={case.id: case.seconds for case in cases} | made,
        environments=[case.environment for case in cases],
        recipes=distinct({"network": case.network, **case.recipe} for case in cases),
        protections=distinct(copy.model_dump(mode="json", exclude={"images", "seed"}) for copy in copies),
        cases=distinct(case.id for case in cases),
    )


def _federated(cell: Cell, ledger: PaperLedger) -> Measured:
    there = [(run, result) for run in cell.federations if (result := ledger.result(run)) is not None]
    values = [federated_value(result["columns"], run, cell.row, cell.column) for run, result in there]
    clean_column = cell.column[:-1] + "N" if cell.column[-2:] in ("-H", "-D") else "Joint"
    control = [federated_value(result["columns"], run, cell.row, clean_column)[0] for run, result in there]
    return _measured(
        ledger,
        lasts=_known(last for last, _ in values),
        bests=_known(best for _, best in values),
        wanted=len(cell.federations),
        missing=[run for run in cell.federations if ledger.result(run) is None],
        clean=_known(control) if cell.column != clean_column else [],
        costs={run.id: float(result["seconds"]) for run, result in there},
        environments=[result["environment"] for _, result in there],
        recipes=distinct(recipe.json_dict() for run, _ in there for recipe in (run.recipe, *run.recipes.values())),
        protections=distinct({"method": run.method, "rho": run.rho, "settings": run.settings} for run, _ in there),
        cases=tuple(run.id for run, _ in there),
    )


def federated_value(columns: JSON, run: Federation, row: str, column: str) -> tuple[float | None, float | None]:
    """Number in Table 9 from the columns of a federated run: last epoch, best epoch.

    Args:
        columns: As ``uge federated`` writes them: ``joint``, ``separate-0``, ``server-0``, ``global``, ``cnn-n`` …
        run: Names the hackers' networks.
        row: The paper's row: first or last five classes, or their average.
        column: The paper's column.
    """
    own = {"Separate": ["separate-0", "separate-1"], "Server1": ["server-0"], "Server2": ["server-1"]}
    if column in own:
        # Each of them was trained on one part only, and is measured on that part's classes.
        parts = {number: columns[name]["parts"][number] for name in own[column] for number in [int(name[-1])]}
        wanted = [parts.get(HALVES[row])] if row in HALVES else list(parts.values())
        return (None if None in wanted else fmean(_known(wanted))), None
    head, _, kind = column.partition("-")
    network = {"CNN": run.hackers[0], "Res18": run.hackers[-1]}.get(head)
    values = columns[f"{network}-{kind.lower()}" if kind else column.lower()]
    return (values["parts"][HALVES[row]], None) if row in HALVES else (values["average"], values["best"])


def _measured(
    ledger: PaperLedger,
    *,
    lasts: Sequence[float],
    bests: Sequence[float],
    wanted: int,
    missing: Sequence[Spec],
    clean: Sequence[float],
    environments: Iterable[JSON],
    **more: Any,
) -> Measured:
    done = len(lasts) == wanted
    last, std = mean_std(lasts) if lasts else (None, None)
    best, std_best = mean_std(bests) if bests else (None, None)
    return Measured(
        state="done" if done else "failed" if _failures(ledger, missing) else "missing",
        last=last,
        std=std,
        best=best,
        std_best=std_best,
        clean=fmean(clean) if clean else None,
        seeds=len(lasts),
        wanted=wanted,
        reason="" if done else _reason(ledger, missing),
        hardware=distinct(
            f"{env.get('hardware')}, {env.get('threads')} threads, {env.get('precision')}" for env in environments
        ),
        **more,
    )


def _failures(ledger: PaperLedger, missing: Iterable[Spec]) -> list[str]:
    """Reasons why missing results, their copies or their teachers failed."""
    parts = [part for spec in missing for part in ((spec, spec.teacher, spec.of) if isinstance(spec, Unit) else [spec])]
    reasons = [ledger.failure(part.id, ledger.fingerprint(part)) for part in parts if part]
    return [reason for reason in reasons if reason]


def _reason(ledger: PaperLedger, missing: Iterable[Spec]) -> str:
    """First cause of a missing result: its own failure, that of its parts, or images that are not at hand."""
    images = [spec.of.images if isinstance(spec, Unit) else spec.images for spec in missing]
    absent = [ledger.images(name).get("reason") for name in dict.fromkeys(image.name for image in images)]
    return next((str(cause) for cause in (*_failures(ledger, missing), *absent) if cause), "")


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def distinct(values: Iterable[Value]) -> tuple[Value, ...]:
    """JSON values without repetitions, in order."""
    return tuple({canonical_json(value): value for value in values}.values())
