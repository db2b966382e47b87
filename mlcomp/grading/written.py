"""What a student wrote, as Markdown that is harmless in every page: nbgrader's formgrader, its feedback, Jupyter.

Those pages turn Markdown into HTML and pass raw HTML through, with the rights of whoever looks at them. So the
Markdown is made into HTML here, cleaned by bleach, and stored as one HTML block in which every sign of the text is a
numeric character reference. No text can then become a tag, a link or Markdown again, whichever renderer comes next.
"""

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from types import FrameType
from typing import Any

import bleach
import nbformat
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat.notebooknode import NotebookNode

from mlcomp.grading.alignment import aligned
from mlcomp.grading.assignment import STUB, Assignment, AssignmentError, Cell, marks
from mlcomp.grading.limits import Limits
from mlcomp.grading.submission import cells_of, content

_TAGS = set(
    "a b blockquote br code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i img ins kbd li ol p pre s span strong "
    "sub summary sup table tbody td th thead tr ul".split()
)
_EMPTY = {"br", "hr", "img"}
_DEEP = 100  # tags inside of each other
_ADDRESSES = 8 * 2**20  # characters of all addresses, pictures among them: a text can use one of its own many times
_LINK = re.compile(r"(https?://|mailto:)\S+", re.I)
_PICTURE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/=]+")
# What TeX offers beside formulas in MathJax: links, styles, ids and classes, further extensions.
_MACROS = re.compile(
    r"\\(?=(href|url|style|class|cssId|data|require|mmlToken|unicode|bbox|html\w*|includegraphics|texttip|tooltip)\b)"
)
# A picture from elsewhere would tell its owner who looks when; a link into the same server acts for the teacher.
_ATTRIBUTES: dict[tuple[str, str], re.Pattern[str]] = {
    ("a", "href"): _LINK,
    ("img", "src"): _PICTURE,
    ("img", "alt"): re.compile(r".*", re.S),
}


class _OutOfTime(Exception):
    pass


def clean_copy(submission: Path, assignment: Assignment, limits: Limits) -> NotebookNode:
    """Return the submission in the source's structure; one that cannot be read has no answers."""
    try:
        cells: list[Cell] = aligned(cells_of(content(submission, limits), limits), assignment)
    except AssignmentError:
        cells = aligned([], assignment)
    book = nbformat.v4.new_notebook()
    book.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    written = [cell for cell in cells if cell["cell_type"] != "code" and not _is_ours(cell, assignment)]
    texts = {id(cell): text for cell, text in zip(written, harmless(written, seconds=limits.rendering), strict=True)}
    for number, cell in enumerate(cells):
        make = nbformat.v4.new_code_cell if cell["cell_type"] == "code" else nbformat.v4.new_markdown_cell
        new = make(texts.get(id(cell), cell["source"]))
        new["id"], new["metadata"] = f"cell-{number}", nbformat.from_dict(cell["metadata"])
        book.cells.append(new)
    return book


def _is_ours(cell: Cell, assignment: Assignment) -> bool:
    """Whether the text of a cell is the course's own."""
    return cell["source"] == STUB or assignment.is_locked(marks(cell).get("grade_id"))


def harmless(cells: list[Cell], *, seconds: float) -> list[str]:
    """Return the texts of cells that students wrote as Markdown that does nothing but show them.

    Args:
        cells: Markdown cells with their attachments; of other cells the text is shown as it is.
        seconds: after which the texts that are left are shown as they are, not as Markdown.
    """
    done: list[str] = []
    renderer = _Renderer(escape=False, exclude_anchor_links=True)
    try:
        with _alarm(seconds):
            for cell in cells:
                is_markdown = cell["cell_type"] == "markdown"
                done.append(_formatted(cell, renderer) if is_markdown else _plain(cell["source"]))
    except _OutOfTime:
        pass
    return done + [_plain(cell["source"]) for cell in cells[len(done) :]]


def _formatted(cell: Cell, renderer: "_Renderer") -> str:
    renderer.attachments = cell.get("attachments", {})
    try:
        html = MarkdownWithMath(renderer=renderer).render(cell["source"])
        clean = bleach.clean(
            html, tags=_TAGS, attributes=_is_allowed, protocols={"http", "https", "mailto", "data"}, strip=True
        )
        return _encoded(clean)
    except _OutOfTime:
        raise
    except Exception:  # whatever the text does to the renderer, the text itself can be shown
        return _plain(cell["source"])


def _plain(text: str) -> str:
    return f"<pre>{_references(text)}</pre>"


def _is_allowed(tag: str, name: str, value: str) -> bool:
    pattern = _ATTRIBUTES.get((tag, name))
    return pattern is not None and pattern.fullmatch(value) is not None


class _Renderer(IPythonRenderer):
    """nbconvert's renderer with a bound on addresses, for which a picture that is missing is no error."""

    left = _ADDRESSES

    def image(self, text: str, url: str, title: str | None = None) -> str:
        attached = self.attachments.get(url.removeprefix("attachment:"), {})
        for kind, data in attached.items():
            url = f"data:{kind};base64,{data}"
        return super(IPythonRenderer, self).image(text, self._spent(url))

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, self._spent(url))

    def _spent(self, url: str) -> str:
        if len(url) > self.left:
            return ""
        self.left -= len(url)
        return url


def _encoded(html: str) -> str:
    writer = _Writer()
    writer.feed(html)
    writer.close()
    return f"<div>{''.join(writer.parts)}</div>"


class _Writer(HTMLParser):
    """Writes clean HTML again: the tags and attributes that are allowed, all else as character references."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.code = self.depth = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        kept = {name: value for name, value in attributes if value and _is_allowed(tag, name, value)}
        if tag not in _TAGS:
            return
        if tag == "img" and "src" not in kept:
            self.handle_data(f"[picture: {kept.get('alt', '')}]")
            return
        if tag == "a":
            kept["rel"] = "noopener noreferrer"
        self.code += tag in ("code", "pre")
        self.depth += tag not in _EMPTY
        if self.depth > _DEEP:
            raise ValueError(f"more than {_DEEP} tags inside of each other")
        written = "".join(f' {name}="{_references(value)}"' for name, value in kept.items())
        self.parts.append(f"<{tag}{written}>")

    def handle_endtag(self, tag: str) -> None:
        if tag in _TAGS - _EMPTY:
            self.code -= tag in ("code", "pre")
            self.depth -= 1
            self.parts.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.parts.append(_references(data if self.code > 0 else _MACROS.sub("", data)))


def _references(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9 ]", lambda found: f"&#{ord(found[0])};", text)


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise _OutOfTime in the block when its time is up; outside of the main thread, where nothing can, at once."""
    if threading.current_thread() is not threading.main_thread():
        raise _OutOfTime

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise _OutOfTime

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGALRM, ring)
    # Again and again: Python drops an exception that is raised while it collects garbage or deletes an object.
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
