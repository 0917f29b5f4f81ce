import base64
from functools import partial
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from hydraprune.reports.aggregate import group_rows
from hydraprune.reports.figures import compression_curve, kept_and_pruned, kept_per_layer, training_curves
from hydraprune.reports.images import magnification, png_uri
from hydraprune.reports.load import parse_results
from hydraprune.reports.stages import Epoch, Histogram, History
from hydraprune.reports.style import DARK, LIGHT, marks, render


def decoded(uri):
    return base64.b64decode(uri.partition(",")[2])


def drawn(draw, width=3.9):
    """Render, check that both variants are XML, and return the figure that was drawn."""
    figures: list[Figure] = []

    def remember(palette, wanted):
        figures.append(draw(palette, wanted))
        return figures[-1]

    drawing = render(remember, width)
    for uri in (drawing.light, drawing.dark):
        assert ElementTree.fromstring(decoded(uri)).tag.endswith("svg")
    return figures[0]


def groups_of(results):
    return group_rows(parse_results(results, "results").rows)


def test_compression_figure_shows_the_means_at_the_ratio_of_all_to_kept_weights(row, results):
    sizes = {"weights_total": 1000, "layers": []}
    rows = [row(robust=0.9)]
    rows += [
        row("hydra", "erk", 0.9, i, robust=value, weights_kept=100, **sizes) for i, value in enumerate((0.7, 0.8))
    ]
    rows += [row("hydra", "erk", 0.99, i, robust=0.5, weights_kept=10, **sizes) for i in range(2)]
    (axes,) = drawn(partial(compression_curve, groups_of(results(rows)))).axes
    (curve,) = axes.containers
    np.testing.assert_allclose(curve.lines[0].get_xydata(), [[10, 75], [100, 50]])
    assert axes.get_xscale() == "log"
    assert axes.get_lines()[0].get_ydata()[0] == pytest.approx(90)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10×\n90 %", "100×\n99 %"]


@pytest.mark.parametrize("width", [3.9, 6.4])
def test_compression_figure_stands_one_point_no_dense_and_nothing_kept(row, results, width):
    rows = [row("hydra", "erk", 0.9), row("lwm", None, 1.0, weights_kept=0)]
    drawn(partial(compression_curve, groups_of(results(rows))), width)


def test_training_figure_joins_the_stages_and_skips_what_was_not_measured():
    pretrain = History("pretrain", (Epoch(2.0, 0.1, 0.2, None), Epoch(1.0, 0.2, 0.3, 0.1)))
    finetune = History("finetune", (Epoch(0.5, None, 0.4, 0.2),))
    above, below = drawn(partial(training_curves, (pretrain, finetune))).axes
    assert [line.get_xydata().tolist() for line in above.get_lines() if len(line.get_label()) > 0][:2] == [
        [[1, 2.0], [2, 1.0]],
        [[3, 0.5]],
    ]
    robust = [line.get_xydata().tolist() for line in below.get_lines() if line.get_linestyle() == "--"]
    assert robust[0] == [[2, 10.0]]
    assert robust[1] == [[3, 20.0]]


def test_layer_that_keeps_nothing_is_shown_at_the_left_and_not_dropped(row, results):
    layers = [{"name": name, "shape": [100], "total": 100, "kept": kept} for name, kept in (("a", 0), ("b", 30))]
    groups = groups_of(results([row("lwm", "erk", 0.9, layers=layers)]))
    (axes,) = drawn(partial(kept_per_layer, groups, ["a", "b"])).axes
    points = next(line for line in axes.get_lines() if line.get_label() == "lwm erk").get_xydata()
    np.testing.assert_allclose(points, [[10, 0], [30, 1]])
    assert "0" in [text.get_text() for text in axes.texts]


def test_names_are_drawn_as_they_are_even_where_they_look_like_formulas_or_lack_a_glyph(row, results):
    layers = [{"name": name, "shape": [2], "total": 2, "kept": 1} for name in ("$\\frac{", "-->\U0001f600", "x" * 99)]
    groups = groups_of(results([row("$x^", "</svg>", 0.9, layers=layers)]))
    drawn(partial(kept_per_layer, groups, [layer["name"] for layer in layers]))
    drawn(partial(compression_curve, groups))


def test_histogram_figure_shows_both_counts():
    (axes,) = drawn(partial(kept_and_pruned, Histogram((-1.0, 0.0, 1.0), (0, 5), (7, 2)), "title")).axes
    assert [patch.get_data().values.tolist() for patch in axes.patches] == [[7, 2], [0, 5]]


def test_a_figure_is_the_same_bytes_each_time_and_dark_differs_only_in_colours():
    draw = partial(kept_and_pruned, Histogram((0.0, 1.0), (1,), (2,)), "title")
    first, second = render(draw, 3.9), render(draw, 3.9)
    assert first == second
    light, dark = decoded(first.light).decode(), decoded(first.dark).decode()
    assert LIGHT.text in light and LIGHT.text not in dark and DARK.text in dark
    assert len(light) == len(dark)


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("palette", "page"), [(LIGHT, "#fcfcfb"), (DARK, "#16181b")])
def test_every_colour_stands_out_from_its_page(palette, page):
    def contrast(colour):
        low, high = sorted((luminance(colour), luminance(page)))
        return (high + 0.05) / (low + 0.05)

    assert all(contrast(colour) >= 3 for colour in palette.series)
    assert contrast(palette.text) >= 4.5 and contrast(palette.muted) >= 4.5
    assert len(set(palette.colours)) == len(palette.colours)


def test_networks_can_be_told_apart_without_colour():
    networks = [(criterion, allocation) for criterion in "abcdef" for allocation in "wxyz"]
    looks = [(mark.marker, mark.line, mark.fill) for mark in marks(networks, LIGHT).values()]
    assert len(set(looks)) == len(networks)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_keep_their_pixels(channels):
    image = np.linspace(0, 1, channels * 4, dtype=np.float32).reshape(channels, 2, 2)
    read = imread(BytesIO(decoded(png_uri(image))), format="png")[..., :3]
    np.testing.assert_allclose(read, np.broadcast_to(np.moveaxis(image, 0, -1), (2, 2, 3)), atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize(("largest", "factor"), [(0.1, 5), (0.3, 1), (0.9, 1), (0.0, 1), (8 / 255, 15)])
def test_differences_are_magnified_by_a_whole_number_that_still_fits(largest, factor):
    assert magnification(np.array([0.0, -largest], dtype=np.float32)) == factor
