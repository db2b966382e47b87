"""A compression report as files: a table for spreadsheets, everything as JSON, and a page to read.

JSON has no infinite numbers: an error of inf is the string "inf" there.   Syllabus: 2.01
"""

import csv
import html
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from mlcomp.resume import replacing

if TYPE_CHECKING:
    from mlcomp.layerwise.report import CompressionReport, LayerRow, LeftOut

KIND = "mlcomp compression report"
WORST = 5
_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.15rem .6rem;border-bottom:1px solid #ccc;"
    "text-align:right}td:first-child,th:first-child,td:last-child,th:last-child{text-align:left}svg{max-width:100%}"
)


def layer_dicts(rows: Sequence["LayerRow"]) -> list[dict[str, Any]]:
    """Return a dict for each layer: its fields, and the bits per weight."""
    return [{**asdict(row), "bits_per_weight": row.bits_per_weight} for row in rows]


def worst_layers(rows: Sequence["LayerRow"]) -> list[tuple[float, "LayerRow"]]:
    """Return the five largest errors of compressed layers, held-out ones where there are some; the worst first."""
    found = [(error, row) for row in rows if (error := shown_error(row)) is not None]
    return sorted(found, key=lambda pair: -pair[0])[:WORST]


def shown_error(row: "LayerRow") -> float | None:
    """Return a compressed layer's held-out error, or the one on calibration inputs; None if there is none."""
    if row.status != "compressed":
        return None
    return row.error if row.held_out_error is None else row.held_out_error


def csv_text(rows: Sequence["LayerRow"]) -> str:
    """Return comma-separated values with a head, one line for each layer; a shape is written 64x32."""
    out = io.StringIO()
    dicts = [{**row, "shape": "x".join(map(str, row["shape"]))} for row in layer_dicts(rows)]
    writer = csv.DictWriter(out, list(dicts[0]) if dicts else ["name"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dicts)
    return out.getvalue()


def json_text(report: "CompressionReport") -> str:
    """Return what :func:`read_json` takes."""
    content = {
        "kind": KIND,
        "rows": [asdict(row) for row in report.rows],
        "left": [asdict(left) for left in report.left],
        "parameters": report.parameters,
    }
    return json.dumps(_without_infinity(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _without_infinity(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_infinity(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: str | os.PathLike, row: type["LayerRow"], left: type["LeftOut"]) -> dict[str, Any]:
    """Return the fields of a report from a file of :func:`json_text`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds something else.
    """
    with open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        content = json.loads(text)
        if content["kind"] != KIND:
            raise ValueError(f"its kind is {content['kind']!r}")
        rows = tuple(_made(row, entry) for entry in content["rows"])
        lines = tuple(_made(left, entry) for entry in content["left"])
        return {"rows": rows, "left": lines, "parameters": int(content["parameters"])}
    except (ValueError, TypeError, KeyError) as problem:
        raise ValueError(f"{os.fspath(path)} holds no compression report: {problem}") from problem


def _made(kind: Any, entry: Mapping[str, Any]) -> Any:
    """Make a row or a line of what JSON had of it."""
    numbers = {f.name for f in fields(kind) if f.type in (float, float | None)}
    values = {key: float(v) if key in numbers and v is not None else v for key, v in entry.items()}
    return kind(**{**values, "shape": tuple(entry["shape"])})


def page(report: "CompressionReport", picture: str) -> str:
    """Return an HTML page that needs no other file: the share covered, the picture (SVG), and all layers."""
    head = ("layer", "shape", "error", "held out", "sparsity", "bits/w", "seconds", "status")
    rows = [
        (
            *(row.name, "×".join(map(str, row.shape))),
            *("" if error is None else f"{error:.3g}" for error in (row.error, row.held_out_error)),
            *(f"{row.sparsity:.3f}", f"{row.bits_per_weight:.3f}", f"{row.seconds:.2f}", row.status),
        )
        for row in report.rows
    ]
    left = [(line.name, "×".join(map(str, line.shape)), line.reason) for line in report.left]
    parts = [f"<h1>Compression report</h1><p>{html.escape(report.summary)}</p>", picture, html_table(head, rows)]
    if left:
        parts += ["<h2>What else was left as it is</h2>", html_table(("parameter", "shape", "reason"), left)]
    top = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Compression report</title><style>{_STYLE}'
    return "\n".join([f"{top}</style>", *parts, "</html>\n"])


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose cells are text."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line(head, "th") + "".join(line(row, "td") for row in rows) + "</table>"


def write(path: str | os.PathLike, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")
