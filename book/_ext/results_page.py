"""`{gpu-results}`: the newest measurements of the kernels beside their limits, and what was never measured."""

import csv
import sys
from collections import defaultdict
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools import inventory  # noqa: E402  (the folder is put on the path above)

CSV = ROOT / "benchmarks" / "results" / "kernels.csv"


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
