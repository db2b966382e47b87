"""`{every-method}`: size against quality of all registered methods on one model, as tables; and as a drawing."""

import csv
import html
import math
import sys
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mlcomp.compare import every_method  # noqa: E402  (the folder is put on the path above)

CSV = ROOT / "mlcomp" / "data" / "tables" / "every_method.csv"
# Kind → its mark as a path; titles and colours are those of the library's picture.
MARKS = {
    "reference": "M-5,0H5M0,-5V5",
    "scalar": "M-4,-4H4V4H-4Z",
    "compensated": "M0,-5.5L5,4H-5Z",
    "vector": "M0,-5.5L5.5,0L0,5.5L-5.5,0Z",
    "pruning": "M-4,-4L4,4M-4,4L4,-4",
    "both": "M0,-5.5L5,-1.5L3,4.5H-3L-5,-1.5Z",
    "tuned": "M0,5.5L5,-4H-5Z",
}
KINDS = {kind: (title, colour, MARKS[kind]) for kind, (title, colour, _) in every_method.KINDS.items()}
LEFT, TOP, WIDTH, HEIGHT = 78, 14, 640, 380
X_RANGE, X_TICKS = (1.7, 18), (2, 3, 4, 6, 8, 12, 16)


def results(path: Path = CSV) -> list[dict[str, str]]:
    """Return the last row of the file for each method and setting."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return list({(row["method"], row["setting"]): row for row in rows}.values())


def front(rows: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Return (method, setting) of the rows that no other row beats in size without losing, the smallest first."""
    return [(rows[i]["method"], rows[i]["setting"]) for i in every_method.front_of_methods(rows)]


def missing(rows: list[dict[str, str]]) -> list[str]:
    """Return the registered runs that the file does not hold."""
    from experiments.every_method import methods  # noqa: F401  (registers)
    from experiments.every_method.registry import ENTRIES, describe

    have = {(row["method"], row["setting"]) for row in rows}
    return [
        f"{entry.name} ({describe(setting)})"
        for entry in ENTRIES.values()
        for setting in entry.settings
        if (entry.name, describe(setting)) not in have
    ]


def page(rows: list[dict[str, str]], not_run: list[str]) -> list[str]:
    """Return the lines of Markdown below the picture: what was not run, then a table for each kind."""
    best = front(rows)
    lines = [f"**Registered, but not run yet:** {', '.join(not_run)}.", ""] if not_run else []
    for kind, (title, _, _) in KINDS.items():
        chosen = sorted((r for r in rows if r["kind"] == kind), key=lambda r: float(r["bits_per_weight"]))
        if not chosen:
            continue
        # No headings: their sections would be moved out of the directive, to before the picture.
        lines += ["", f"```{{rubric}} {title}", "```", ""]
        lines += [
            "| method | options | bits / weight | MB | cosine | neighbours kept | s |",
            "|---|---|---:|---:|---:|---:|---:|",
        ]
        for row in chosen:
            mark = "**" if (row["method"], row["setting"]) in best else ""
            size = f"{float(row['bits_per_weight']):.2f}" + ("" if row["size"] == "packed" else "\\*")
            seconds = float(row["seconds"]) + float(row["hessian_seconds"])
            lines.append(
                f"| {mark}{row['method']}{mark} | {row['setting']} | {size} | {float(row['megabytes']):.2f} "
                f"| {float(row['similarity']):.4f} | {float(row['recall_at_10']):.1%} | {seconds:.1f} |"
            )
    runs = sorted({f"{r['commit']} of {r['date']}, torch {r['torch']}, {r['device']}" for r in rows})
    note = "\\* as the result counts itself; all other sizes are those of arrays that were really packed."
    return [*lines, "", note, "", f"Runs: {'; '.join(runs)}.", ""]


def picture(rows: list[dict[str, str]]) -> str:
    """Return an SVG that takes its text colour from the page: bits per weight against 1 − cosine, logarithmic."""
    errors = [max(1 - float(r["similarity"]), 1e-6) for r in rows]
    low = 10 ** math.floor(math.log10(max(min(errors), 1e-5)))

    def x(bits: float) -> float:
        return LEFT + WIDTH * math.log(bits / X_RANGE[0]) / math.log(X_RANGE[1] / X_RANGE[0])

    def y(error: float) -> float:
        return TOP + HEIGHT * math.log(1.2 / max(error, low)) / math.log(1.2 / low)

    parts = [_axes(x, y, low)]
    best = front(rows)
    order = sorted(zip(rows, errors, strict=True), key=lambda item: float(item[0]["bits_per_weight"]))
    line = [(x(float(r["bits_per_weight"])), y(e)) for r, e in order if (r["method"], r["setting"]) in best]
    path = "M" + "H".join(f"{a:.1f},{b:.1f}" if i == 0 else f"{a:.1f}V{b:.1f}" for i, (a, b) in enumerate(line))
    parts.append(f'<path d="{path}" fill="none" stroke="currentColor" stroke-dasharray="4 3" opacity="0.6"/>')
    for row, error in order:
        _, colour, mark = KINDS[row["kind"]]
        a, b = x(float(row["bits_per_weight"])), y(error)
        told = f"{row['method']} ({row['setting']}): {float(row['bits_per_weight']):.2f} bits, {row['similarity']}"
        parts.append(
            f'<path transform="translate({a:.1f},{b:.1f})" d="{mark}" fill="{colour}" fill-opacity="0.45" '
            f'stroke="{colour}" stroke-width="1.8"><title>{html.escape(told)}</title></path>'
        )
        if (row["method"], row["setting"]) in best:  # below and left of a point of the front nothing lies
            number = best.index((row["method"], row["setting"])) + 1
            below = b + 13 if b + 13 < TOP + HEIGHT else b - 6
            parts.append(f'<text x="{a - 7:.1f}" y="{below:.1f}" font-size="11" text-anchor="end">{number}</text>')
    for i, (title, colour, mark) in enumerate(KINDS.values()):
        b = TOP + HEIGHT - 20 * (len(KINDS) - i) + 4  # few bits with a small error: that corner stays empty
        parts.append(f'<path transform="translate({LEFT + 18},{b})" d="{mark}" fill="{colour}" ')
        parts.append(f'fill-opacity="0.45" stroke="{colour}" stroke-width="1.8"/>')
        parts.append(f'<text x="{LEFT + 30}" y="{b + 4}">{html.escape(title)}</text>')
    box = f"0 0 {LEFT + WIDTH + 10} {TOP + HEIGHT + 46}"
    head = f'<svg viewBox="{box}" role="img" aria-label="Size against quality of every method" '
    style = 'style="width:100%;max-width:56rem;color:var(--pst-color-text-base)" font-size="13" fill="currentColor" '
    return head + style + 'font-family="sans-serif">' + "".join(parts) + "</svg>"


def caption(rows: list[dict[str, str]]) -> str:
    """Return the names of the numbered points, as HTML."""
    names = (f"{i} {method} ({setting})" for i, (method, setting) in enumerate(front(rows), 1))
    return f"<figcaption>On the front: {html.escape('; '.join(names))}.</figcaption>"


def _axes(x, y, low: float) -> str:
    out = [f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="currentColor"/>']
    for bits in X_TICKS:
        out.append(f'<path d="M{x(bits):.1f},{TOP}v{HEIGHT}" stroke="currentColor" opacity="0.15"/>')
        out.append(f'<text x="{x(bits):.1f}" y="{TOP + HEIGHT + 17}" text-anchor="middle">{bits}</text>')
    for power in range(round(math.log10(low)), 1):
        error = 10.0**power
        out.append(f'<path d="M{LEFT},{y(error):.1f}h{WIDTH}" stroke="currentColor" opacity="0.15"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y(error) + 4:.1f}" text-anchor="end">{error:g}</text>')
    out.append(f'<text x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 38}" text-anchor="middle">bits per weight</text>')
    middle = TOP + HEIGHT / 2
    turned = f'transform="rotate(-90 14 {middle})" x="14" y="{middle}" text-anchor="middle"'
    out.append(f"<text {turned}>1 − cosine with the dense model's vectors</text>")
    return "".join(out)


class EveryMethod(SphinxDirective):
    """The page's content, made at build time."""

    def run(self) -> list[nodes.Node]:
        """Parse the tables as if they stood on the page."""
        if not CSV.exists():
            raise self.error(f"no results at {CSV.relative_to(ROOT)}")
        self.env.note_dependency(str(CSV))
        rows = results()
        node = nodes.container()
        node.document = self.state.document
        lines = StringList(page(rows, missing(rows)), source=self.get_location())
        self.state.nested_parse(lines, self.content_offset, node)
        return node.children


def setup(app) -> dict:
    """Register the directive with Sphinx."""
    app.add_directive("every-method", EveryMethod)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
