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
_SOLUTION = re.compile(r"### BEGIN SOLUTION.*?### END SOLUTION", re.S)
_NOT_ANSWERED = "raise NotImplementedError"

# The repository's address, as the set-up cell says it.
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
                functions, values = _defined(source(cell))
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
        """Return the address of a lecture notebook in the repository that the set-up cell installs from."""
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


def aligned(cells: list[Cell], assignment: Assignment) -> list[Cell]:
    """Return a submission's cells with the checks and locked cells as in the source, and missing checks at the end.

    Jupyter copies and splits a cell together with its name, so a name may come twice. Of a check or a locked cell the
    first counts. A written answer is all that stands in the cells of its name, or, if that is nothing, in the
    student's own text beside it. A code answer that is still as it was handed out gives way to any other cell that
    defines its names, and its check waits for that cell. Nothing is shared with the arguments.
    """
    kept: list[Cell] = []
    seen: set[str] = set()
    waiting: dict[int, list[Cell]] = {}  # checks, by the place of the cell that they come after
    written = {name: _written(name, cells, assignment) for name in _written_answers(assignment)}
    taken = {place for _, places in written.values() for place in places}
    replaced = {name: _replacement(name, cells, assignment) for name in assignment.by_id}
    for place, cell in enumerate(cells):
        grade_id = marks(cell).get("grade_id", "")
        known = assignment.by_id.get(grade_id)
        if known is None:
            if place not in taken:
                kept.append(_own(cell))
        elif grade_id in written:
            if grade_id not in seen:
                text, places = written[grade_id]
                sources = [c for i, c in enumerate(cells) if i in places or marks(c).get("grade_id") == grade_id]
                kept.append({**_as_known(known, text), **_attached(*sources)})
        elif assignment.is_answer(grade_id):
            untouched = replaced[grade_id] is not None and _is_untouched(source(cell), known)
            text = "" if untouched else source(cell)
            kept.append(_as_known(known, text) if grade_id not in seen else _own({**cell, "source": text}))
        elif grade_id in seen:
            kept.append(_own(cell))
        else:
            later = replaced.get(assignment.answered_by.get(grade_id, "")) if assignment.is_check(grade_id) else None
            if later is not None and later > place:
                waiting.setdefault(later, []).append(_as_known(known, source(known)))
            else:
                kept.append(_as_known(known, source(known)))
        seen.add(grade_id)
        kept += waiting.pop(place, [])
    missing = [(grade_id, known) for grade_id, known in assignment.by_id.items() if grade_id not in seen]
    for grade_id, known in missing:
        text = source(known) if not marks(known).get("solution") else written.get(grade_id, ("", ()))[0]
        kept.append(_as_known(known, text))
    return kept


def defines(code: str, names: tuple[str, ...]) -> bool:
    """Whether code defines one of these names at its top level, also code that does not compile."""
    return any(re.search(rf"^(?:def {name}\b|{name}\s*=(?!=))", code, re.M) for name in names)


def _written_answers(assignment: Assignment) -> list[str]:
    return [question.id for question in assignment.questions if question.manual]


def _written(name: str, cells: list[Cell], assignment: Assignment) -> tuple[str, tuple[int, ...]]:
    """Return a written answer, and the places of the student's own cells that it was found in, if it was there."""
    texts = [source(cell) for cell in cells if marks(cell).get("grade_id") == name]
    texts = [text for text in texts if text.strip() not in ("", STUB)]
    if texts:
        return "\n\n".join(dict.fromkeys(texts)), ()  # a copy that was left as it is does not count twice
    order = list(assignment.by_id)
    at = {marks(cell).get("grade_id"): place for place, cell in reversed(list(enumerate(cells)))}
    number = order.index(name)
    first = max((at[before] for before in order[:number] if before in at), default=-1)
    last = min((at[after] for after in order[number + 1 :] if after in at), default=len(cells))
    printed = {_first_line(cell) for cell in assignment.cells}
    places = [
        place
        for place in range(first + 1, last)
        if cells[place]["cell_type"] == "markdown"
        and marks(cells[place]).get("grade_id") not in assignment.by_id
        and _first_line(cells[place]) not in printed
    ]
    return "\n\n".join(source(cells[place]) for place in places) or STUB, tuple(places)


def _first_line(cell: Cell) -> str:
    return (source(cell).strip().splitlines() or [""])[0].strip()


def _replacement(name: str, cells: list[Cell], assignment: Assignment) -> int | None:
    """Return the place of the first cell that answers instead of the untouched ones; None: no need or no cell."""
    known = assignment.by_id[name]
    if not assignment.is_answer(name) or known["cell_type"] != "code":
        return None
    functions, values = _defined(source(known))
    own = [place for place, cell in enumerate(cells) if marks(cell).get("grade_id") == name]
    if own and not any(_is_untouched(source(cells[place]), known) for place in own):
        return None
    return next(
        (
            place
            for place, cell in enumerate(cells)
            if cell["cell_type"] == "code"
            and defines(source(cell), functions + values)
            and not _is_untouched(source(cell), known)
        ),
        None,
    )


def _is_untouched(text: str, known: Cell) -> bool:
    """Whether a code answer is as it was handed out, but for comments and blank lines."""
    handed_out = _SOLUTION.sub(_NOT_ANSWERED, source(known))
    lines, original = (
        [line.strip() for line in code.replace(f"{_NOT_ANSWERED}()", _NOT_ANSWERED).splitlines()]
        for code in (text, handed_out)
    )
    plain = [[line for line in code if line and not line.startswith("#")] for code in (lines, original)]
    return plain[0] == plain[1]


def _own(cell: Cell) -> Cell:
    """Return a cell of the student's own, without anything but its text."""
    return {**_attached(cell), "cell_type": cell["cell_type"], "source": source(cell), "metadata": {}}


def _attached(*cells: Cell) -> Cell:
    """Return the pictures of some cells, as a part of one."""
    found = [cell["attachments"] for cell in cells if isinstance(cell.get("attachments"), dict)]
    pictures = {name: data for attached in found for name, data in attached.items()}
    return {"attachments": pictures} if pictures else {}


def _as_known(known: Cell, text: str) -> Cell:
    cell = {"cell_type": known["cell_type"], "metadata": known["metadata"], "source": text}
    return copy.deepcopy(cell)


def _defined(code: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the functions and the values that a reference solution defines at its top level."""
    functions, values = [], []
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef):
            functions.append(node.name)
        elif isinstance(node, ast.Assign):
            values += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return tuple(n for n in functions if not n.startswith("_")), tuple(n for n in values if not n.startswith("_"))
