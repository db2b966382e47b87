"""A compression report as a picture: each layer's output error and size, in the order of the model.

Syllabus: 2.01
"""

import io
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlcomp.layerwise.report_tables import shown_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mlcomp.layerwise.report import CompressionReport, LayerRow

# Readable on white and on black, with marks for those who see no red or no green.
STYLES = (
    ("#3b82c4", "o"),
    ("#d97706", "s"),
    ("#2f9e5b", "^"),
    ("#a259c4", "D"),
    ("#d6455d", "v"),
    ("#0f8f9c", "P"),
    ("#8a6d3b", "X"),
)
OTHERS = ("#808080", ".")
Point = tuple[int, float]


def picture_of(report: "CompressionReport") -> "Figure":
    """Return the figure that :meth:`CompressionReport.picture` promises."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    errors, sizes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    kinds = kinds_of(report.rows)
    _draw_errors(errors, report.rows, kinds)
    _draw_sizes(sizes, report.rows, kinds)
    held_out = any(row.held_out_error is not None for row in report.rows)
    where = "held-out inputs" if held_out else "calibration inputs"
    measured = any(shown_error(row) is not None for row in report.rows)
    compressed = any(row.status == "compressed" for row in report.rows)
    told = f"output error, {where}\n(share of the output's square)"
    errors.set(yscale=_scale(measured), ylabel=told if measured else "output error: not measured")
    sizes.set(yscale=_scale(compressed), ylabel="size of the weight [kB]", xlabel="layer, in the order of the model")
    sizes.set_xlim(0, 1.17 * (len(report.rows) + 1))  # room for the labels
    sizes.xaxis.get_major_locator().set_params(integer=True)
    for axes in (errors, sizes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    return figure


def _scale(drawn: bool) -> str:
    return "log" if drawn else "linear"  # nothing has no logarithm


def svg_of(report: "CompressionReport") -> str:
    """Return the picture as an SVG element, the same text for the same report."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "mlcomp", "svg.fonttype": "none"}):
        picture_of(report).savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def kinds_of(rows: Sequence["LayerRow"]) -> dict[str, str]:
    """Return layer → its kind: the last word of its name; "other layers" for those beyond the seven most frequent."""
    words = {row.name: _word(row.name) for row in rows}
    count = Counter(words[row.name] for row in rows if row.status == "compressed")
    chosen = [word for word, _ in count.most_common(len(STYLES))]
    return {name: word if word in chosen else "other layers" for name, word in words.items()}


def _word(name: str) -> str:
    """Return the last part of a dotted name that is no number, "layers" if there is none."""
    return next((part for part in reversed(name.split(".")) if part and not part.isdigit()), "layers")


def _styles(kinds: dict[str, str]) -> dict[str, tuple[str, str]]:
    words = [word for word in dict.fromkeys(kinds.values()) if word != "other layers"]
    return dict(zip(words, STYLES, strict=False)) | {"other layers": OTHERS}


def _draw_errors(axes: Any, rows: Sequence["LayerRow"], kinds: dict[str, str]) -> None:
    points: dict[str, list[Point]] = {}
    for i, row in enumerate(rows, 1):
        if (error := shown_error(row)) is not None:
            points.setdefault(kinds[row.name], []).append((i, error))
    on_axis = [y for line in points.values() for _, y in line if 0 < y < math.inf] or [1.0]
    # A logarithmic axis ends before 0 and inf: what has no error, or an infinite one, lies at the edge and says so.
    low, high = min(on_axis) / 2, max(on_axis) * 2
    styles, labels = _styles(kinds), {}
    for kind, line in points.items():
        colour, mark = styles[kind]
        x, y = zip(*((i, min(high, max(low, y))) for i, y in line), strict=True)
        style = {"color": colour, "marker": mark, "markersize": 4, "alpha": 0.85}
        axes.plot(x, y, linewidth=1 if kind != "other layers" else 0, **style)
        labels[kind] = y[-1]
    gap = (high / low) ** 0.06
    for kind, height in spread(labels, gap).items():
        axes.annotate(kind, (1.02 * (len(rows) + 1), height), color=styles[kind][0], va="center", fontsize=9)
    for edge, told in ((0.0, "0: no error"), (math.inf, "inf: the dense output is 0")):
        if any(y == edge for line in points.values() for _, y in line):
            axes.annotate(
                told, (1, high if edge else low), va="bottom" if edge else "top", fontsize=8, color="#606060"
            )


def _draw_sizes(axes: Any, rows: Sequence["LayerRow"], kinds: dict[str, str]) -> None:
    styles = _styles(kinds)
    done = [(i, row) for i, row in enumerate(rows, 1) if row.status == "compressed"]
    axes.plot([i for i, _ in done], [row.nbytes_before / 1e3 for _, row in done], "_", color="#606060", markersize=5)
    for kind, (colour, mark) in styles.items():
        mine = [(i, row.nbytes_after / 1e3) for i, row in done if kinds[row.name] == kind]
        if mine:
            axes.plot(*zip(*mine, strict=True), mark, color=colour, markersize=4, alpha=0.85)
    if done:
        last = {"before": done[-1][1].nbytes_before / 1e3, "after": done[-1][1].nbytes_after / 1e3}
        for told, y in spread(last, 1.25).items():
            axes.annotate(told, (1.02 * (len(rows) + 1), y), va="center", fontsize=9, color="#606060")


def spread(heights: dict[str, float], gap: float) -> dict[str, float]:
    """Return positive heights, in their order at least a factor of ``gap`` apart, around where they were."""
    names = sorted(heights, key=lambda name: heights[name])
    logs = [math.log(heights[name]) for name in names]
    moved = [*logs]
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + math.log(gap))
    down = sum(moved) / len(moved) - sum(logs) / len(logs) if moved else 0.0
    return {name: math.exp(y - down) for name, y in zip(names, moved, strict=True)}
