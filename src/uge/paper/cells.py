"""What a table is made of: cells, blocks, experiments. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from uge.paper.specs import Copy, Federation, Unit

Seeds = tuple[tuple[Unit, ...], ...]
"""For every repetition the runs whose mean is one number."""


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        row: Name of its row.
        column: Name of its column.
        paper: The paper's number, in percent; None where it has none.
        units: The runs behind it; empty for a federated cell.
        control: Clean runs of the same architecture; empty where the cell is itself clean.
        federations: For Table 9: one federated run per repetition.
    """

    row: str
    column: str
    paper: float | None
    units: Seeds = ()
    control: Seeds = ()
    federations: tuple[Federation, ...] = ()

    @property
    def all_units(self) -> Iterator[Unit]:
        """Every run that the cell needs, teachers first."""
        for unit in (one for seeds in (self.units, self.control) for group in seeds for one in group):
            yield from [unit.teacher, unit] if unit.teacher else [unit]


@dataclass(frozen=True)
class Section:
    """One block of a table: the cells of one data set.

    Attributes:
        title: What stands above it.
        rows: Names, in order.
        columns: Names, in order.
        cells: Those that exist.
        added: Rows that are not in the paper's table; ours, or its methods on data that it did not try.
        stand_in: Name of the images that stand in for the paper's; empty where they are the paper's.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[Cell, ...]
    added: frozenset[str] = frozenset()
    stand_in: str = ""

    def cell(self, row: str, column: str) -> Cell | None:
        """The cell at a place, if there is one."""
        return next((one for one in self.cells if (one.row, one.column) == (row, column)), None)


@dataclass(frozen=True)
class Experiment:
    """A table or figure.

    Attributes:
        name: ``table1`` and so on.
        title: As the paper calls it.
        sections: Blocks of numbers.
        drawn: Whether the columns are drawn over the rows as well.
        pictures: Copies whose images are shown.
    """

    name: str
    title: str
    sections: tuple[Section, ...] = ()
    drawn: bool = False
    pictures: tuple[Copy, ...] = ()
