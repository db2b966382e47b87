"""`{gpu-results}`: the newest measurements of the kernels beside their limits, and what was never measured.

A picture for each GPU comes first: each kernel's share of its limit, beside that of the best version by others.
"""

import csv
import html
import io
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from docutils import nodes
from docutils.statemachine import StringList
from matplotlib.figure import Figure
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mlcomp.kernels.roofline import DEVICE, measured_seconds, picture_of_kernels  # noqa: E402  (as the next line)
from tools import inventory  # noqa: E402  (the folder is put on the path above)

CSV = ROOT / "benchmarks" / "results" / "kernels.csv"
YARDSTICKS = ("copy",)  # measured beside a kernel, but no version of it
TEXT, KERNEL, RIVAL = "#010203", "#2f7fc1", "#c96a10"  # the first becomes the page's own colour; the others fit both
WIDTH, ROW, SIZE = 380, 17, 10  # of the picture, in pixels: a phone's width, so that its letters stay readable


@dataclass(frozen=True)
class Compared:
    """A kernel at one shape, and the fastest that anybody else is there; each in its better mode.

    Attributes:
        share, rival_share: limit T* over the median.
        rival: its name; "reference" where the library's own reference is all there is.
        ratio: the rival's time over the kernel's.
    """

    operation: str
    shape: str
    share: float
    rival: str
    rival_share: float
    ratio: float


def compared(rows: list[dict[str, str]]) -> list[Compared]:
    """Return each kernel at each of its shapes beside its best rival, in the file's order of shapes."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["operation"], row["shape"], row["dtype"]].append(row)
    found = []
    for (operation, shape, dtype), group in groups.items():
        ours = [row for row in group if row["version"] == "kernel"]
        others = [
            row for row in group if not row["version"].startswith("kernel") and row["version"] not in YARDSTICKS
        ]
        if not (ours and others):
            continue
        kernel, rival = (min(part, key=lambda row: float(row["median_us"])) for part in (ours, others))
        ratio = float(rival["median_us"]) / float(kernel["median_us"])
        shares = (float(row["limit_us"]) / float(row["median_us"]) for row in (kernel, rival))
        alone = len({row["dtype"] for row in rows if row["operation"] == operation}) == 1
        name = shape if alone else f"{shape} {dtype}"
        found.append(Compared(operation, name, next(shares), rival["version"], next(shares), ratio))
    return sorted(found, key=lambda c: c.operation)


def measurements(path: Path = CSV) -> list[dict[str, str]]:
    """Return the last row of the file for each device, operation, shape, dtype, version and mode."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    key = ("device", "operation", "shape", "dtype", "version", "mode")
    return list({tuple(row[name] for name in key): row for row in rows}.values())


def kernels() -> list[str]:
    """Return the names of all kernels of the library."""
    modules = (m for m in inventory.modules() if m.name.startswith("mlcomp.kernels."))
    return sorted(m.path.stem for m in modules if "\nREFERENCE = " in m.path.read_text(encoding="utf-8"))


def page(rows: list[dict[str, str]], names: list[str]) -> list[str]:
    """Return the lines of Markdown: what is missing, then a table for each device and operation."""
    on_gpu = {row["operation"] for row in rows if not row["device"].startswith("CPU")}
    missing = [name for name in names if name not in on_gpu]
    if missing:
        lines = [f"**Never measured on a GPU:** {', '.join(f'`{name}`' for name in missing)}.", ""]
    else:
        lines = ["Every kernel of the library has been measured on a GPU.", ""]
    by_device = defaultdict(list)
    for row in rows:
        by_device[row["device"]].append(row)
    for device in sorted(by_device, key=lambda name: (name.startswith("CPU"), name)):
        lines += ["", f"## {device}", ""]
        if not device.startswith("CPU") and (pairs := compared(by_device[device])):
            if device == DEVICE:
                lines += [
                    "```{raw} html",
                    f'<figure class="every-method">{roofline(by_device[device])}',
                    ROOF,
                    "```",
                    "",
                ]
            lines += ["```{raw} html", f'<figure class="every-method">{picture(pairs, device)}', CAPTION, "```", ""]
        if device.startswith("CPU"):
            lines += ["No kernels here: references and other versions at small shapes.", ""]
        for operation in sorted({row["operation"] for row in by_device[device]}):
            lines += [
                "",
                f"### {operation}",
                "",
                *_table([r for r in by_device[device] if r["operation"] == operation]),
            ]
    return lines


CAPTION = """<figcaption>Further right is faster; at 1 the machine can do no better. The number is how many times as
long the best other version takes; "reference" is the library's own, where nobody else is faster. Each in its better
mode, plain or graph.</figcaption></figure>"""


ROOF = """<figcaption>All kernels under the roof of this GPU. A ring is the limit, counted from bytes and operations
at one real shape; a disk is what was measured there, its number the share of the limit. Names in italics were not
measured: their limit alone is drawn.</figcaption></figure>"""


def roofline(rows: list[dict[str, str]]) -> str:
    """Return the picture of the notebooks on kernels as an SVG that takes its text colour from the page."""
    seconds = measured_seconds(rows)
    with matplotlib.rc_context({"font.family": "sans-serif", "svg.fonttype": "none", "svg.hashsalt": "roofline"}):
        file = io.StringIO()
        picture_of_kernels(seconds, text=TEXT).savefig(file, format="svg", transparent=True, metadata={"Date": None})
    told = ", ".join(f"{name} {1e6 * time:.0f} µs" for name, time in seconds.items())
    return _inline(
        file.getvalue(), f"Operations per second against operations per byte, with the roof. Measured: {told}."
    )


def picture(pairs: list[Compared], device: str) -> str:
    """Return an SVG that takes its text colour from the page: a row for each shape, with kernel and best rival."""
    operations = list(dict.fromkeys(c.operation for c in pairs))
    height = ROW * (len(pairs) + 1.3 * len(operations) + 4.8)
    style = {"font.size": SIZE, "text.color": TEXT, "font.family": "sans-serif"}
    # Words stay words, and names inside the file do not change from build to build.
    with matplotlib.rc_context(style | {"svg.fonttype": "none", "svg.hashsalt": "results"}):
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        axes = figure.add_axes((0.405, 0, 0.32, 1), xlim=(0, 1.02), ylim=(height, 0))
        axes.axis("off")
        last = _rows(axes, pairs)
        for x in (0, 0.5, 1):
            axes.plot([x, x], [1.9 * ROW, last], color=TEXT, alpha=0.25, lw=0.8, zorder=0)
            axes.text(x, 1.5 * ROW, f"{x:g}", ha="center")
            axes.text(x, last + 0.9 * ROW, f"{x:g}", ha="center")
        axes.text(0.5, last + 1.9 * ROW, "share of the limit T*", ha="center")
        for x, label, style in ((-1.18, "kernel", {"color": KERNEL}), (-0.55, "best other version", _hollow())):
            axes.plot(x, 0.6 * ROW, "o", ms=6, clip_on=False, **style)
            axes.text(x + 0.05, 0.6 * ROW, label, va="center_baseline")
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    told = f"Share of the limit on the {device}. " + " ".join(map(_told, pairs))
    return _inline(file.getvalue(), told)


def _rows(axes, pairs: list[Compared]) -> float:
    """Draw the rows, with a heading for each operation; return where the last one ends."""
    y, before = 1.9 * ROW, None
    for c in pairs:
        if c.operation != before:
            y, before = y + 1.3 * ROW, c.operation
            axes.text(-1.24, y - 0.15 * ROW, c.operation, weight="bold")
        y += ROW
        axes.plot([c.share, c.rival_share], [y - 4, y - 4], color=TEXT, alpha=0.45, lw=1)
        axes.plot(c.rival_share, y - 4, "o", ms=6, clip_on=False, **_hollow())
        axes.plot(c.share, y - 4, "o", ms=6, color=KERNEL, clip_on=False)
        axes.text(-1.18, y, c.shape, size=SIZE - 1)
        axes.text(1.07, y, f"{_times(c.ratio)} {c.rival}", size=SIZE - 1)
    return y + 0.4 * ROW


def _hollow() -> dict[str, object]:
    return {"markerfacecolor": "none", "markeredgecolor": RIVAL, "markeredgewidth": 1.6}


def _times(ratio: float) -> str:
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.0f}×"


def _told(c: Compared) -> str:
    return f"{c.operation} {c.shape}: {c.share:.2f}, {_times(c.ratio)} as fast as {c.rival}."


def _inline(svg: str, told: str) -> str:
    """Return matplotlib's SVG as a part of a page: as wide as there is room, in the page's colour, with its words."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL).replace(TEXT, "currentColor")
    box = re.search(r'viewBox="[^"]*"', body)[0]
    style = 'style="width:100%;max-width:36rem;color:var(--pst-color-text-base)" fill="currentColor"'
    head = (
        f'<svg {box} role="img" aria-label="{html.escape(told)}" {style} xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    inside = re.sub(r"\n\s*\n", "\n", body[body.index(">") + 1 :])  # a blank line would end the block of HTML
    return head + inside


def _table(rows: list[dict[str, str]]) -> list[str]:
    commits = ", ".join(sorted({f"{row['commit']} of {row['date']}" for row in rows}))
    versions = ", ".join(sorted({f"torch {row['torch']}, Triton {row['triton']}" for row in rows}))
    lines = [
        "| Shape | Version | Launches | median | 20 % – 80 % | limit T* | share of T* | time / first version |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [
            f"{row['shape']} {row['dtype']}", row["version"], "graph" if row["mode"] == "graph" else "plain",
            _time(row["median_us"]), f"{_time(row['q20_us'])} – {_time(row['q80_us'])}",
            f"{_time(row['limit_us'])} ({row['bound']})", f"{float(row['share']):.2f}", f"{float(row['ratio']):.2f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    rates = sorted({f"{row['copy_gb_s']} GB/s, {row['rate_t_s']} T/s" for row in rows})
    return [*lines, "", f"Commit {commits}; {versions}. Measured ceilings of the same run: {'; '.join(rates)}.", ""]


def _time(micro: str) -> str:
    value = float(micro)
    return f"{value / 1e3:.2f} ms" if value >= 1e3 else f"{value:.1f} µs"


class GpuResults(SphinxDirective):
    """The page's content, made at build time."""

    def run(self) -> list[nodes.Node]:
        """Parse the tables as if they stood on the page."""
        if not CSV.exists():
            raise self.error(f"no measurements at {CSV.relative_to(ROOT)}")
        self.env.note_dependency(str(CSV))
        lines = page(measurements(), kernels())
        node = nodes.container()
        node.document = self.state.document
        self.state.nested_parse(
            StringList(lines, source=self.get_location()), self.content_offset, node, match_titles=1
        )
        return node.children


def setup(app) -> dict:
    """Register the directive with Sphinx."""
    app.add_directive("gpu-results", GpuResults)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
