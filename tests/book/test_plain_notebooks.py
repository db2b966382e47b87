"""Plain Markdown becomes boxes, links and citations in the book, and every notebook renders without the book, too."""

import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from sphinx.testing.util import SphinxTestApp

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

PAGE = r"""# Page

> **Theorem 1 (Error of $x$).** It is *small*.
>
> $$ a = b \tag{2} $$

By Theorem 1 and Eq. (2), not by Theorem 7 nor `Theorem 1`, as
[Jacob et al. (2018)](https://arxiv.org/abs/1712.05877) say.

> **Predict first.** Why?

<details><summary>Answer</summary>

Because *so*.

</details>

> **Exercise 1 (more).** Do it.

> Said by someone.

See [there](other.md#theorem-1) and [the word](other.md#term-grid).
"""
OTHER = """# Other

> **Theorem 1 (Another).** It is.

```{eval-rst}
.. _term-grid:

Grid
----
```

```{bibliography}
:all:
```
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The HTML of a page with one of everything."""
    source = tmp_path_factory.mktemp("book")
    (source / "index.md").write_text(PAGE + "\n```{toctree}\nother\n```\n")
    (source / "other.md").write_text(OTHER)
    (source / "conf.py").write_text(
        "extensions = ['myst_parser', 'sphinxcontrib.bibtex', 'plain_notebooks']\n"
        "myst_enable_extensions = ['dollarmath']\n"
        f"bibtex_bibfiles = [{str(ROOT / 'book' / 'references.bib')!r}]\n"
    )
    app = SphinxTestApp("html", srcdir=source, warningiserror=True)
    app.build()
    yield (Path(app.outdir) / "index.html").read_text()
    app.cleanup()


@pytest.mark.parametrize(
    "pattern",
    [
        r'<div class="box statement theorem admonition" id="theorem-1">\s*<p class="admonition-title">'
        r"Theorem 1 \(Error of .*?x.*?\)</p>\s*<p>It is <em>small</em>",
        r'<div[^>]*math[^>]*id="equation-2"',
        r'By <a class="reference internal" href="#theorem-1">Theorem 1</a> and '
        r'<a class="reference internal" href="#equation-2">Eq. \(2\)</a>, not by Theorem 7 nor <code',
        r'<a class="citation reference internal" href="other.html#[\w-]+">Jacob et al. \(2018\)</a>',
        r'<div class="box predict admonition">',
        r"<details><summary>Answer</summary>\s*<p>Because <em>so</em>.</p>\s*</details>",
        r'<div class="box exercise admonition" id="exercise-1">',
        r"<blockquote>\s*<div><p>Said by someone.</p>",
        r'href="other.html#theorem-1"',
        r'href="other.html#term-grid"',
    ],
)
def test_what_the_book_makes_of_plain_markdown(page, pattern):
    assert re.search(pattern, page, re.DOTALL), page[page.index("<h1>") : page.index("toctree")]


NOTEBOOKS = [
    path
    for folder in ("lectures", "exercises", "solutions")
    for path in sorted((ROOT / folder).rglob("*.ipynb"))
    if ".ipynb_checkpoints" not in path.parts
]
MARKUP = re.compile(
    r"\{[a-z]+(?::[a-z]+)*\}<code>|<code[^>]*>\{[\w-]+\}|:::\s*\{|^:(?:class|label|name):|\{\{", re.MULTILINE
)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_plain_rendering_shows_no_markup(path):
    nb = nbformat.read(path, as_version=4)
    for cell in nb.cells:
        if cell.cell_type == "code":  # code is shown as it is, by everyone
            said = [o.data["text/markdown"] for o in cell.outputs if "text/markdown" in o.get("data", {})]
            cell.source = ""
            cell.outputs = [nbformat.v4.new_output("display_data", {"text/markdown": text}) for text in said]
    html, _ = HTMLExporter(template_name="basic").from_notebook_node(nb)
    assert html.count("<details>") == html.count("</details>")
    shown = [html[hit.start() - 60 : hit.end() + 60] for hit in MARKUP.finditer(html)]
    assert shown == [], "markup that only the book reads"
