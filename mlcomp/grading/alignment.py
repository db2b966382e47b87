"""How a submission lines up with its assignment: answers that were copied, split or put elsewhere are found."""

import re

from mlcomp.grading.assignment import (
    NOT_ANSWERED,
    SOLUTION,
    STUB,
    Assignment,
    Cell,
    as_known,
    defined,
    marks,
    source,
)


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
                kept.append({**as_known(known, text), **_attached(*sources)})
        elif assignment.is_answer(grade_id):
            untouched = replaced[grade_id] is not None and _is_untouched(source(cell), known)
            text = "" if untouched else source(cell)
            kept.append(as_known(known, text) if grade_id not in seen else _own({**cell, "source": text}))
        elif grade_id in seen:
            kept.append(_own(cell))
        else:
            later = replaced.get(assignment.answered_by.get(grade_id, "")) if assignment.is_check(grade_id) else None
            if later is not None and later > place:
                waiting.setdefault(later, []).append(as_known(known, source(known)))
            else:
                kept.append(as_known(known, source(known)))
        seen.add(grade_id)
        kept += waiting.pop(place, [])
    missing = [(grade_id, known) for grade_id, known in assignment.by_id.items() if grade_id not in seen]
    for grade_id, known in missing:
        text = source(known) if not marks(known).get("solution") else written.get(grade_id, ("", ()))[0]
        kept.append(as_known(known, text))
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
    functions, values = defined(source(known))
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
    handed_out = SOLUTION.sub(NOT_ANSWERED, source(known))
    lines, original = (
        [line.strip() for line in code.replace(f"{NOT_ANSWERED}()", NOT_ANSWERED).splitlines()]
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
