"""What a student handed in: the bytes and the cells of a file, read without trust in any of it."""

import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Any

from mlcomp.grading.assignment import AssignmentError, Cell, parse, source
from mlcomp.grading.limits import Limits
from mlcomp.grading.report import tidy

_IMAGES = ("image/png", "image/jpeg")


def content(path: Path, limits: Limits, *, follow: bool = False) -> bytes:
    """Return the bytes of a submission.

    Args:
        path: the file.
        limits: no more than its size of a notebook is read.
        follow: let the file, or the folder that it is in, be a link.
    Raises:
        AssignmentError: a link, not a regular file, too large, or not readable.
    """
    keep = 0 if follow else os.O_NOFOLLOW
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | keep)
        try:
            # Without O_NONBLOCK a pipe without a writer would hold the grader up.
            fd = os.open(path.name, os.O_RDONLY | os.O_NONBLOCK | keep, dir_fd=folder)
        finally:
            os.close(folder)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise AssignmentError("not a file: hand in the notebook itself")
            data = file.read(limits.notebook + 1)
    except OSError as error:
        if not follow and (path.is_symlink() or path.parent.is_symlink()):
            raise AssignmentError("a link, not a file: hand in the notebook itself") from error
        raise AssignmentError(f"the file cannot be read: {error.strerror}") from error
    if len(data) > limits.notebook:
        raise AssignmentError(f"the file is larger than {limits.notebook >> 20} MiB: clear its outputs and save it")
    return data


def digest(path: Path, limits: Limits) -> str:
    """Return the hash of a submission, which is empty for one that cannot be read."""
    try:
        return hashlib.sha256(content(path, limits)).hexdigest()
    except AssignmentError:
        return ""


def cells_of(data: bytes, limits: Limits) -> list[Cell]:
    """Return the cells of a notebook file with type, text and pictures only, all of the kinds that they should be.

    Raises:
        AssignmentError: not a notebook, or one with more cells or text than the limits allow.
    """
    cells = parse(data)
    if len(cells) > limits.cells:
        raise AssignmentError(f"the notebook has {len(cells)} cells; {limits.cells} is the limit")
    kept, total = [], 0
    for number, cell in enumerate(cells, 1):
        text = source(cell)
        total += len(text)
        if max(len(text), total / 10) > limits.text:
            raise AssignmentError(
                f"cell {number} is too long: {limits.text} characters is the limit, and ten times that for all"
            )
        kind = cell["cell_type"] if cell["cell_type"] in ("code", "markdown") else "raw"
        kept.append({**cell, "cell_type": kind, "source": tidy(text, limits.text), "attachments": _pictures(cell)})
    return kept


def _pictures(cell: Cell) -> dict[str, dict[str, str]]:
    """Return the pictures that are attached to a cell; anything else that is attached is left out."""
    attached = cell.get("attachments")
    kept: dict[str, dict[str, str]] = {}
    for name, kinds in attached.items() if isinstance(attached, dict) else ():
        found: dict[str, Any] = kinds if isinstance(kinds, dict) else {}
        for kind in _IMAGES:
            data = found.get(kind)
            if isinstance(data, str) and re.fullmatch(r"[A-Za-z0-9+/=\s]+", data):
                kept[name] = {kind: "".join(data.split())}
                break
    return kept
