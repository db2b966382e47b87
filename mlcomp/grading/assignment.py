"""An assignment: the source notebook in ``solutions/``, its questions, and how a submission lines up with it."""

import ast
import copy
import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

Cell = dict[str, Any]

_PACKAGED = Path(__file__).parent / "solutions"  # in an installed wheel
_CHECKOUT = Path(__file__).parents[2] / "solutions"  # in a clone

# What nbgrader puts into a written answer when it makes the student's version.
STUB = "YOUR ANSWER HERE"

# A locked cell with this tag is for the reader only, for instance because it needs data; graders leave it out.
NOT_GRADED = "not-graded"

# What nbgrader replaces in a code answer when it makes the student's version, and the line that stands for it.
SOLUTION = re.compile(r"### BEGIN SOLUTION.*?### END SOLUTION", re.S)
NOT_ANSWERED = "raise NotImplementedError"

# The repository's address, as the set-up cell says it where there is one.
_REPOSITORY = re.compile(r"git\+(https://[^\s\"'@]+)")

_NOTHING: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())  # no functions, no values


class AssignmentError(ValueError):
    """A notebook is not readable, or belongs to no assignment."""


@dataclass(frozen=True)
class Question:
    """One graded cell: a check (``manual`` False) or an answer that a person grades."""

    id: str
    title: str
    points: int
    manual: bool
    section: str  # where to read again, the address of a lecture notebook, or empty
    functions: tuple[str, ...]  # what the student defines for it
    values: tuple[str, ...]


@dataclass(frozen=True)
class Assignment:
    """A source notebook. ``folder`` is nbgrader's assignment id ("lecture2"), ``name`` the notebook's."""

    folder: str
    name: str
    cells: tuple[Cell, ...]
    sha256: str

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """The graded cells in the order of the notebook."""
        found: list[Question] = []
        title, functions, values = "", *_NOTHING
        for cell in self.cells:
            mark = marks(cell)
            if cell["cell_type"] == "markdown":
                headings = [line for line in source(cell).splitlines() if line.startswith("## ")]
                title = re.sub(r"\s*\(\d+ point.*\)$", "", headings[-1][3:]).strip() if headings else title
            elif mark.get("solution"):
                functions, values = defined(source(cell))
            if mark.get("grade"):
                section = self._address(cell["metadata"].get("mlcomp", {}).get("section", ""))
                manual = bool(mark.get("solution"))
                names = _NOTHING if manual else (functions, values)
                found.append(Question(mark["grade_id"], title, int(mark["points"]), manual, section, *names))
        return tuple(found)

    @cached_property
    def by_id(self) -> dict[str, Cell]:
        """The cells that nbgrader knows, by grade_id."""
        return {marks(cell)["grade_id"]: cell for cell in self.cells if marks(cell).get("grade_id")}

    def _address(self, section: str) -> str:
        """Return the address of a lecture notebook in the repository that the set-up cell names, or else its path."""
        found = next((m for cell in self.cells if (m := _REPOSITORY.search(source(cell)))), None)
        return f"{found[1]}/blob/HEAD/{section}.ipynb" if found and section else section

    @cached_property
    def answered_by(self) -> dict[str, str]:
        """The name of the code answer before each check, by the check's name."""
        found, answer = {}, ""
        for name in self.by_id:
            answer = name if self.is_answer(name) else answer
            if self.is_check(name):
                found[name] = answer
        return found

    def is_answer(self, grade_id: str | None) -> bool:
        """Whether this is a cell that the student fills in and that checks follow."""
        mark = marks(self.by_id.get(grade_id or "", {}))
        return bool(mark.get("solution")) and not mark.get("grade")

    def is_check(self, grade_id: str | None) -> bool:
        """Whether this is a cell of checks."""
        mark = marks(self.by_id.get(grade_id or "", {}))
        return bool(mark.get("grade")) and not mark.get("solution")

    def is_locked(self, grade_id: str | None) -> bool:
        """Whether this is a cell that students are not to change, and that is not a check."""
        mark = marks(self.by_id.get(grade_id or "", {}))
        return bool(mark.get("locked")) and not mark.get("grade") and not mark.get("solution")


def marks(cell: Cell) -> dict[str, Any]:
    """Return nbgrader's metadata of a cell, {} if it has none or if it is not a dict."""
    metadata = cell.get("metadata")
    mark = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    return mark if isinstance(mark, dict) and isinstance(mark.get("grade_id"), str) else {}


def is_left_out(cell: Cell) -> bool:
    """Whether a source cell carries the tag that keeps it from being run by a grader."""
    return NOT_GRADED in cell.get("metadata", {}).get("tags", [])


def source(cell: Cell) -> str:
    """Return a cell's text; notebooks store it as a string or as a list of lines."""
    text = cell.get("source", "")
    return "".join(map(str, text)) if isinstance(text, list) else str(text)


def source_root() -> Path:
    """Return the folder of the source notebooks: in the package, or beside it in a clone."""
    for folder in (_PACKAGED, _CHECKOUT):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no source notebooks: neither {_PACKAGED} nor {_CHECKOUT} exists")


def load_assignments(root: Path | None = None) -> list[Assignment]:
    """Return the assignments under ``root`` (default: those of this installation), by name."""
    return [load_assignment(path) for path in sorted((root or source_root()).glob("*/*.ipynb"))]


def load_assignment(path: Path) -> Assignment:
    """Return the assignment of one source notebook."""
    data = path.read_bytes()
    return Assignment(path.parent.name, path.stem, tuple(parse(data)), hashlib.sha256(data).hexdigest())


def parse(data: bytes) -> list[Cell]:
    """Return the cells of a notebook file, whatever else it holds; never more than what is checked here is used."""
    if not data.strip():
        raise AssignmentError("not a notebook: the file is empty")
    try:
        book = json.loads(data)
    except (ValueError, RecursionError) as error:
        kind = "a web page" if data.lstrip()[:1] == b"<" else "not what Jupyter or Colab saves"
        raise AssignmentError(
            f"not a notebook: the file is {kind}. Hand in the .ipynb file itself (Jupyter: File, Download; "
            "Colab: File, Download, Download .ipynb)"
        ) from error
    cells = book.get("cells") if isinstance(book, dict) else None
    if not isinstance(cells, list):
        raise AssignmentError("not a notebook: the file has no list of cells. Open it in Jupyter and save it again")
    if not all(isinstance(cell, dict) and "cell_type" in cell for cell in cells):
        raise AssignmentError("not a notebook: its cells are malformed. Open it in Jupyter and save it again")
    return cells


def match(cells: list[Cell], assignments: list[Assignment]) -> Assignment:
    """Return the assignment that a submission belongs to: the one with which it shares the most cell names.

    The file's name does not matter ("Copy of … (1).ipynb").
    """
    ids = {marks(cell).get("grade_id") for cell in cells}
    best = max(assignments, key=lambda a: len(ids & set(a.by_id)), default=None)
    if best is None or not ids & set(best.by_id):
        names = ", ".join(f"{a.folder}/{a.name}" for a in assignments)
        raise AssignmentError(f"this notebook belongs to no assignment that is installed here ({names})")
    return best


def as_known(known: Cell, text: str) -> Cell:
    """Return the source's cell with another text; nothing is shared."""
    cell = {"cell_type": known["cell_type"], "metadata": known["metadata"], "source": text}
    return copy.deepcopy(cell)


def defined(code: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the functions and the values that a reference solution defines at its top level."""
    functions, values = [], []
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef):
            functions.append(node.name)
        elif isinstance(node, ast.Assign):
            values += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return tuple(n for n in functions if not n.startswith("_")), tuple(n for n in values if not n.startswith("_"))
