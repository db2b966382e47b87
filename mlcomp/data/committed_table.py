"""Measurements too long for a notebook, committed as tables: each row says what it was made on.

``kbit_scaling``: ``experiments/kbit_scaling.py``; ``every_method``: ``python -m experiments.every_method``.
"""

import csv
from pathlib import Path

TABLES = Path(__file__).parent / "tables"


def committed_table(name: str) -> list[dict[str, str]]:
    """Return the rows of a table, each from column to text.

    Raises:
        ValueError: there is no such table.
    """
    names = sorted(path.stem for path in TABLES.glob("*.csv"))
    if name not in names:
        raise ValueError(f"the tables are {', '.join(names)}, got {name!r}")
    with (TABLES / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
