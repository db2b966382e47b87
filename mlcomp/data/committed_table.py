"""Measurements too long for a notebook, committed with what they were made on, and shipped with the package.

``tables/`` holds CSV files with a row for each measurement, and JSON files of runs with their settings. Each is
written by the script of ``experiments/`` that has its name, or names it, and says commit, machine, versions and seed
(``tables/README.md``).
"""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlcomp.resume import replacing

TABLES = Path(__file__).parent / "tables"
_WAY_OUT = "take the committed file again, or delete it and let its script begin anew"


def committed_table(name: str) -> list[dict[str, str]]:
    """Return the rows of a table, each from column to text.

    Raises:
        ValueError: there is no such table, or it is damaged.
    """
    return read_table(_find(name, "csv"))


def committed_results(name: str) -> dict[str, Any]:
    """Return what a run wrote: settings, numbers, and where they come from (``origin``, or ``origins`` by part).

    Raises:
        ValueError: there are no such results, or the file is damaged.
    """
    return read_results(_find(name, "json"))


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, each from column to text.

    Raises:
        ValueError: a row is cut short, or the file is no text; the message names it.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path} is damaged ({problem}): {_WAY_OUT}") from problem
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    if (text and not text.endswith("\n")) or any(None in row or None in row.values() for row in rows):
        raise ValueError(f"{path} is damaged, a row of it is not whole: delete that row, or {_WAY_OUT}")
    return rows


def read_results(path: Path) -> dict[str, Any]:
    """Return what :func:`write_results` wrote.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise ValueError(f"{path} is damaged ({problem}): {_WAY_OUT}") from problem


def write_results(results: Mapping[str, Any], path: Path) -> None:
    """Write a run's results as JSON; killed meanwhile, the file is as it was before."""
    with replacing(path) as draft:
        draft.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _find(name: str, kind: str) -> Path:
    names = sorted(path.stem for path in TABLES.glob(f"*.{kind}"))
    if name not in names:
        raise ValueError(f"the {kind} files are {', '.join(names)}, got {name!r}")
    return TABLES / f"{name}.{kind}"
