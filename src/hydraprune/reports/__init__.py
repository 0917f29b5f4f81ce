"""Tables, plots and the self-contained HTML report."""

from hydraprune.reports.inspection import inspection_tables, write_inspection
from hydraprune.reports.model_folder import ModelFolder, write_model_folder
from hydraprune.reports.report import ReportPaths, write
from hydraprune.reports.terminal import terminal_table

__all__ = [
    "ModelFolder",
    "ReportPaths",
    "inspection_tables",
    "terminal_table",
    "write",
    "write_inspection",
    "write_model_folder",
]
