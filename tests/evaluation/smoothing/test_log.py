"""The TSV: its layout, its figures, and that an interrupted run ends in the same one."""

from pathlib import Path

import pytest
import torch
from torch import nn

from hydraprune.attacks import Eps
from hydraprune.data import Split
from hydraprune.errors import DataError, UserError
from hydraprune.evaluation import smoothing
from hydraprune.evaluation.smoothing import Certification, Compute, Prediction, analyse, parse_radii, plot

FIELD = """idx\tlabel\tpredict\tradius\tcorrect\ttime
0\t3\t3\t0.505\t1\t0:00:01.5
20\t8\t8\t0.25\t1\t0:00:01.5
40\t1\t5\t0.8\t0\t0:00:01.5
60\t2\t-1\t0.0\t0\t0:00:01.5
"""


def table(path: Path) -> list[list[str]]:
    """Return the lines without the time, which no seed determines."""
    return [line.split("\t")[:-1] for line in path.read_text().splitlines()]


def task(count=6):
    torch.manual_seed(0)
    split = Split(torch.randint(0, 256, (count, 1, 4, 4), dtype=torch.uint8), torch.arange(count) % 2)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval(), split


def test_figures_of_a_table_made_by_hand(tmp_path):
    path = tmp_path / "field.tsv"
    path.write_text(FIELD)
    analysis = analyse(path)
    shares = {radius: analysis.certified_accuracy(radius) for radius in (0, 0.25, 0.2501, 0.505, 0.6)}
    assert shares == {0: 0.5, 0.25: 0.5, 0.2501: 0.25, 0.505: 0.25, 0.6: 0.0}
    assert analysis.average_certified_radius == pytest.approx((0.505 + 0.25) / 4)
    assert (analysis.abstained, len(analysis)) == (1, 4)
    assert analysis.certified_accuracy(Eps("110/255")) == 0.25


def test_other_orders_further_columns_and_true_or_false_are_read_too(tmp_path):
    path = tmp_path / "other.tsv"
    path.write_text("correct\tradius\tlabel\tpredict\tpABar\nTrue\t0.3\t1\t1\t0.9\nFalse\t0\t1\t0\t0.4\n")
    assert analyse(path).radii == (0.3, -1.0)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", "lacks label, predict, correct"),
        ("idx\tlabel\tpredict\tradius\tcorrect\ttime\n", "holds no image"),
        ("label\tpredict\tradius\tcorrect\n1\t1\tx\t1\n", "line 2"),
        ("label\tpredict\tradius\tcorrect\n1\t1\t0.5\t0\n", "line 2"),
        ("label\tpredict\tradius\tcorrect\n1\t1\t0.5\t1\n1\t1\n", "line 3"),
        ("label\tpredict\tradius\tcorrect\n1\t1\tnan\t1\n", "line 2"),
    ],
)
def test_what_is_no_such_table_is_one_line(tmp_path, text, answer):
    path = tmp_path / "bad.tsv"
    path.write_text(text)
    with pytest.raises(DataError, match=answer):
        analyse(path)
    with pytest.raises(DataError, match="cannot read"):
        analyse(tmp_path / "nowhere.tsv")


def test_the_log_has_the_layout_of_the_field_and_says_what_the_rows_say(tmp_path):
    model, split = task()
    path = tmp_path / "logs" / "a.tsv"
    rows = smoothing.certify(model, split, Certification(n=500), log=path)
    lines = path.read_text().splitlines()
    assert lines[0] == "idx\tlabel\tpredict\tradius\tcorrect\ttime"
    assert [line.split("\t")[:5] for line in lines[1:]] == [
        [str(row.index), str(row.label), str(row.predict), f"{row.radius:.6f}", str(int(row.correct))] for row in rows
    ]
    assert all(line.split("\t")[5].startswith("0:00:0") for line in lines[1:])
    assert analyse(path) == analyse(rows)


class Stop(Exception):
    pass


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_run_interrupted_again_and_again_ends_in_the_same_table(tmp_path, adaptive):
    model, split = task()
    certification = Certification(n=1000, radii=parse_radii("0,0.25"), adaptive=adaptive)
    whole, pieces = tmp_path / "whole.tsv", tmp_path / "pieces.tsv"
    expected = smoothing.certify(model, split, certification, log=whole)
    calls = 0
    stopped = 0

    def check():
        nonlocal calls
        calls += 1
        if calls % 7 == 0:
            raise Stop

    for _ in range(100):
        try:
            rows = smoothing.certify(
                model, split, certification, log=pieces, check=check, compute=Compute(batch_size=300)
            )
            break
        except Stop:
            stopped += 1
            with pieces.open("a") as file:  # as if the power had gone while a line was written
                file.write("5\t1")
            with pieces.with_name("pieces.tsv.run").open("a") as file:
                file.write('{"idx": 5')
    assert stopped > 0
    assert table(pieces) == table(whole)
    assert [row.samples for row in rows] == [row.samples for row in expected]
    before = pieces.read_bytes()
    again = smoothing.certify(model, split, certification, log=pieces, check=check)
    assert pieces.read_bytes() == before
    assert analyse(again) == analyse(expected)


def test_a_log_of_something_else_is_never_continued(tmp_path):
    model, split = task()
    path = tmp_path / "a.tsv"
    smoothing.certify(model, split, Certification(n=100), log=path)
    before = path.read_bytes()
    other = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    for network, certification, options, answer in (
        (model, Certification(n=100, sigma=0.5), {}, r"sigma \(0.25, now 0.5\)"),
        (model, Certification(n=100, seed=1), {}, r"seed \(0, now 1\)"),
        (other, Certification(n=100), {}, "weights"),
        (model, Certification(n=100), {"indices": [1, 2]}, "images"),
        (model, Certification(n=100), {"compute": Compute(bf16=True)}, "precision"),
        (model, Certification(n=100), {"identity": {"target": "b"}}, "target"),
    ):
        with pytest.raises(UserError, match=answer):
            smoothing.certify(network, split, certification, log=path, **options)
    with pytest.raises(UserError, match=r"another kind \(certify, now predict\), .*n0 \(100, now none\)"):
        smoothing.predict(model, split, Prediction(n=100), log=path)
    assert path.read_bytes() == before


def test_a_finished_log_is_no_certificate_of_a_network_that_computes_something_else(tmp_path):
    _, split = task()
    path = tmp_path / "a.tsv"
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2)]
    smoothing.certify(nn.Sequential(*layers).eval(), split, Certification(n=100), log=path)
    before = path.read_bytes()
    layers[2] = nn.Tanh()
    with pytest.raises(UserError, match=r"another network \(\w+, now \w+\); name another file"):
        smoothing.certify(nn.Sequential(*layers).eval(), split, Certification(n=100), log=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", ["garbage", "[]", '{"idx": 0}', '{"idx": [], "samples": 5}', "[" * 100_000])
def test_a_damaged_list_of_samples_is_one_line_and_stays_as_it_is(tmp_path, line):
    model, split = task()
    path, side = tmp_path / "a.tsv", tmp_path / "a.tsv.run"
    smoothing.certify(model, split, Certification(n=100), log=path, indices=[0, 1])
    side.write_text(side.read_text() + line + "\n")
    before = path.read_bytes(), side.read_bytes()
    with pytest.raises(UserError, match=r"a\.tsv\.run', line 4: .* name another file") as refused:
        smoothing.certify(model, split, Certification(n=100), log=path, indices=[0, 1])
    assert len(str(refused.value)) < 500
    assert (path.read_bytes(), side.read_bytes()) == before


def test_a_folder_in_the_place_of_the_list_of_samples_is_one_line(tmp_path):
    model, split = task()
    (tmp_path / "a.tsv.run").mkdir()
    with pytest.raises(UserError, match=r"cannot read '.*a\.tsv\.run': Is a directory"):
        smoothing.certify(model, split, Certification(n=100), log=tmp_path / "a.tsv")


def test_a_table_that_is_not_ours_is_never_written_to(tmp_path):
    model, split = task()
    path = tmp_path / "field.tsv"
    path.write_text(FIELD)
    with pytest.raises(UserError, match="is there already"):
        smoothing.certify(model, split, Certification(n=100), log=path)
    assert path.read_text() == FIELD


def test_predictions_are_logged_and_resumed_too(tmp_path):
    model, split = task()
    path = tmp_path / "p.tsv"
    rows = smoothing.predict(model, split, Prediction(n=100), log=path)
    assert path.read_text().startswith("idx\tlabel\tpredict\tcorrect\ttime\n")
    assert [row.predict for row in smoothing.predict(model, split, Prediction(n=100), log=path)] == [
        row.predict for row in rows
    ]


def test_the_curve_falls_just_behind_each_proven_radius(tmp_path):
    path = tmp_path / "field.tsv"
    path.write_text(FIELD)
    figure = plot({"one": analyse(path)})
    x, y = figure.axes[0].lines[0].get_data()
    assert list(x) == [0.0, 0.25, 0.505, 0.505]
    assert list(y) == [50.0, 50.0, 25.0, 0.0]
    figure.savefig(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000
