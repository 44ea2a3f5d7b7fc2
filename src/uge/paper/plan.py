"""What experiments need, shared parts once. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

from uge.errors import UsageError
from uge.paper.cells import Cell, Experiment, Section
from uge.paper.ledger import Spec
from uge.paper.specs import ORIGINAL, Copy, Federation, Unit


@dataclass(frozen=True)
class Plan:
    """What an experiment needs, each part once: copies, then networks that ask nobody, then the rest.

    Attributes:
        pictured: Copies whose images are shown, and how many.
        copies: Copies to publish.
        alone: Runs that need no trained network.
        taught: Runs that ask a trained authorised network.
        federations: Federated runs.
    """

    pictured: tuple[tuple[Copy, int], ...]
    copies: tuple[Copy, ...]
    alone: tuple[Unit, ...]
    taught: tuple[Unit, ...]
    federations: tuple[Federation, ...]

    @property
    def stages(self) -> tuple[Sequence[Spec], ...]:
        """What may be done side by side."""
        shown = [copy for copy, _ in self.pictured]
        return tuple(dict.fromkeys([*self.copies, *shown])), self.alone, self.taught, self.federations


def chosen(section: Section, cell: Cell, patterns: Sequence[str]) -> bool:
    """Whether a cell is asked for: a pattern matches ``SECTION/ROW/COLUMN`` or is part of it, in any case."""
    name = f"{section.title}/{cell.row}/{cell.column}".lower()
    return not patterns or any(fnmatch(name, one.lower()) or one.lower() in name for one in patterns)


def plan(wanted: Iterable[Experiment], patterns: Sequence[str] = (), pictures: int = 6) -> Plan:
    """What experiments need, shared parts once.

    Raises:
        UsageError: Patterns were given, and no cell matches any.
    """
    experiments = list(wanted)
    cells = [
        c for one in experiments for section in one.sections for c in section.cells if chosen(section, c, patterns)
    ]
    if patterns and not cells:
        raise UsageError(f"no cell matches {', '.join(patterns)}; give a part of 'DATA/ROW/COLUMN', see the tables")
    units = list(dict.fromkeys(unit for cell in cells for unit in cell.all_units))
    shown = [] if patterns else [(copy, pictures) for one in experiments for copy in one.pictures]
    return Plan(
        pictured=tuple(shown),
        copies=tuple(dict.fromkeys(unit.of for unit in units if unit.of.method != ORIGINAL)),
        alone=tuple(unit for unit in units if unit.teacher is None),
        taught=tuple(unit for unit in units if unit.teacher is not None),
        federations=tuple(dict.fromkeys(run for cell in cells for run in cell.federations)),
    )
