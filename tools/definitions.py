"""Nothing before its definition: where the notebooks, read in their order, first use a term of the glossary.

A first use defines the term, set in bold or in a heading, or is a link. Header, footer and the last sections, which
may point ahead, are left out, and so are code and formulas.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import nbformat

from tools.lint import AHEAD, FORMULA, LINK, PROSE_CODE
from tools.stamp import ROOT, contents
from tools.terms import finder

BOLD = re.compile(r"\*\*[^*]+\*\*|^#+ .*$|^> \*\*.*?\*\*", re.MULTILINE)


@dataclass(frozen=True)
class Use:
    """The first use of a term in the book."""

    notebook: Path
    cell: int
    start: int
    text: str
    slug: str
    explained: bool


def blanked(pattern: re.Pattern[str], text: str) -> str:
    """Put spaces in place of what a pattern finds, so that all else keeps its position."""
    return pattern.sub(lambda hit: " " * len(hit.group()), text)


def first_uses(notebooks: list[Path] | None = None) -> list[Use]:
    """Return the first use of each term, in the order of reading."""
    if notebooks is None:
        notebooks = [
            p for name in contents() if name.startswith("lectures/") and (p := ROOT / f"{name}.ipynb").exists()
        ]
    search, slugs = finder()
    seen: set[str] = set()
    uses = []
    for notebook in notebooks:
        section = ""
        for n, cell in enumerate(nbformat.read(notebook, as_version=4).cells[1:-1], 1):
            if cell.cell_type != "markdown":
                continue
            text = blanked(FORMULA, blanked(PROSE_CODE, cell.source))
            headings = [(h.start(), h[1].strip().lower()) for h in re.finditer(r"^## (.+)$", text, re.MULTILINE)]
            explained = [hit.span() for pattern in (BOLD, LINK) for hit in pattern.finditer(text)]
            for hit in search.finditer(text):
                slug = slugs[hit.lastindex - 1]
                here = next((name for start, name in reversed(headings) if start <= hit.start()), section)
                if slug in seen or here.startswith(AHEAD):
                    continue
                seen.add(slug)
                fine = any(start <= hit.start() and hit.end() <= end for start, end in explained)
                uses.append(Use(notebook, n, hit.start(), hit.group(), slug, fine))
            section = headings[-1][1] if headings else section
    return uses


def linked(nb: nbformat.NotebookNode, uses: list[Use]) -> None:
    """Link first uses in a notebook to the glossary."""
    for use in sorted(uses, key=lambda use: -use.start):  # from the end, so that positions stay
        source = nb.cells[use.cell].source
        words = " ".join(use.text.split())
        link = f"[{words}](../../book/glossary.md#term-{use.slug})"
        nb.cells[use.cell].source = source[: use.start] + link + source[use.start + len(use.text) :]
