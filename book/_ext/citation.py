"""`{citation}`: how to cite the book, from `CITATION.cff` and the book's settings, so that nothing is said twice."""

import ast
import re
import sys
from pathlib import Path

import yaml
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from glossary import entry  # noqa: E402  (the folders are put on the path above)

from tools.address import address  # noqa: E402

FILE, CONFIG, VERSION = ROOT / "CITATION.cff", ROOT / "_config.yml", ROOT / "mlcomp" / "__init__.py"


def facts() -> dict[str, str]:
    """Return title, author, year, version and, where one is set, the address of the pages or of the repository."""
    about = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    version = re.search(r"^__version__ = (.*)$", VERSION.read_text(encoding="utf-8"), re.MULTILINE)[1]
    where = address(CONFIG.parent)
    return {
        "title": about["title"],
        "author": " and ".join(author["name"] for author in about["authors"]),
        "year": str(config["copyright"]),
        "version": ast.literal_eval(version),
        "url": where.site or where.repository or "",
    }


def sentence(about: dict[str, str]) -> str:
    """Return the reference as a list of references has it."""
    end = f" {about['url']}" if about["url"] else ""
    return f"{about['author']} ({about['year']}). {about['title']}. Version {about['version']}.{end}"


def bibtex(about: dict[str, str]) -> str:
    """Return the reference for BibTeX."""
    fields = {
        "title": f"{{{about['title']}}}",
        "author": f"{{{about['author']}}}",
        "year": about["year"],
        "note": f"Version {about['version']}",
        "url": about["url"],
    }
    lines = [f"  {name:<6} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@misc{{mlcomp{about['year']},", *lines, "}"])


class Citation(SphinxDirective):
    """The reference as a sentence and for BibTeX."""

    def run(self) -> list[nodes.Node]:
        """Put both; the search finds them by the words people try."""
        for path in (FILE, CONFIG, VERSION):
            self.env.note_dependency(str(path))
        about, words = (
            facts(),
            ("cite", "citation", "how to cite", "BibTeX", "reference this book", "цитировать", "引用"),
        )
        code = nodes.literal_block(bibtex(about), bibtex(about), language="bibtex")
        target = nodes.target("", "", ids=["citation"])
        told = nodes.paragraph("", sentence(about))
        return [*(entry(word, "citation", main=True) for word in words), target, told, code]


def setup(app) -> dict:
    """Register the directive with Sphinx."""
    app.add_directive("citation", Citation)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
