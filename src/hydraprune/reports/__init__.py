"""Tables, plots and the self-contained HTML report."""

from hydraprune.reports.report import ReportPaths, write
from hydraprune.reports.terminal import terminal_table

__all__ = ["ReportPaths", "terminal_table", "write"]
