"""The main table for the terminal."""

from collections.abc import Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from hydraprune.reports.aggregate import Group, group_rows
from hydraprune.reports.differences import differences
from hydraprune.reports.load import parse_results
from hydraprune.reports.wording import delivered_percent, file_size, percent, ratio, seeds_text, sparsity_percent

# Ten columns in the 80 characters that a terminal has at least: hence short titles and only the names may wrap.
_CERTIFIED = "certi-\nfied\n%"
_TITLES = (
    "spars.\nasked\n%",
    "spars.\ndeliv.\n%",
    "benign\n%",
    "robust\n%",
    "preserved\nrobust\n%",
    _CERTIFIED,
    "weights\nkept",
    "size",
    "smaller",
)


def terminal_table(results: Mapping[str, object]) -> Table:
    """Return the table of a run, dense first: mean ± sample std over seeds by way of pruning and sparsity.

    Args:
        results: the content of a results.json of schema 1.

    Raises: `UserError` where `results` is not that.
    """
    parsed = parse_results(results, "results")
    groups = group_rows(parsed.rows)
    evaluations = list(dict.fromkeys(group.evaluation for group in groups))
    threat = "; ".join(f"{evaluation.name}, {evaluation.n:,} test images" for evaluation in evaluations)
    caption = "robust: empirical, an upper bound"
    if any(group.certified for group in groups):
        caption += "; certified: proven, a lower bound"
    if any(group.best for group in groups):
        caption += "; * best robust accuracy at its sparsity"
    if found := differences([group for group in groups if group.evaluation == evaluations[0]]):
        sure = sum(one.verdict == "yes" for one in found)
        caption += (
            f"\n{sure} of {len(found)} differences in one thing only exceed the noise of the seeds; see the report"
        )
    # Text objects throughout: a name in square brackets is a name, not markup.
    table = Table(
        title=Text(f"{parsed.name}: {threat}; {seeds_text(groups)}"),
        caption=Text(caption),
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    table.add_column("network")
    proven = any(group.certified for group in groups)
    for title in _TITLES if proven else [title for title in _TITLES if title != _CERTIFIED]:
        table.add_column(title, justify="right", no_wrap=True)
    for i, group in enumerate(groups):
        if i and groups[i - 1].block != group.block:
            table.add_section()
        attack = f" ({group.evaluation.name})" if len(evaluations) > 1 else ""
        table.add_row(Text(f"{group.network}{attack}"), *_cells(group, proven))
    return table


def _cells(group: Group, proven: bool) -> list[Text]:
    robust = percent(group.robust)
    cells = [
        Text(sparsity_percent(group.sparsity)),
        Text(delivered_percent(group.over(lambda row: row.delivered).mean)),
        Text(percent(group.benign)),
        Text(f"{robust}*", style="bold") if group.best else Text(robust),
        Text(percent(group.preserved_robust)),
        *([Text(percent(group.certified))] if proven else []),
        Text(f"{group.over(lambda row: row.weights_kept).mean:,.0f}"),
        Text(file_size(group.over(lambda row: row.size_bytes).mean)),
        Text(ratio(group.byte_ratio)),
    ]
    for cell in cells[2:6]:
        cell.plain = cell.plain.replace(" ± ", "±")
    return cells
