"""Writing the report of a run."""

from dataclasses import dataclass
from pathlib import Path

from hydraprune.io import write_text
from hydraprune.paths import RunPaths
from hydraprune.reports.html import render_html
from hydraprune.reports.load import read_results
from hydraprune.reports.markdown import render_markdown


@dataclass(frozen=True)
class ReportPaths:
    """The two forms of a report."""

    markdown: Path
    html: Path


def write(folder: Path) -> ReportPaths:
    """Write report.md and report.html of the run in `folder`, each atomically; the same files give the same bytes.

    Reads results.json and the files of the stages that it names. A stage file that is missing or broken costs its
    figure, and the report says so.

    Raises: `UserError` in one line for a results.json that is missing, broken or of an unknown schema, or a folder
    that cannot be written.
    """
    results = read_results(folder)
    paths = RunPaths(folder)
    markdown, html = render_markdown(results), render_html(results, folder)
    write_text(paths.report_markdown, markdown)
    write_text(paths.report_html, html)
    return ReportPaths(paths.report_markdown, paths.report_html)
