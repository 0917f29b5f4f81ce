"""report.md: the facts of the report for people who read text."""

import re
from collections.abc import Sequence

from hydraprune.reports.aggregate import group_rows
from hydraprune.reports.differences import differences, measures
from hydraprune.reports.links import artefact_href
from hydraprune.reports.load import Results
from hydraprune.reports.tables import Cell, Table, details_table, difference_table, layer_table, main_table
from hydraprune.reports.wording import facts, noise_note, recipe_yaml, remarks, seeds_text, verdict

_SPECIAL = re.compile(r"([\\`*_\[\]<>#|~&$])")


def render_markdown(results: Results) -> str:
    """Return the whole report as GitHub-flavoured Markdown, every string of the run escaped."""
    groups = group_rows(results.rows)
    primary = [group for group in groups if group.evaluation == groups[0].evaluation]
    parts = [
        f"# {escape(results.name)}",
        escape(verdict(primary)),
        "## Results",
        f"Each row: {seeds_text(groups)}. Bold: best robust accuracy at its sparsity.",
        _table(main_table(groups)),
        "\n".join(f"- {escape(term)}: {escape(text)}" for term, text in facts(results, groups)),
    ]
    if len({group.way for group in primary if not group.dense}) > 1:
        parts += ["## Which differences exceed the noise"]
        for measure in measures(primary):
            found = differences(primary, measure)
            table = difference_table(found, measure)
            parts += [escape(noise_note(found, measure)), *([] if table is None else [_table(table)])]
    layers = layer_table(primary)
    if layers is not None:
        parts += ["## Weights kept in each layer", "At the highest sparsity, in per cent, all seeds.", _table(layers)]
    parts += ["## Every network", _table(details_table(results))]
    warnings = remarks(results, groups)
    parts += ["## Warnings", "\n".join(f"- {escape(text)}" for text in warnings) or "None."]
    parts += ["## Recipe", fenced(recipe_yaml(results), "yaml")]
    parts += ["## Provenance", f"Command: {_fenced_inline(results.command)}"]
    parts += ["\n".join(f"- {escape(key)}: {escape(value)}" for key, value in results.provenance) or "None recorded."]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Return one line of text so that Markdown and HTML show it as it is."""
    return _SPECIAL.sub(r"\\\1", text)


def _table(table: Table) -> str:
    lines = [
        _line([escape(column.title) for column in table.columns]),
        _line(["---:" if column.numeric else "---" for column in table.columns]),
        *(_line([_cell(cell) for cell in row]) for row in table.rows),
    ]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    href = artefact_href(cell.file)
    if href is not None:
        return f"[{text}]({href})"
    return f"**{text}**" if cell.marked else text


def fenced(text: str, language: str) -> str:
    """Return text as a code block that nothing in it can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _fenced_inline(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}" if longest else f"{fence}{text}{fence}"
