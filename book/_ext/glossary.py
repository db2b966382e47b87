"""`{glossary-table}`: the page of the glossary; and notebook pages link the first use of each term to it.

A term is linked in plain text only: not in headings, links, code, formulas, titles, nor in bold, where it is defined.
A term that the notebook links itself is not linked again. All forms of a term are entries of the search, too.
"""

import functools
import html
import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools import inventory  # noqa: E402  (the folder is put on the path above)

PAGE = "book/glossary"
SOURCES = (ROOT / "book" / "glossary.yml", ROOT / "tools" / "inventory.py")
# What a term inside is already: a heading, a link, code, a formula, a definition, the title of something.
NO_LINK = (
    nodes.title, nodes.rubric, nodes.caption, nodes.reference, nodes.literal, nodes.literal_block, nodes.math,
    nodes.math_block, nodes.raw, nodes.strong, nodes.emphasis, nodes.comment, addnodes.pending_xref,
)  # fmt: skip


def form_pattern(form: str) -> str:
    """Return the regular expression of a word: names keep their capitals, other words don't, and take a plural."""
    escaped = re.escape(form).replace(r"\ ", r"\s+")
    if re.search(r"[A-Z0-9:].*[A-Z0-9:#]", form):
        return escaped + ("s?" if form[-1].isalpha() else "")
    return f"(?i:{escaped}{'' if form.endswith('s') else 's?'})"


@functools.cache
def finder() -> tuple[re.Pattern[str], list[str]]:
    """Return the expression that finds any term, and the slug of each of its groups."""
    forms = [(form, term.slug) for term in inventory.glossary() if not term.common for form in term.forms]
    forms.sort(key=lambda item: -len(item[0]))  # "inverse Hessian" before "Hessian"
    groups = "|".join(f"({form_pattern(form)})" for form, _ in forms)
    return re.compile(rf"(?<![\w:.#/-])(?:{groups})(?![\w:#/-])"), [slug for _, slug in forms]


def entry(value: str, target: str, *, main: bool) -> addnodes.index:
    """Return an entry of the search (and of the general index)."""
    return addnodes.index(entries=[("single", value.replace(";", ","), target, "main" if main else "", None)])


def words_of(term: inventory.Term) -> list[str]:
    """Return the names in the other languages, each by itself: the search finds no part of a longer entry."""
    parts = (word.strip() for name in term.names.values() for word in re.split(r"[,、(()]|[))]", name))
    return [word for word in parts if word]


def row(term: inventory.Term) -> str:
    """Return the row of a term: a cell for each language, with the name and the meaning."""
    others = [form for form in term.forms[1:] if form.lower() != term.name.lower()]
    also = f" <small>{html.escape(', '.join(others))}</small>" if others else ""
    cells = [
        f'<th scope="row"><dfn>{html.escape(term.name)}</dfn>{also}<p>{html.escape(term.meanings["en"])}</p></th>'
    ]
    for language, name in term.names.items():
        meaning = html.escape(term.meanings[language])
        cells.append(f'<td lang="{language}"><b>{html.escape(name)}</b><p>{meaning}</p></td>')
    return f'<tr id="term-{term.slug}">{"".join(cells)}</tr>'


class Glossary(SphinxDirective):
    """The table of all terms."""

    def run(self) -> list[nodes.Node]:
        """Put the table, and an entry of the search for each form in each language."""
        for path in SOURCES:
            self.env.note_dependency(str(path))
        terms = sorted(inventory.glossary(), key=lambda term: term.name.lower())
        entries = [
            entry(word, f"term-{term.slug}", main=True) for term in terms for word in (*term.forms, *words_of(term))
        ]
        head = '<th scope="col">English</th><th scope="col">Русский</th><th scope="col">中文</th>'
        body = "\n".join(row(term) for term in terms)
        table = (
            f'<table class="table glossary filterable"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
        )
        return [*entries, nodes.raw("", table, format="html", classes=["filterable"])]


class MarkFirstUses(SphinxTransform):
    """Mark the first use of each term on a notebook's page; let MyST's links find the glossary's anchors."""

    default_priority = 840  # before the document is handed to the index, at 850

    def apply(self, **kwargs) -> None:
        """Walk over the text in its order."""
        name = self.env.docname
        if name == PAGE:
            anchors = {f"term-{term.slug}": (0, f"term-{term.slug}", term.name) for term in inventory.glossary()}
            self.env.metadata[name]["myst_slugs"] = self.env.metadata[name].get("myst_slugs", {}) | anchors
        if not name.startswith("lectures/"):
            return
        self.env.note_dependency(str(SOURCES[0]))
        links = self.document.findall(addnodes.pending_xref)
        seen = {str(link.get("reftargetid") or "").removeprefix("term-") for link in links}
        for text in list(self.document.findall(nodes.Text)):
            if not inside(text, NO_LINK):
                text.parent.replace(text, marked(text, seen))


def inside(node: nodes.Node, kinds: tuple[type, ...]) -> bool:
    """Return whether a node stands in one of these kinds."""
    while node.parent is not None:
        node = node.parent
        if isinstance(node, kinds):
            return True
    return False


def marked(text: nodes.Text, seen: set[str]) -> list[nodes.Node]:
    """Return the text cut at its terms, the terms that are new put into ``inline`` nodes; note them in ``seen``."""
    pattern, slugs = finder()
    parts, end, told = [], 0, text.astext()
    for found in pattern.finditer(told):
        slug = slugs[found.lastindex - 1]
        if slug in seen:
            continue
        seen.add(slug)
        parts += [nodes.Text(told[end : found.start()]), nodes.inline("", found[0], classes=["term"], term=slug)]
        end = found.end()
    return [*parts, nodes.Text(told[end:])]


class LinkFirstUses(SphinxPostTransform):
    """Make links of the marked words, and show the meaning at every link to the glossary."""

    default_priority = 20  # after the references of the text, at 10
    formats = ("html",)

    def run(self, **kwargs) -> None:
        """Replace the marks; links that the notebook makes itself only get the tooltip."""
        page = self.app.builder.get_relative_uri(self.env.docname, PAGE)
        terms = {f"{page}#term-{term.slug}": term for term in inventory.glossary()}
        for mark in list(self.document.findall(lambda n: isinstance(n, nodes.inline) and "term" in n)):
            uri = f"{page}#term-{mark['term']}"
            mark.replace_self(nodes.reference("", mark.astext(), refuri=uri, internal=True))
        for link in self.document.findall(nodes.reference):
            if term := terms.get(link.get("refuri", "")):
                link["classes"].append("term")
                link["reftitle"] = f"{term.name}: {term.meanings['en']}"


def setup(app) -> dict:
    """Register with Sphinx."""
    app.add_directive("glossary-table", Glossary)
    app.add_transform(MarkFirstUses)
    app.add_post_transform(LinkFirstUses)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
