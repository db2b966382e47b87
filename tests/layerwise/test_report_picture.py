import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.layerwise import CompressionReport, LayerRow
from mlcomp.layerwise.report_picture import kinds_of, spread, svg_of
from tests.examples import examples

PROJECTIONS = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "mlp.gate", "mlp.up", "mlp.down")


def row(name, error, held_out=None, status="compressed") -> LayerRow:
    return LayerRow(name, (4, 4), status, error, held_out, 10, 64, 16, 0.0, 1.0)


def language_model(held_out=True) -> CompressionReport:
    rows = [
        row(f"layers.{i}.{name}", 1e-3 * (i + 1), 2e-3 * (i + 1) if held_out else None)
        for i in range(30)
        for name in PROJECTIONS
    ]
    return CompressionReport((*rows, row("lm_head", 0.0, status="skipped: the head")))


def curves(axes):
    return {line.get_color(): line for line in axes.get_lines() if len(line.get_xdata())}


def test_each_kind_of_layer_has_a_line_of_its_own_with_its_name():
    figure = language_model().picture()
    errors, sizes = figure.axes
    drawn = [line for line in errors.get_lines() if len(line.get_xdata())]
    assert [len(line.get_xdata()) for line in drawn] == [30] * 7  # the head has no error
    assert len({(line.get_color(), line.get_marker()) for line in drawn}) == 7
    labels = {text.get_text(): text for text in errors.texts}
    assert set(labels) == {name.split(".")[1] for name in PROJECTIONS}
    for line in drawn:  # a label has its line's colour
        index = int(line.get_xdata()[0]) - 1
        assert labels[PROJECTIONS[index].split(".")[1]].get_color() == line.get_color()
    assert drawn[0].get_ydata()[4] == pytest.approx(2e-3 * 5) and drawn[0].get_xdata()[4] == 1 + 4 * 7
    assert errors.get_yscale() == "log" and "held-out" in errors.get_ylabel() and "kB" in sizes.get_ylabel()
    assert "order of the model" in sizes.get_xlabel()


def test_without_held_out_inputs_the_axis_says_calibration():
    figure = language_model(held_out=False).picture()
    assert "calibration" in figure.axes[0].get_ylabel()
    assert figure.axes[0].get_lines()[0].get_ydata()[0] == pytest.approx(1e-3)


def test_sizes_before_and_after_are_those_of_the_compressed_layers():
    figure = language_model().picture()
    before, *after = (line for line in figure.axes[1].get_lines() if len(line.get_xdata()))
    assert len(before.get_xdata()) == 210 and set(before.get_ydata()) == {0.064}
    assert sum(len(line.get_xdata()) for line in after) == 210
    assert {text.get_text() for text in figure.axes[1].texts} == {"before", "after"}


def test_no_error_and_an_infinite_one_are_at_the_edges_and_told():
    figure = CompressionReport((row("a", 0.0), row("b", math.inf), row("c", 0.1))).picture()
    heights = [y for line in figure.axes[0].get_lines() for y in line.get_ydata()]
    assert heights == [0.05, 0.2, 0.1]
    told = {text.get_text() for text in figure.axes[0].texts}
    assert {"0: no error", "inf: the dense output is 0"} <= told


def test_kinds_beyond_the_seven_most_frequent_share_one():
    rows = [row(f"{i}.k{k}", 0.1) for k in range(9) for i in range(9 - k)]
    kinds = kinds_of(rows)
    assert set(kinds.values()) == {*(f"k{k}" for k in range(7)), "other layers"}
    assert {kinds_of([row(name, 0.1)])[name] for name in ("0", "", "3.1")} == {"layers"}


def test_the_same_report_gives_the_same_svg():
    report = language_model()
    svg = svg_of(report)
    assert svg == svg_of(report) and svg.startswith("<svg") and svg.rstrip().endswith("</svg>")
    assert "q_proj" in svg  # text stays text


def test_reports_without_compressed_layers_are_drawn():
    for rows in ((), (row("a", 0.0, status="skipped: tied"),)):
        assert svg_of(CompressionReport(rows)).startswith("<svg")


@given(heights=st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=8), gap=st.floats(1.01, 3))
@examples(50)
def test_labels_stand_apart_in_the_order_of_what_they_name(heights, gap):
    named = {str(i): y for i, y in enumerate(heights)}
    moved = spread(named, gap)
    order = sorted(named, key=lambda name: named[name])
    for low, high in pairwise(order):
        assert moved[high] >= moved[low] * gap * (1 - 1e-9)
    centre = sum(map(math.log, heights)), sum(map(math.log, moved.values()))
    assert centre[0] == pytest.approx(centre[1], abs=1e-6)
