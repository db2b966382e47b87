"""Upgrades plain Markdown of the notebooks to what the book can do: boxes, links to theorems, and the bibliography.

The notebooks hold only what Jupyter, Colab and GitHub render, too. Here a quotation that begins with a bold title
becomes a box, one that begins with **Theorem 1 (Name).** gets an anchor as well; the words "Theorem 1" lead there; a
link to a paper leads to its entry in the bibliography; links to theorems and terms of other pages find their places.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from glossary import inside
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util.nodes import make_refnode

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.lint import STATEMENTS  # noqa: E402  (the folder is put on the path above)
from tools.papers import papers  # noqa: E402

NUMBERED = re.compile(rf"({STATEMENTS}|Exercise) (\d+)")
KINDS = {"Predict first": "predict", "Your turn": "your-turn", "Proof": "proof"}
MENTION = re.compile(rf"\b(?:({STATEMENTS}|Exercise) (\d+)|Eq\. \((\d+)\))")
TAG = re.compile(r"\\tag\{(\d+)\}")
UNTOUCHED = (nodes.reference, nodes.title, nodes.literal, nodes.literal_block, nodes.math, addnodes.pending_xref)


class Boxes(SphinxTransform):
    """Make boxes of quotations with a bold title, and give numbered equations an anchor."""

    default_priority = 400

    def apply(self, **_: object) -> None:
        """Change the document in place."""
        for quote in list(self.document.findall(nodes.block_quote)):
            first = quote.children[0] if quote.children else None
            if not isinstance(first, nodes.paragraph):
                continue
            if not first.children[0].astext():  # MyST begins a paragraph that starts in bold with an empty text
                first.pop(0)
            head = first.children[0]
            if isinstance(head, nodes.strong | nodes.emphasis) and head.astext().endswith("."):
                self.make_box(quote, first, head)
        for block in self.document.findall(nodes.math_block):
            if tag := TAG.search(block.astext()):
                block["ids"].append(f"equation-{tag[1]}")

    @staticmethod
    def make_box(quote: nodes.block_quote, first: nodes.paragraph, head: nodes.Element) -> None:
        """Put an admonition in place of a quotation that begins with ``head``."""
        title = head.astext().removesuffix(".")
        if isinstance(head, nodes.emphasis) and title != "Proof":
            return
        box = nodes.admonition(classes=["box"])
        if numbered := NUMBERED.match(title):
            kind = numbered[1].lower()
            box["classes"] += ["statement" if kind != "exercise" else "exercise", kind]
            box["ids"].append(f"{kind}-{numbered[2]}")
        else:
            box["classes"].append(KINDS.get(title, "aside"))
        heading = nodes.title("", "", *[child.deepcopy() for child in head.children])
        last = heading.children[-1]
        heading.replace(last, nodes.Text(last.astext().removesuffix(".")))
        first.remove(head)
        if first.children and isinstance(first.children[0], nodes.Text):
            first.replace(first.children[0], nodes.Text(first.children[0].lstrip()))
        box += [heading, *([first] if first.children else []), *quote.children[1:]]
        quote.replace_self(box)


class Mentions(SphinxTransform):
    """Link the words "Theorem 1" and "Eq. (1)" to what the page numbers so."""

    default_priority = 410

    def apply(self, **_: object) -> None:
        """Change the document in place."""
        ids = {name for node in self.document.findall(nodes.Element) for name in node.get("ids", [])}
        for text in list(self.document.findall(nodes.Text)):
            if not inside(text, UNTOUCHED) and MENTION.search(text):
                text.parent.replace(text, list(self.linked(str(text), ids)))

    @staticmethod
    def linked(text: str, ids: set[str]) -> Iterator[nodes.Node]:
        """Return the text in pieces, with a link where it names one of the page's ``ids``."""
        end = 0
        for hit in MENTION.finditer(text):
            anchor = f"equation-{hit[3]}" if hit[3] else f"{hit[1].lower()}-{hit[2]}"
            if anchor in ids:
                yield nodes.Text(text[end : hit.start()])
                yield nodes.reference(hit[0], hit[0], internal=True, refid=anchor)
                end = hit.end()
        yield nodes.Text(text[end:])


def cite(app, doctree: nodes.document, page: str) -> None:
    """Lead links to papers to the bibliography, where the papers' own addresses are."""
    listed = papers()
    entries = {c.key: c for c in app.env.get_domain("cite").citations}
    for link in list(doctree.findall(nodes.reference)):
        paper = listed.get(link.get("refuri", ""))
        entry = entries.get(paper.key) if paper else None
        if entry is not None and entry.bibliography_key.docname != page:
            entered = make_refnode(app.builder, page, entry.bibliography_key.docname, entry.citation_id, [])
            entered.children = [child.deepcopy() for child in link.children]
            entered["classes"].append("citation")
            link.replace_self(entered)


def find_places(app, doctree: nodes.document) -> None:
    """Make addresses of links to a theorem, exercise or term of another page: MyST knows only headings there."""
    for link in list(doctree.findall(addnodes.pending_xref)):
        place = link.get("reftargetid")
        if link.get("refdomain") == "doc" and place and re.match(r"(?:[a-z]+-\d+|term-.+)$", place):
            uri = f"{app.builder.get_relative_uri(app.env.docname, link['reftarget'])}#{place}"
            reference = nodes.reference("", "", *[c.deepcopy() for c in link.children], internal=True, refuri=uri)
            link.replace_self(reference)


def setup(app) -> dict:
    """Register the extension with Sphinx."""
    app.add_transform(Boxes)
    app.add_transform(Mentions)
    app.connect("doctree-read", find_places)
    app.connect("doctree-resolved", cite)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
