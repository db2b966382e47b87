"""`{every-method-picture}`: the picture of every method, to be pointed at and filtered, drawn by Vega-Lite.

The script comes from the pip package vl-convert-python, which carries Vega, Vega-Lite and Vega-Embed. No copy is
committed, and only pages with this picture load it. Without scripts the drawing of `every_method_page` stays.
"""

import html
import json
import shutil
from pathlib import Path

import vl_convert
from docutils import nodes
from every_method_page import CSV, KINDS, caption, front, picture, results
from sphinx.util.docutils import SphinxDirective

VEGA_LITE = "6.4"  # of those that the package carries
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
# Vega's names of marks that look like those of the static drawing.
SHAPES = {
    "reference": "cross", "scalar": "square", "compensated": "triangle-up", "vector": "diamond",
    "pruning": "stroke", "both": "circle", "tuned": "triangle-down",
}  # fmt: skip
ANY = "any"
BITS = {ANY: (0, 99), "up to 2.5": (0, 2.5), "2.5 to 3.5": (2.5, 3.5), "3.5 to 4.5": (3.5, 4.5), "more": (4.5, 99)}
SECONDS = {ANY: 1e9, "1 s": 1, "10 s": 10, "1 min": 60, "10 min": 600}
LEAST = 2e-4  # of the errors that are told apart: below it a model is as good as the dense one
NOTE = "Point at a mark, or press the arrow keys in the picture, to read which method it is."


def points(rows: list[dict[str, str]]) -> list[dict[str, object]]:
    """Return what the picture shows of each row."""
    best, shown = front(rows), []
    for row in rows:
        bits, cosine = float(row["bits_per_weight"]), float(row["similarity"])
        seconds = float(row["seconds"]) + float(row["hessian_seconds"])
        told = (
            f"{row['method']} ({row['setting']}): {bits:.2f} bits a weight, cosine {cosine:.4f}, "
            f"{float(row['recall_at_10']):.0%} of the neighbours kept, {seconds:.1f} s"
        )
        shown.append({
            "method": row["method"], "setting": row["setting"], "kind": KINDS[row["kind"]][0], "bits": bits,
            "cosine": cosine, "error": max(1 - cosine, LEAST), "seconds": seconds, "told": told,
            "front": (row["method"], row["setting"]) in best,
        })  # fmt: skip
    return shown


def chosen() -> str:
    """Return Vega's expression that a row passes the three filters."""
    bits = " || ".join(
        f"(bits == {json.dumps(name)} && datum.bits >= {low} && datum.bits < {high})"
        for name, (low, high) in BITS.items()
    )
    seconds = " || ".join(f"(seconds == {json.dumps(n)} && datum.seconds <= {most})" for n, most in SECONDS.items())
    return f"(family == '{ANY}' || datum.kind == family) && ({bits}) && ({seconds})"


def select(name: str, label: str, options: list[str]) -> dict[str, object]:
    """Return a parameter that the reader sets with a list."""
    return {"name": name, "value": ANY, "bind": {"input": "select", "options": options, "name": label}}


def specification(rows: list[dict[str, str]]) -> dict[str, object]:
    """Return the picture in Vega-Lite."""
    titles, colours = ([KINDS[kind][i] for kind in KINDS] for i in (0, 1))
    x = {"field": "bits", "title": "bits per weight", "scale": {"type": "log", "domain": [0.9, 18]}}
    y = {"field": "error", "title": "1 − cosine with the dense model"}
    x |= {"type": "quantitative", "axis": {"values": [1, 2, 3, 4, 6, 8, 12, 16]}}
    y |= {"type": "quantitative", "scale": {"type": "log", "domain": [LEAST, 1.2], "clamp": True}}
    y |= {"axis": {"format": "~g", "values": [1, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 3e-4]}}
    kind = {"field": "kind", "type": "nominal", "title": None, "legend": {"orient": "bottom"}}
    steps = [
        {"sort": [{"field": "bits"}, {"field": "error"}], "window": [{"op": "min", "field": "error", "as": "least"}],
         "frame": [None, 0]},
        {"filter": "datum.error <= datum.least"},
    ]  # fmt: skip
    return {
        "$schema": SCHEMA,
        "width": "container", "height": 400, "background": None, "autosize": {"type": "fit", "contains": "padding"},
        "data": {"values": points(rows)},
        "params": [
            select("bits", "bits per weight", list(BITS)),
            select("family", "kind of method", [ANY, *titles]),
            select("seconds", "calibration and method take at most", list(SECONDS)),
        ],
        "transform": [{"filter": chosen()}],
        "layer": [
            {"transform": steps, "mark": {"type": "line", "interpolate": "step-after", "strokeDash": [4, 3],
             "stroke": "currentColor", "opacity": 0.7, "aria": False}, "encoding": {"x": x, "y": y}},
            {"mark": {"type": "point", "size": 80, "strokeWidth": 1.8, "fillOpacity": 0.35, "filled": False},
             "encoding": {
                "x": x, "y": y,
                "color": kind | {"scale": {"domain": titles, "range": colours}},
                "fill": kind | {"scale": {"domain": titles, "range": colours}},
                "shape": kind | {"scale": {"domain": titles, "range": [SHAPES[k] for k in KINDS]}},
                "tooltip": [{"field": name} for name in ("method", "setting", "bits", "cosine", "seconds")],
                "description": {"field": "told"},
             }},
        ],
        "config": {
            "axis": {name: "currentColor" for name in ("labelColor", "titleColor", "tickColor", "domainColor")}
            | {"gridColor": "currentColor", "gridOpacity": 0.15, "labelFontSize": 12, "titleFontSize": 13},
            "legend": {"labelColor": "currentColor", "labelFontSize": 12, "labelLimit": 320, "columns": 2},
            "view": {"stroke": "currentColor", "strokeOpacity": 0.4},
        },
    }  # fmt: skip


def figure(rows: list[dict[str, str]], up: str) -> str:
    """Return the figure as HTML: the static drawing, what replaces it, and the data.

    Args:
        rows: of the table.
        up: the way from the page to the root of the book.
    """
    data = json.dumps(specification(rows), ensure_ascii=False).replace("</", "<\\/")
    label = f"Size against quality of every method. {NOTE}"
    link = f'<a href="{up}_static/{CSV.name}" download>Download the data ({CSV.name})</a>'
    return (
        f'<figure class="every-method"><div class="static">{picture(rows)}{caption(rows)}</div>'
        f'<div class="interactive" tabindex="0" role="group" aria-label="{html.escape(label)}" hidden></div>'
        f'<p class="told" aria-live="polite" hidden>{NOTE}</p>'
        f'<script type="application/json">{data}</script><p class="download">{link}</p></figure>'
    )


class Picture(SphinxDirective):
    """The figure, made at build time."""

    def run(self) -> list[nodes.Node]:
        """Put the figure."""
        self.env.note_dependency(str(CSV))
        up = "../" * self.env.docname.count("/")
        return [nodes.raw("", figure(results(), up), format="html", classes=["every-method"])]


class SmallPicture(SphinxDirective):
    """The static drawing alone, small, with a link to the page on which it can be pointed at."""

    def run(self) -> list[nodes.Node]:
        """Put the drawing."""
        self.env.note_dependency(str(CSV))
        told = "Bits per weight against the error of a sentence encoder. A mark is a method, the line the front."
        link = f'{told} <a href="which_method.html">Which is which, and which to take</a>'
        inside = f"{picture(results())}<figcaption>{link}</figcaption>"
        return [nodes.raw("", f'<figure class="every-method small">{inside}</figure>', format="html")]


def add_scripts(app, page, template, context, doctree) -> None:
    """Load the library on pages that have the picture."""
    if doctree is None:
        return
    if any("every-method" in node["classes"] for node in doctree.findall(nodes.raw)):
        app.add_js_file("vega.js")
        app.add_js_file("every_method.js")


def write_scripts(app, exception) -> None:
    """Put the library and the data beside the built pages."""
    if exception is None and app.builder.format == "html":
        folder = Path(app.outdir, "_static")
        bundle = vl_convert.javascript_bundle(vl_version=VEGA_LITE)
        (folder / "vega.js").write_text(f"(() => {{\n{bundle}\n}})();\n", encoding="utf-8")
        shutil.copyfile(CSV, folder / CSV.name)


def setup(app) -> dict:
    """Register with Sphinx."""
    app.add_directive("every-method-picture", Picture)
    app.add_directive("every-method-small", SmallPicture)
    app.connect("html-page-context", add_scripts)
    app.connect("build-finished", write_scripts)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
