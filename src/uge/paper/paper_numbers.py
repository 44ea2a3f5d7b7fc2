"""Printed numbers of the paper (CVPR 2024, Tables 1, 2, 3, 7, 8, 9), as data. Needs no torch."""

import functools
import json
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class PaperTable:
    """Table of numbers as printed.

    Attributes:
        columns: Names of the columns.
        rows: Row name to one number a column: test accuracy in percent, None where the paper has none.
    """

    columns: tuple[str, ...]
    rows: dict[str, tuple[float | None, ...]]

    def number(self, row: str, column: str) -> float | None:
        """Number in the paper; None where it gives none, or has no such row or column."""
        if row not in self.rows or column not in self.columns:
            return None
        return self.rows[row][self.columns.index(column)]


NOWHERE = PaperTable((), {})
"""Stands for numbers that the paper shows as a drawing, or not at all."""


@functools.cache
def paper_table(name: str, part: str = "") -> PaperTable:
    """Table of the paper.

    Args:
        name: ``"table1"`` and so on.
        part: The data set, as the paper writes it, where a table has one block for each.

    Raises:
        KeyError: There is no such table or part.
    """
    table = json.loads((resources.files("uge.paper") / "paper_tables.json").read_text(encoding="utf-8"))[name]
    table = table[part] if part else table
    return PaperTable(tuple(table["columns"]), {row: tuple(values) for row, values in table["rows"].items()})
