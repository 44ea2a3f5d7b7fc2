"""Looking cells of a section up."""

from uge.paper.plan import Cell, Section


def cell_at(section: Section, row: str, column: str) -> Cell:
    """The only cell at a place."""
    (cell,) = (cell for cell in section.cells if (cell.row, cell.column) == (row, column))
    return cell
