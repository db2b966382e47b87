"""What grading a submission gives: points, messages, printed output; as a table, JSON and a page."""

import html
import json
import unicodedata
from dataclasses import asdict, dataclass
from typing import Any


def tidy(text: str, limit: int) -> str:
    """Return a text that every file can hold: half a character becomes "?"; what is over the limit is left out."""
    text = text[: limit + 1].encode(errors="replace").decode()
    return text if len(text) <= limit else text[:limit] + "\n… (shortened)"


def printable(text: str) -> str:
    """Return a text for a terminal: what is no letter, sign or line break is escaped, and cannot steer it."""
    return "".join(
        c if c == "\n" or unicodedata.category(c)[0] not in "CZ" or c == " " else c.encode("unicode_escape").decode()
        for c in text
    )


def no_formula(text: str) -> str:
    """Return a text for a cell of a table: one that a spreadsheet would take for a formula gets a ' in front."""
    text = printable(text).replace("\n", " ")
    # Spreadsheets take signs of full width for the signs, and pass over spaces in front.
    first = unicodedata.normalize("NFKC", text).lstrip()[:1]
    return f"'{text}" if first and first in "=+-@" else text


@dataclass(frozen=True)
class Result:
    """The outcome of one question. ``points`` is None while a person has yet to grade it."""

    id: str
    title: str
    manual: bool
    points: int | None
    maximum: int
    message: str
    section: str


@dataclass(frozen=True)
class CellOutput:
    """What a cell of the submission printed, and the error that it raised (empty: none)."""

    source: str
    printed: str
    error: str


@dataclass(frozen=True)
class Report:
    """The outcome of one submission. The hashes say of which files; the seed repeats the checks."""

    assignment: str
    source_sha256: str
    submission_sha256: str
    seed: int
    sandboxed: bool
    seconds: float
    problem: str  # why the process ended early (empty: it did not)
    results: tuple[Result, ...]
    outputs: tuple[CellOutput, ...]

    @property
    def points(self) -> int:
        """Points of the questions that are graded automatically."""
        return sum(result.points or 0 for result in self.results if not result.manual)

    @property
    def maximum(self) -> int:
        """The most that can be had automatically."""
        return sum(result.maximum for result in self.results if not result.manual)

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json.dumps(asdict(self), indent=1)  # ASCII: the file can be shown in a terminal

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """Return the report of :meth:`to_json`."""
        data: dict[str, Any] = json.loads(text)
        data["results"] = tuple(Result(**result) for result in data["results"])
        data["outputs"] = tuple(CellOutput(**output) for output in data["outputs"])
        return cls(**data)


def table(report: Report) -> str:
    """Return the report as lines of text for a terminal: question, points, what to look at again."""
    width = max([len(result.title) for result in report.results] + [8])
    lines = [f"{'Question':<{width}}  Points  What to look at again"]
    for result in report.results:
        points = "by hand" if result.points is None else f"{result.points} of {result.maximum}"
        first, *more = result.message.splitlines() or [""]
        lines.append(f"{result.title:<{width}}  {points:<7} {first}")
        lines += [" " * (width + 10) + line for line in more[:3]]
        if result.points == 0 and result.section:
            lines.append(" " * (width + 10) + f"read again: {result.section}")
    lines.append(f"{'Total':<{width}}  {report.points} of {report.maximum} (graded automatically)")
    if report.problem:
        lines.append(f"The notebook's process ended early: {report.problem}")
    return printable("\n".join(lines))


# The page needs nothing from anywhere: should a student's text ever come through as a tag, it loads and runs nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; } td, th { padding: .4rem .6rem; text-align: left;
vertical-align: top; border-bottom: 1px solid #8886; } pre { overflow-x: auto; padding: .6rem; background: #8881; }
.full::before { content: "✓ "; } .none::before { content: "✗ "; } .wait::before { content: "… "; }
:root { color-scheme: light dark; }
"""


def page(report: Report) -> str:
    """Return the report as a self-contained HTML page; all of the student's text is escaped."""
    rows = []
    for r in report.results:
        kind = "wait" if r.points is None else "full" if r.points == r.maximum else "none"
        points = f"graded by hand, of {r.maximum}" if r.points is None else f"{r.points} of {r.maximum}"
        again = html.escape(r.message).replace("\n", "<br>")
        if r.points == 0 and r.section:
            place = html.escape(r.section)
            linked = place.startswith("https://")  # else the book has no address yet, and this is a path
            again += f'<br><a href="{place}">Read again</a>' if linked else f"<br>Read again: {place}"
        rows.append(f'<tr><td class="{kind}">{html.escape(r.title)}</td><td>{points}</td><td>{again}</td></tr>')
    problem = f"<p><b>The notebook's process ended early:</b> {html.escape(report.problem)}</p>"
    cells = [
        f"<details><summary>Cell {number}{': ' + html.escape(o.error) if o.error else ''}</summary>"
        f"<pre>{html.escape(o.source)}</pre><pre>{html.escape(o.printed)}</pre></details>"
        for number, o in enumerate(report.outputs, 1)
        if o.printed or o.error
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{html.escape(report.assignment)}</title>"
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(report.assignment)}</h1>"
        f"<p>{report.points} of {report.maximum} points (graded automatically)</p>{problem if report.problem else ''}"
        f"<table><tr><th>Question</th><th>Points</th><th>What to look at again</th></tr>{''.join(rows)}</table>"
        f"<h2>What the cells printed</h2>{''.join(cells) or '<p>Nothing.</p>'}"
        f"<p>Checks drawn with seed {report.seed}.</p></body></html>\n"
    )
