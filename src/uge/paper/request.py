"""Request for tables of the paper, checked, and the pages that answer it. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uge.errors import UsageError
from uge.files import JSON
from uge.paper.ledger import PaperLedger
from uge.paper.plan import Experiment, Plan, plan
from uge.paper.render import write_pages
from uge.paper.results import read_results
from uge.paper.scale import Scale, parse_data, scale
from uge.paper.specs import Unit
from uge.paper.tables import TableSpecs, experiments


@dataclass(frozen=True)
class Request:
    """Experiments at a scale, and the folder of their results.

    Attributes:
        wanted: The experiments.
        scale: Sizes, recipes and seeds.
        folder: Folder of results.
        sources: Sources by data set.
        plan: Parts that have to be there.
    """

    wanted: tuple[Experiment, ...]
    scale: Scale
    folder: Path
    sources: dict[str, str]
    plan: Plan

    @classmethod
    def checked(
        cls,
        what: str,
        scale_name: str,
        data: tuple[str, ...] = (),
        out: Path | None = None,
        only: tuple[str, ...] = (),
        *,
        seeds: int | None = None,
        limit: int | None = None,
        epochs: int | None = None,
        encoder: str | None = None,
        cnn_recipe: str | None = None,
        workers: int = 1,
    ) -> Request:
        """Request from flags.

        Raises:
            UnknownNameError: There is no such table, scale, recipe or data set.
            UsageError: A number or pattern is wrong.
        """
        if workers < 1:
            raise UsageError(f"--workers must be at least 1, got {workers}")
        size = scale(scale_name).changed(limit=limit, epochs=epochs, seeds=seeds, cnn_recipe=cnn_recipe)
        if encoder is not None:
            size = size.model_copy(update={"protect": {**size.protect, "encoder": encoder}})
        return cls.at(what, size, parse_data(data), out or Path("reproduce-out", scale_name), only)

    @classmethod
    def at(cls, what: str, size: Scale, given: dict[str, str], folder: Path, only: tuple[str, ...] = ()) -> Request:
        """Request at a scale that is in no table; see :meth:`checked`."""
        wanted = tuple(experiments(what, TableSpecs(size, given)))
        return cls(wanted, size, folder, size.sources(given), plan(wanted, only, size.pictures))

    def describe(self) -> JSON:
        """Parts that would be run, for ``--dry-run``."""
        ledger = PaperLedger(self.folder)
        parts = [spec for stage in self.plan.stages for spec in stage]
        pending = [
            part.id for part in parts if not (ledger.case(part) if isinstance(part, Unit) else ledger.result(part))
        ]
        return {
            "experiments": [experiment.name for experiment in self.wanted],
            "scale": self.scale.model_dump(mode="json"),
            "folder": str(self.folder),
            "parts": len(parts),
            "pending": len(pending),
            "ids": pending,
        }

    def write(self) -> JSON:
        """Write the pages of every experiment; returns their states and files.

        Raises:
            StorageError: They cannot be written.
        """
        ledger = PaperLedger(self.folder)
        results = [read_results(experiment, ledger) for experiment in self.wanted]
        states = {result.experiment.name: result.counts for result in results}
        return {
            "folder": str(self.folder),
            "states": states,
            "summary": [
                f"{name}: " + ", ".join(f"{count} {state}" for state, count in counts.items())
                for name, counts in states.items()
            ],
            "files": [str(path) for result in results for path in write_pages(result, self.scale, ledger)],
        }
