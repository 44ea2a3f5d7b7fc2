"""What the user asked ``uge reproduce`` for, checked, and the pages that answer it. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from uge.errors import UsageError
from uge.files import JSON
from uge.paper.cells import Experiment
from uge.paper.ledger import PaperLedger
from uge.paper.plan import Plan, plan
from uge.paper.render import summary_line, write_all
from uge.paper.results import look
from uge.paper.scale import DATA, Scale, parse_data, scale
from uge.paper.specifications import Lists
from uge.paper.specs import Unit
from uge.paper.tables import experiments

OUT = Path("reproduce-out")


@dataclass(frozen=True)
class Request:
    """Experiments at a scale, and where their results go.

    Attributes:
        wanted: The experiments.
        scale: How much is done.
        folder: Results.
        sources: Data set to its source.
        plan: What has to be there.
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
        workers: int = 1,
    ) -> Request:
        """A request from flags.

        Raises:
            UnknownNameError: There is no such table, scale or data set.
            UsageError: A number or pattern is wrong.
        """
        if workers < 1:
            raise UsageError(f"--workers must be at least 1, got {workers}")
        size = scale(scale_name).changed(limit=limit, epochs=epochs, seeds=seeds)
        if encoder is not None:
            size = size.model_copy(update={"protect": {**size.protect, "encoder": encoder}})
        return cls.at(what, size, parse_data(data), out or OUT / scale_name, only)

    @classmethod
    def at(cls, what: str, size: Scale, given: dict[str, str], folder: Path, only: tuple[str, ...] = ()) -> Request:
        """A request at a scale of one's own; see :meth:`checked`."""
        wanted = tuple(experiments(what, Lists(size, given)))
        names = [*DATA, size.stand_in] if size.stand_in else list(DATA)
        sources = {name: size.source(name, given) for name in names}
        return cls(wanted, size, folder, sources, plan(wanted, only, size.pictures))

    def describe(self) -> JSON:
        """What would be done, for ``--dry-run``."""
        kept = PaperLedger(self.folder)
        parts = [spec for stage in self.plan.stages for spec in stage]
        there = [kept.case(one) if isinstance(one, Unit) else kept.result(one) for one in parts]
        pending = [spec.id for spec, found in zip(parts, there, strict=True) if found is None]
        return {
            "experiments": [one.name for one in self.wanted],
            "scale": self.scale.model_dump(mode="json"),
            "folder": str(self.folder),
            "parts": len(parts),
            "pending": len(pending),
            "ids": pending,
        }

    def write(self) -> JSON:
        """Write the pages of every experiment, and say in which state it is.

        Raises:
            StorageError: They cannot be written.
        """
        kept, found = (
            PaperLedger(self.folder),
            [look(experiment, PaperLedger(self.folder)) for experiment in self.wanted],
        )
        files = [str(path) for shown in found for path in write_all(shown, self.scale, kept)]
        return {
            "folder": str(self.folder),
            "states": {shown.experiment.name: shown.counts for shown in found},
            "summary": [summary_line(shown) for shown in found],
            "files": files,
        }
