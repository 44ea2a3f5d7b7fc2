"""Case files in, one self-contained HTML page and plain tables out. Needs no torch."""

from uge.report.compare import write_comparison
from uge.report.page import write_report
from uge.report.tables import Row, rows, text_table

__all__ = ["Row", "rows", "text_table", "write_comparison", "write_report"]
