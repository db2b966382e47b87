"""The papers of `book/references.bib`, by address: how a link names one, and how the book finds its entry."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from pybtex.database import parse_file
from pybtex.richtext import Text

from tools.stamp import ROOT

BIB = ROOT / "book" / "references.bib"
PAPER = re.compile(r"https?://(?:arxiv\.org|doi\.org|dx\.doi\.org|openreview\.net)/")


@dataclass(frozen=True)
class Paper:
    """One entry of the bibliography."""

    key: str
    url: str
    year: str
    authors: tuple[str, ...]  # last names

    @property
    def names(self) -> str:
        """Return the authors as a sentence names them."""
        if len(self.authors) > 2:
            return f"{self.authors[0]} et al."
        return " and ".join(self.authors)


def address(fields: Mapping[str, str]) -> str:
    """Return where a paper can be read: the entry's url, its page on arXiv, or its DOI."""
    if "url" in fields:
        return fields["url"]
    if "eprint" in fields:
        return f"https://arxiv.org/abs/{fields['eprint']}"
    return f"https://doi.org/{fields['doi']}" if "doi" in fields else ""


@cache
def papers() -> dict[str, Paper]:
    """Return address → paper."""
    found = {}
    for key, entry in parse_file(BIB, bib_format="bibtex").entries.items():
        people = entry.persons.get("author", entry.persons.get("editor", []))
        names = tuple(str(Text.from_latex(" ".join([*p.prelast_names, *p.last_names]))) for p in people)
        if url := address(entry.fields):
            found[url] = Paper(key, url, entry.fields.get("year", ""), names)
    return found


def problem(text: str, target: str, listed: dict[str, Paper]) -> str | None:
    """Say what is wrong with a link to a paper: it is not listed, or the text names another."""
    paper = listed.get(target)
    if paper is None:
        return f"cites {target}, which book/references.bib doesn't list as a url" if PAPER.match(target) else None
    if re.search(r"\b(19|20)\d\d\b", text) and (
        paper.year not in text or paper.names not in text.replace("\u00a0", " ")
    ):
        return f"names {text!r} for {paper.names} ({paper.year})"
    return None
