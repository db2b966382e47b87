"""The page *What the five lectures say together*: `{methods-map}`, and `` {measured}`…` `` for a figure of a table.

A figure is written ``table: column; key=value; key=value; format``, for instance
``{measured}`whole_model: perplexity; method=gptq_g64; bits=4; .1f` ``: the mean of that column over all rows with
these entries. So no figure on the page is typed.
"""

import sys
from pathlib import Path
from statistics import mean

import yaml
from docutils import nodes
from method_index import Generated
from which_method import TABLES, rows_of

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools import inventory  # noqa: E402  (the folder is put on the path above)

MAP = ROOT / "book" / "methods_map.yml"
NEEDS = {
    "weights": "Needs the weights alone",
    "inputs": "Needs some inputs",
    "training": "Needs gradients or training",
}


class MethodsMap(Generated):
    """What is changed, down; what it needs, across; in the cells the rows of all lectures."""

    def lines(self) -> list[str]:
        """Return the table."""
        notebooks = inventory.notebooks("lectures")
        self.watch(MAP, *(notebook.path for notebook in notebooks))
        homes: dict[str, Path] = {}
        for notebook in notebooks:
            for row in notebook.syllabus:
                homes.setdefault(row, notebook.path)
        lines = [f"| What changes | {' | '.join(NEEDS.values())} |", "|---|---|---|---|"]
        for group in yaml.safe_load(MAP.read_text(encoding="utf-8")):
            cells = [
                "<br>".join(
                    f"{row} [{name}](/{homes[row].relative_to(ROOT).as_posix()})"
                    for row, name in group.get(need, {}).items()
                )
                for need in NEEDS
            ]
            lines.append(f"| **{group['what']}** | {' | '.join(cells)} |")
        return lines


def measured(text: str) -> str:
    """Return the figure that ``table: column; key=value; format`` asks for.

    Raises:
        ValueError: malformed. KeyError: no such table, column or row.
    """
    name, colon, rest = " ".join(text.split()).partition(":")
    column, *keys, form = (part.strip() for part in rest.split(";"))
    if not colon or not all("=" in key for key in keys):
        raise ValueError(f"{text!r} is not `table: column; key=value; …; format`")
    if not (TABLES / f"{name}.csv").exists():
        raise KeyError(f"there is no table {name}.csv")
    found = rows_of(name, **dict(key.split("=", 1) for key in keys))
    return format(mean(float(row[column]) for row in found), form)


def role(name, rawtext, text, lineno, inliner, options=None, content=None):
    """Put a measured figure into a sentence."""
    try:
        return [nodes.Text(measured(text))], []
    except (KeyError, ValueError) as problem:
        message = inliner.reporter.error(str(problem), line=lineno)
        return [inliner.problematic(rawtext, rawtext, message)], [message]


def setup(app) -> dict:
    """Register directive and role with Sphinx."""
    app.add_directive("methods-map", MethodsMap)
    app.add_role("measured", role)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
