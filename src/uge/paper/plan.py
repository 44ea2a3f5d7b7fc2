"""Tables as cells over training runs, and the plan of all runs that tables need, each once. Needs no torch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

from uge.errors import UsageError
from uge.paper.ledger import Spec
from uge.paper.specs import ORIGINAL, Copy, Federation, Unit


@dataclass(frozen=True)
class Cell:
    """Number in a table.

    Attributes:
        row: Name of its row.
        column: Name of its column.
        paper: The paper's number, in percent; None where it has none.
        units: For every repetition the runs whose mean it is; empty for a federated cell.
        control: Clean runs of the same architecture, likewise; empty where the cell is itself clean.
        federations: For Table 9: one federated run per repetition.
    """

    row: str
    column: str
    paper: float | None
    units: tuple[tuple[Unit, ...], ...] = ()
    control: tuple[tuple[Unit, ...], ...] = ()
    federations: tuple[Federation, ...] = ()

    @property
    def all_units(self) -> Iterator[Unit]:
        """Runs that the cell needs, teachers first."""
        for group in (*self.units, *self.control):
            for unit in group:
                yield from [unit.teacher, unit] if unit.teacher else [unit]


@dataclass(frozen=True)
class Section:
    """Block of a table: the cells of one data set.

    Attributes:
        title: Title of the block.
        rows: Names, in order.
        columns: Names, in order.
        cells: Cells that exist.
        added: Rows that are not in the paper's table; ours, or its methods on data that it did not try.
        stand_in: Name of the images that stand in for the paper's; empty where they are the paper's.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[Cell, ...]
    added: frozenset[str] = frozenset()
    stand_in: str = ""


@dataclass(frozen=True)
class Experiment:
    """Table or figure.

    Attributes:
        name: ``table1`` and so on.
        title: Title after the paper's.
        sections: Blocks of numbers.
        drawn: True where the columns are drawn over the rows as well.
        pictures: Copies whose images are shown.
    """

    name: str
    title: str
    sections: tuple[Section, ...] = ()
    drawn: bool = False
    pictures: tuple[Copy, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Parts that experiments need, each once: copies, then networks without a teacher, then the rest.

    Attributes:
        pictured: Copies whose images are shown, and how many images.
        copies: Copies to publish.
        alone: Runs that need no trained network.
        taught: Runs that need a trained authorised network.
        federations: Federated runs.
    """

    pictured: tuple[tuple[Copy, int], ...]
    copies: tuple[Copy, ...]
    alone: tuple[Unit, ...]
    taught: tuple[Unit, ...]
    federations: tuple[Federation, ...]

    @property
    def stages(self) -> tuple[Sequence[Spec], ...]:
        """Parts that may be done side by side, stage by stage."""
        copies = dict.fromkeys([*self.copies, *(copy for copy, _ in self.pictured)])
        return tuple(copies), self.alone, self.taught, self.federations


def plan(wanted: Iterable[Experiment], patterns: Sequence[str] = (), pictures: int = 6) -> Plan:
    """Plan of the parts that experiments need.

    Args:
        wanted: The experiments.
        patterns: Only cells whose ``SECTION/ROW/COLUMN`` matches a pattern or has it as a part, in any case.
        pictures: Number of images shown of each pictured copy.

    Raises:
        UsageError: Patterns were given, and no cell matches any.
    """
    experiments = list(wanted)
    cells = [
        cell
        for experiment in experiments
        for section in experiment.sections
        for cell in section.cells
        for name in [f"{section.title}/{cell.row}/{cell.column}".lower()]
        if not patterns or any(fnmatch(name, pattern) or pattern in name for pattern in map(str.lower, patterns))
    ]
    if patterns and not cells:
        raise UsageError(f"no cell matches {', '.join(patterns)}; give a part of 'DATA/ROW/COLUMN', see the tables")
    units = list(dict.fromkeys(unit for cell in cells for unit in cell.all_units))
    return Plan(
        pictured=tuple((copy, pictures) for experiment in experiments for copy in experiment.pictures if not patterns),
        copies=tuple(dict.fromkeys(unit.of for unit in units if unit.of.method != ORIGINAL)),
        alone=tuple(unit for unit in units if unit.teacher is None),
        taught=tuple(unit for unit in units if unit.teacher is not None),
        federations=tuple(dict.fromkeys(run for cell in cells for run in cell.federations)),
    )
