import io
import json

import pytest
from rich.console import Console

from hydraprune import reports
from hydraprune.errors import UserError


def shown(table, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_table_holds_the_means_worked_out_by_hand_and_marks_the_best(row, results):
    rows = [
        row("lwm", "erk", 0.99, robust=0.5),
        row(),
        row("hydra", "global", 0.99, 0, 0.9, 0.6),
        row("hydra", "global", 0.99, 1, 0.9, 0.8),
    ]
    table = reports.terminal_table(results(rows))
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    assert cells[0] == ["dense", "lwm erk", "hydra global"]
    assert cells[1] == ["0", "99", "99"]
    assert cells[4] == ["88.0", "50.0", "70.0±14.1*"]
    assert cells[5] == ["100.0", "56.8", "79.5±16.1"]
    assert cells[8] == ["1.0×", "69×", "69×"]


def test_the_main_job_fits_a_terminal_of_80_columns(full_report):
    text = shown(reports.terminal_table(json.loads((full_report / "results.json").read_text())))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "hydra global" in text


def test_names_in_square_brackets_are_not_markup(row, results):
    text = shown(reports.terminal_table(results([row("[red]x[/]", "erk", 0.9)], name="[bold]n")))
    assert "[red]x[/] erk" in text and "[bold]n" in text


def test_two_attacks_are_told_apart(row, results):
    text = shown(reports.terminal_table(results([row(), row(attack="aa")])), 120)
    assert "dense (aa, linf, ε = 8/255)" in text


def test_wrong_results_are_a_user_error():
    with pytest.raises(UserError, match="results: schema_version None is unknown"):
        reports.terminal_table({})
