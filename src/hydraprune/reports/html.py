"""report.html: one self-contained page without scripts or requests, for phones and desks, light and dark."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from hydraprune.reports.aggregate import Group, group_rows
from hydraprune.reports.differences import differences, measures
from hydraprune.reports.load import Results
from hydraprune.reports.markup import description_list, escape, html_table, paragraph, section
from hydraprune.reports.panels import (
    compression_panel,
    examples_panel,
    histogram_panel,
    layers_panel,
    training_panel,
)
from hydraprune.reports.tables import details_table, difference_table, main_table
from hydraprune.reports.wording import UNFINISHED, facts, noise_note, recipe_yaml, remarks, seeds_text, verdict

MOST_ROWS_OPEN = 12
# Nothing is loaded but what the file itself holds, whatever a run's names may contain.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render_html(results: Results, folder: Path) -> str:
    """Return the whole report as HTML, every string of the run escaped; figures come from the stages in `folder`."""
    groups = group_rows(results.rows)
    primary = [group for group in groups if group.evaluation == groups[0].evaluation]
    body = "\n".join(
        (
            _header(results, primary),
            section("Results", _results(results, groups)),
            *_scope(groups, primary),
            section("Robust accuracy against compression", compression_panel(primary)),
            *_differences(primary),
            section("Training", training_panel(folder, primary)),
            section("Weights kept in each layer", layers_panel(primary)),
            section("Which weights were kept", histogram_panel(folder, primary)),
            section("Adversarial examples", examples_panel(folder, primary)),
            section("Every network", _every_network(results)),
            section("Warnings", _warnings(remarks(results, groups))),
            section("Recipe", _recipe(results)),
            section("Provenance", description_list([("command", results.command), *results.provenance])),
        )
    )
    css = resources.files("hydraprune.reports").joinpath("templates/report.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(results.name)}: hydraprune report</title>
<style>
{css}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _header(results: Results, primary: Sequence[Group]) -> str:
    parts = [
        paragraph("hydraprune report", "kicker"),
        f"<h1>{escape(results.name)}</h1>",
        paragraph(verdict(primary), "verdict"),
        *([] if results.complete else [paragraph(UNFINISHED, "note")]),
    ]
    return "<header>\n" + "\n".join(parts) + "\n</header>"


def _results(results: Results, groups: Sequence[Group]) -> str:
    note = f"Each row: {seeds_text(groups)}."
    if any(group.best for group in groups):
        note += " ★ marks the best robust accuracy of each sparsity."
    table = html_table(main_table(groups), "Results, one row for each network")
    return f"{paragraph(note)}\n{table}\n{description_list(facts(results, groups))}"


def _scope(groups: Sequence[Group], primary: Sequence[Group]) -> list[str]:
    if len(groups) == len(primary):
        return []
    return [
        paragraph(
            f"The verdict and the figures are about the first evaluation: {primary[0].evaluation.name}.", "note"
        )
    ]


def _differences(primary: Sequence[Group]) -> list[str]:
    """Return the section on noise for a comparison; nothing where there is only one way of pruning."""
    if len({group.way for group in primary if not group.dense}) < 2:
        return []
    parts = []
    for measure in measures(primary):
        found = differences(primary, measure)
        parts.append(paragraph(noise_note(found, measure)))
        table = difference_table(found, measure)
        if table is not None:
            opened = " open" if len(found) <= MOST_ROWS_OPEN else ""
            title = f"Differences in {measure} accuracy, and whether they exceed the noise of the seeds"
            summary = f"The comparisons of {measure} accuracy"
            parts.append(f"<details{opened}>\n<summary>{summary}</summary>\n{html_table(table, title)}\n</details>")
    return [section("Which differences exceed the noise", "\n".join(parts))]


def _warnings(sentences: Sequence[str]) -> str:
    if not sentences:
        return paragraph("None.")
    return "<ul>\n" + "\n".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "\n</ul>"


def _every_network(results: Results) -> str:
    table = html_table(details_table(results), "Every network, one row for each seed")
    opened = " open" if len(results.rows) <= MOST_ROWS_OPEN else ""
    count = f"{len(results.rows)} network{'' if len(results.rows) == 1 else 's'}, one row for each seed"
    return f"<details{opened}>\n<summary>{count}</summary>\n{table}\n</details>"


def _recipe(results: Results) -> str:
    text = escape(recipe_yaml(results))
    return (
        "<details>\n<summary>The recipe as it was run, every default written out</summary>\n"
        f'<pre tabindex="0" role="region" aria-label="Recipe"><code>{text}</code></pre>\n</details>'
    )
