import base64
import json
import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from hydraprune import reports
from hydraprune.errors import UserError
from hydraprune.reports.aggregate import group_rows
from hydraprune.reports.load import read_results
from hydraprune.reports.panels import examples_panel, histogram_panel, training_panel

EVIL = "<script>alert(1)</script>\"'&|`$_*[x](javascript:1)"


class Page(HTMLParser):
    """Collects tags, attributes and the text of a page; complains of tags that do not close in order."""

    VOID = frozenset(("meta", "img", "source", "br"))

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def groups_of(run):
    return group_rows(read_results(run).rows)


def page_of(run):
    return Page((run / "report.html").read_text(encoding="utf-8"))


def small(row, **changes):
    return [row(), row("hydra", "global", 0.99, robust=0.8, **changes), row("lwm", "global", 0.99, robust=0.7)]


def test_report_is_two_files_and_the_same_bytes_each_time(make_run, row):
    run = make_run([row(), row("hydra", "erk", 0.9)], stages=False)
    paths = reports.write(run)
    assert paths == reports.ReportPaths(run / "report.md", run / "report.html")
    before = paths.html.read_bytes(), paths.markdown.read_bytes()
    reports.write(run)
    assert (paths.html.read_bytes(), paths.markdown.read_bytes()) == before
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_page_has_every_section_in_order_and_asks_for_nothing_outside(full_report):
    page = page_of(full_report)
    text = "".join(page.text)
    titles = [
        "Results", "Robust accuracy against compression", "Training", "Weights kept in each layer",
        "Which weights were kept", "Adversarial examples", "Every network", "Warnings", "Recipe", "Provenance",
    ]  # fmt: skip
    assert [text.index(f"\n{title}\n") for title in titles] == sorted(text.index(f"\n{title}\n") for title in titles)
    assert "Left out" not in text
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    sources = [image["src"] for image in page.all("img")] + [source["srcset"] for source in page.all("source")]
    assert all(source.startswith(("data:image/svg+xml;base64,", "data:image/png;base64,")) for source in sources)
    svgs = [base64.b64decode(source.partition(",")[2]).decode() for source in sources if "svg" in source]
    assert not any(re.search(r'href="(?!#)|url\((?!#)|@import', svg) for svg in svgs)
    assert all(image["alt"] for image in page.all("img"))
    assert all(anchor["href"].startswith("artefacts/") for anchor in page.all("a"))


def test_table_of_the_page_holds_the_means_worked_out_by_hand(make_run, row):
    rows = [row(robust=0.8, seed=0), row(robust=0.9, seed=1)]
    rows += [row("hydra", "global", 0.99, 0, 0.9, 0.6, 0.8), row("hydra", "global", 0.99, 1, 0.9, 0.81, 0.9)]
    run = make_run(rows, stages=False)
    reports.write(run)
    # robust (60 + 81) / 2 with std 21 / √2; preserved (75 + 90) / 2 with std 15 / √2; 2,230 bytes of 153,000
    expected = [
        "hydra global",
        "99",
        "70.5 ± 14.8",
        "90.0 ± 0.0",
        "82.5 ± 10.6",
        "2.23 kB",
        "69×",
        "488",
        "98.70",
        "2",
    ]
    html = (run / "report.html").read_text()
    body = html[html.index("<tbody>") : html.index("</tbody>")]
    assert re.findall(r"<t[hd][^>]*>([^<]*)", body.splitlines()[2]) == expected
    assert f"| {' | '.join(expected)} |" in (run / "report.md").read_text()


def test_best_robust_value_is_marked_in_both_forms(make_run, row):
    run = make_run(small(row), stages=False)
    paths = reports.write(run)
    assert re.findall(r"<strong>([\d.]+)<span", paths.html.read_text()) == ["80.0"]
    assert re.findall(r"\*\*([\d.]+)\*\*", paths.markdown.read_text()) == ["80.0"]


def test_everything_from_the_run_is_escaped(make_run, row):
    layers = [{"name": EVIL, "shape": [2], "total": 2, "kept": 1}]
    rows = small(row, layers=layers, warnings=[EVIL], artefact=f"artefacts/{EVIL}")
    for changed in rows:
        changed |= {"attack": EVIL, "norm": EVIL, "eps_text": EVIL, "protocol": {EVIL: EVIL}}
    rows[1] |= {"criterion": EVIL, "allocation": EVIL}
    nasty = {"name": EVIL, "command": EVIL, "recipe": {EVIL: EVIL}, "provenance": {EVIL: EVIL}}
    paths = reports.write(make_run(rows, stages=False, **nasty))
    html = paths.html.read_text()
    page = Page(html)
    assert not page.all("script")
    assert "<script" not in html
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    markdown = re.sub(r"```.*?```|``.*?``", "", paths.markdown.read_text(), flags=re.DOTALL)
    assert "<script" not in re.sub(r"\\<", "", markdown)
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines() if line.startswith("| ")}
    assert widths == {11, 6, 14}  # no name breaks a row into more cells


@pytest.mark.parametrize(
    "path", ["javascript:alert(1)", "/etc/passwd", "../../secret", "https://example.org/x", "C:\\x"]
)
def test_artefacts_outside_the_run_are_named_but_not_linked(make_run, row, path):
    paths = reports.write(make_run([row(artefact=path)], stages=False))
    assert not page_of(paths.html.parent).all("a")
    assert "](" not in paths.markdown.read_text()


def test_artefact_links_lead_to_the_file(make_run, row):
    paths = reports.write(make_run([row(artefact="artefacts/a (1) #é.safetensors")], stages=False))
    assert page_of(paths.html.parent).all("a") == [{"href": "artefacts/a%20%281%29%20%23%C3%A9.safetensors"}]


def test_missing_stage_files_cost_their_figures_and_the_page_says_which(make_run, row):
    run = make_run(small(row), stages=False)
    reports.write(run)
    text = "".join(page_of(run).text)
    assert text.count("history.json' is missing") == 2
    assert text.count("histogram.json' is missing") == 2
    assert text.count("adversarial.safetensors' is missing") == 1
    assert str(run) not in text


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("history.json", "{"),
        ("history.json", '{"epochs": [{"loss": "x"}]}'),
        ("history.json", '{"epochs": []}'),
        ("histogram.json", '{"edges": [1, 0], "layers": {}}'),
        ("histogram.json", '{"edges": [0, 1], "layers": {"a": {"kept": [1, 2], "pruned": [1]}}}'),
        ("adversarial.safetensors", "not tensors"),
    ],
)
def test_broken_stage_files_cost_their_figures_too(make_run, row, file, content):
    run = make_run(small(row))
    for path in run.rglob(file):
        path.write_text(content)
    panel = {"history.json": training_panel, "histogram.json": histogram_panel}.get(file, examples_panel)
    html = panel(run, groups_of(run))
    assert "Left out: hydra global, 99&nbsp;%, seed 0: " in html
    assert "<img" not in html


def write_examples(run, **changes):
    images = np.full((2, 1, 2, 2), 0.5, dtype=np.float32)
    tensors = {"clean": images, "adversarial": images, **dict.fromkeys(("labels", "predicted_clean"), np.arange(2))}
    tensors |= {"predicted_adversarial": np.arange(2)} | changes
    for path in run.rglob("adversarial.safetensors"):
        save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clean": np.full((2, 1, 2, 2), 1.5, dtype=np.float32)}, "'clean' holds values outside [0, 1]"),
        ({"clean": np.full((2, 1, 2, 2), np.nan, dtype=np.float32)}, "'clean' holds values outside [0, 1]"),
        ({"clean": np.zeros((2, 4, 2, 2), dtype=np.float32)}, "should be float32 (k, 1 or 3, h, w)"),
        ({"clean": np.zeros((2, 1, 2, 2))}, "should be float32 (k, 1 or 3, h, w), not float64"),
        ({"clean": np.zeros((0, 1, 2, 2), dtype=np.float32)}, "'clean' holds no image"),
        ({"clean": np.zeros((2, 1, 3, 3), dtype=np.float32)}, "differ in shape"),
        ({"labels": np.zeros(2)}, "should be 2 integers each"),
        ({"labels": np.arange(1)}, "should be 2 integers each"),
        ({"labels": np.array(3)}, "should be 2 integers each"),
        ({"labels": None}, "is not readable"),
    ],
)
def test_examples_that_cannot_be_shown_are_left_out_with_the_reason(make_run, row, changes, said):
    run = make_run([row()])
    write_examples(run, **changes)
    assert said in unescape(examples_panel(run, groups_of(run)))


@pytest.mark.parametrize("channels", [1, 3])
def test_examples_are_shown_with_names_of_classes_and_the_true_size_of_the_change(make_run, row, channels):
    run = make_run([row()], channels=channels)
    page = Page(examples_panel(run, groups_of(run)))
    alts = [image["alt"] for image in page.all("img") if image.get("class") == "pixels"]
    assert alts[3:6] == [
        "Clean image of digit 1, read as digit 1",
        "Adversarial image of digit 1, read as digit 8",
        "Difference of the two, 5 times magnified",
    ]
    assert "No pixel changes by more than 0.1." in "".join(page.text)


def test_examples_without_class_names_show_numbers(make_run, row):
    run = make_run([row()])
    write_examples(run)
    assert 'alt="Clean image of 1, read as 1"' in examples_panel(run, groups_of(run))


def test_stage_folders_outside_the_run_are_not_read(make_run, row, tmp_path):
    (tmp_path / "history.json").write_text(json.dumps({"epochs": [{"loss": 1}]}))
    run = make_run([row(stages={"pretrain": "..", "evaluate": "/etc"})], stages=False)
    reports.write(run)
    text = "".join(page_of(run).text)
    assert "the pretrain stage of dense, '..', lies outside the run's folder" in text
    assert "the evaluate stage of dense, '/etc', lies outside the run's folder" in text


@pytest.mark.parametrize(
    "make",
    [
        lambda row: [row()],
        lambda row: [row("hydra", "erk", 0.9)],
        lambda row: [row(), row("hydra", "erk", 0.9)],
        lambda row: [row(robust=0.0, dense_robust=0.0), row("lwm", "erk", 0.9, robust=0.0, dense_robust=0.0)],
        lambda row: [row(), row("hydra", "erk", 0.9), row("hydra", "erk", 0.9, attack="aa")],
        lambda row: [row("hydra", None, 1.0, weights_kept=0, layers=[])],
    ],
    ids=["dense alone", "no dense", "one seed and sparsity", "dense 0", "two attacks", "nothing kept"],
)
def test_every_shape_of_run_gives_a_report(make_run, row, make):
    paths = reports.write(make_run(make(row)))
    assert not re.search(r"\b(nan|inf)\b", paths.html.read_text())
    assert not re.search(r"\b(nan|inf)\b", paths.markdown.read_text())


def test_two_attacks_are_told_apart_and_the_page_says_which_one_the_figures_show(make_run, row):
    run = make_run([row(), row(attack="aa", robust=0.8)], stages=False)
    reports.write(run)
    text = "".join(page_of(run).text)
    assert "The verdict and the figures are about the first evaluation: pgd50x10, linf, ε = 8/255." in text
    assert "aa, linf, ε = 8/255" in text


def test_an_unfinished_run_says_so(make_run, row):
    paths = reports.write(make_run([row()], stages=False, complete=False))
    assert "The run is not complete" in paths.html.read_text()
    assert "The run is not complete" in paths.markdown.read_text()


def test_recipe_in_the_markdown_reads_back(make_run, row):
    recipe = {"name": "x", "text": "a```b\nc", "nested": {"eps": "8/255", "none": None}}
    text = reports.write(make_run([row()], stages=False, recipe=recipe)).markdown.read_text()
    fenced = re.search(r"^(`{3,})yaml\n(.*?)\n\1$", text, flags=re.DOTALL | re.MULTILINE)
    assert fenced is not None and yaml.safe_load(fenced[2]) == recipe


def test_markdown_has_the_table_of_layers(make_run, row):
    text = reports.write(make_run(small(row), stages=False)).markdown.read_text()
    assert "| features.0.weight | 16 × 1 × 3 × 3 | 144 | 20.1 | 20.1 |" in text


def test_a_report_that_cannot_be_written_is_a_user_error(make_run, row):
    run = make_run([row()], stages=False)
    (run / "report.md").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        reports.write(run)
