"""`{lecture-notebooks}`: the notebooks of a lecture, core path first, with what each teaches, and its minutes."""

import sys
from pathlib import Path

import nbformat
from method_index import Generated

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools import stamp  # noqa: E402  (the folder is put on the path above)

PATHS = {"core": "Core path", "deeper": "Deeper"}


class LectureNotebooks(Generated):
    """A table for each path; the argument is the number of the lecture."""

    required_arguments = 1

    def lines(self) -> list[str]:
        """Return the tables. A notebook that names no path yet counts as deeper."""
        found = stamp.lecture_path(int(self.arguments[0]))
        self.watch(ROOT / "_toc.yml", *(path for path, _ in found))
        return [line for way in PATHS for line in table(way, found)]


def table(way: str, found: list[tuple[Path, dict]]) -> list[str]:
    """Return the table of the notebooks on one path, with the sum of their minutes."""
    rows, total = [], 0
    for path, info in found:
        if info.get("path", "deeper") != way:
            continue
        minutes = stamp.reading_minutes(nbformat.read(path, as_version=4))
        total += minutes
        goal = "; ".join(info.get("goals", []))
        link = f"[{info['title']}](/{path.relative_to(ROOT).as_posix()})"
        rows.append(
            f"| {stamp.number(info, path)} | {link} | {goal} | {minutes} min, {stamp.running_minutes(info)} |"
        )
    if not rows:
        return []
    head = ["| | Notebook | You will be able to | To read, to run |", "|---|---|---|---|"]
    return [f"**{PATHS[way]}**, about {total} minutes of reading:", "", *head, *rows, ""]


def setup(app) -> dict:
    """Register the directive with Sphinx."""
    app.add_directive("lecture-notebooks", LectureNotebooks)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
