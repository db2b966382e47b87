"""The messages of the checks, read off the source notebooks."""

import ast
from collections.abc import Iterator

from mlcomp.grading.assignment import Assignment, source


def messages(assignment: Assignment, question: str) -> set[str]:
    """Return the fixed words of each message in a question's checks: the longest stretch without a value in it."""
    tree = ast.parse(source(assignment.by_id[question]))
    return {text for text in _texts(tree) if " " in text.strip()}


def _texts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.JoinedStr):
        yield max((part.value for part in node.values if isinstance(part, ast.Constant)), key=len, default="")
    elif isinstance(node, ast.Constant):
        yield node.value if isinstance(node.value, str) else ""
    else:
        docstring = isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None
        for child in ast.iter_child_nodes(node):
            if not (docstring and child is node.body[0]):
                yield from _texts(child)
