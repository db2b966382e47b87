"""Measurements too long for a notebook, committed with what they were made on, and shipped with the package.

``tables/`` holds CSV files with a row for each measurement, and JSON files of runs with their settings. Each is
written by the script of ``experiments/`` that has its name, or names it, and says commit, machine, versions and seed
(``tables/README.md``).
"""

import csv
import json
from pathlib import Path
from typing import Any

TABLES = Path(__file__).parent / "tables"


def committed_table(name: str) -> list[dict[str, str]]:
    """Return the rows of a table, each from column to text.

    Raises:
        ValueError: there is no such table.
    """
    with _find(name, "csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def committed_results(name: str) -> dict[str, Any]:
    """Return what a run wrote: settings, numbers, and where they come from (``origin``, or ``origins`` by part).

    Raises:
        ValueError: there are no such results.
    """
    return json.loads(_find(name, "json").read_text(encoding="utf-8"))


def _find(name: str, kind: str) -> Path:
    names = sorted(path.stem for path in TABLES.glob(f"*.{kind}"))
    if name not in names:
        raise ValueError(f"the {kind} files are {', '.join(names)}, got {name!r}")
    return TABLES / f"{name}.{kind}"
