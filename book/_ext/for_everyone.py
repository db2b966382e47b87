"""What search engines and screen readers need of each page: a description, and roles that are still in use."""

import html
import json
import re
from pathlib import Path

from docutils import nodes

LONGEST = 160  # characters of a description that search engines show
SHORTEST = 60  # of a paragraph that describes anything


def described(doctree: nodes.document) -> str:
    """Return the text of the first paragraph that says something in words alone, or of the first one."""
    found = []
    for paragraph in doctree.findall(nodes.paragraph):
        if any(paragraph.findall(lambda node: isinstance(node, (nodes.raw, nodes.math)))):
            continue
        text = " ".join(paragraph.astext().split())
        if len(text) >= SHORTEST and " · " not in text:  # the line under a notebook's title lists facts
            return text
        found.append(text)
    return next(iter(found), "")


def shortened(text: str) -> str:
    """Return plain text of at most 160 characters, cut between words."""
    text = re.sub(r"[*`$]|\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(text.split()))
    if len(text) <= LONGEST:
        return text
    return text[: LONGEST - 1].rsplit(" ", 1)[0].rstrip(",;:.") + "…"


def summary_of(notebook: Path) -> str:
    """Return the first sentence of a notebook's own summary, if it has one."""
    if not notebook.exists():
        return ""
    facts = json.loads(notebook.read_text(encoding="utf-8"))["metadata"].get("mlcomp", {})
    return next(iter(facts.get("summary", [])), "")


def describe(app, page, template, context, doctree) -> None:
    """Give the page a description: a notebook's summary, or else the first paragraph."""
    text = summary_of(Path(app.srcdir, f"{page}.ipynb")) or (described(doctree) if doctree else "")
    text = shortened(text or f"{context.get('title') or page}: {app.config.html_title}")
    if 'name="description"' not in context.get("metatags", ""):
        tag = f'<meta name="description" content="{html.escape(text)}">'
        context["metatags"] = f"{context.get('metatags', '')}\n{tag}\n"


def roles(app, page, template, context, doctree) -> None:
    """Replace the role that docutils gives to an entry of a bibliography, which ARIA has withdrawn."""
    if "body" in context:
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def setup(app) -> dict:
    """Register the extension with Sphinx."""
    app.connect("html-page-context", describe)
    app.connect("html-page-context", roles)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
