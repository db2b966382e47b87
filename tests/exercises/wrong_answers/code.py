"""How wrong answers are written down: a header and a body, or a reference with something changed."""

from functools import cache
from textwrap import dedent, indent

from mlcomp.grading.assignment import Assignment, load_assignments, source


def function(header: str, body: str) -> str:
    """Return the source of a function."""
    return f"def {header}:\n{indent(dedent(body).strip(), '    ')}\n"


def changed(header: str, body: str, *changes: tuple[str, str]) -> str:
    """Return the source of a function whose body has each (old, new) replaced."""
    for old, new in changes:
        if old not in body:
            raise ValueError(f"{old!r} is not in the reference")
        body = body.replace(old, new)
    return function(header, body)


def mutated(folder: str, question: str, *changes: tuple[str, str]) -> str:
    """Return the reference answer of a question with each (old, new) replaced."""
    answer = source(_assignments()[folder].by_id[f"{question}-answer"])
    for old, new in changes:
        if old not in answer:
            raise ValueError(f"{old!r} is not in the answer to {question}")
        answer = answer.replace(old, new)
    return answer


@cache
def _assignments() -> dict[str, Assignment]:
    return {assignment.folder: assignment for assignment in load_assignments()}
