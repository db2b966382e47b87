"""`{method-index}` and `{measurements}`: tables made from the source, the notebooks and the measurements."""

import csv
import re
import sys
from pathlib import Path
from typing import ClassVar

import yaml
from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools import inventory  # noqa: E402  (the folder is put on the path above)


class Generated(SphinxDirective):
    """A directive whose content is Markdown made at build time."""

    def run(self) -> list[nodes.Node]:
        """Parse what ``lines`` returns as if it stood on the page."""
        text = StringList(self.lines(), source=self.get_location())
        node = nodes.container()
        node.document = self.state.document
        self.state.nested_parse(text, self.content_offset, node)
        return node.children

    def watch(self, *paths: Path) -> None:
        """Rebuild the page when one of ``paths`` changes."""
        for path in paths:
            self.env.note_dependency(str(path))


class MethodIndex(Generated):
    """One row for each method: paper, code, notebook, test and exercise, each one click away."""

    def lines(self) -> list[str]:
        """Return the tables, one for each lecture."""
        repository = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]
        blob = f"{repository['url']}/blob/{repository['branch']}/"
        methods = inventory.methods()
        lectures, exercises = inventory.notebooks("lectures"), inventory.notebooks("solutions")
        self.watch(*(m.path for m in methods), *(n.path for n in [*lectures, *exercises]))
        ids = sorted({i for m in methods for i in m.syllabus})
        in_toc = (ROOT / "_toc.yml").read_text()
        documented = {module for homes in inventory.api().values() for module in homes}
        lines = []
        for lecture in sorted({i[0] for i in ids}):
            lines += ["", f"## Lecture {lecture}", "", "| Row | Method | Paper | Code | Notebook | Test | Exercise |"]
            lines += ["|---|---|---|---|---|---|---|"]
            for row in (i for i in ids if i[0] == lecture):
                for m in (m for m in methods if row in m.syllabus):
                    where = m.path.relative_to(ROOT).as_posix()
                    page = f"../_modules/{m.name.replace('.', '/')}.html"
                    short = re.sub(r"([._])", r"\1<wbr>", m.name.removeprefix("mlcomp."))  # may break there
                    code = f'<a href="{page if m.name in documented else blob + where}">{short}</a>'
                    books = [n for n in lectures if row in n.syllabus]
                    links = ", ".join(self.page_link(n, in_toc, blob) for n in books)
                    test = m.test.relative_to(ROOT).as_posix()
                    tested = f"[test]({blob}{test})" if m.test.exists() else ""
                    practice = ", ".join(self.page_link(n, in_toc, blob) for n in exercises if row in n.syllabus)
                    papers = ", ".join(f"[{p}](https://arxiv.org/abs/{p})" for p in m.papers)
                    title = m.title.replace("|", "\\|")
                    lines.append(f"| {row} | {title} | {papers} | {code} | {links} | {tested} | {practice} |")
        return lines

    @staticmethod
    def page_link(notebook: inventory.Notebook, in_toc: str, blob: str) -> str:
        """Link to the notebook's page in the book, or to its file if it has none."""
        where = notebook.path.relative_to(ROOT).as_posix()
        stem = where.removesuffix(".ipynb")
        if stem.startswith("solutions/"):  # the student's version, without the answers
            where = stem = where.replace("solutions/", "exercises/", 1)
            return f"[{notebook.title}]({blob}{where})"
        return f"[{notebook.title}](/{where})" if stem in in_toc else f"[{notebook.title}]({blob}{where})"


class Measurements(Generated):
    """Some columns of a committed CSV file as a table; the argument is its path in the repository."""

    required_arguments = 1
    option_spec: ClassVar = {"columns": directives.unchanged_required}

    def lines(self) -> list[str]:
        """Return the table; ``:columns:`` names columns of the file, separated by commas."""
        path = ROOT / self.arguments[0]
        if not path.exists():
            raise self.error(f"no measurements at {self.arguments[0]}")
        self.watch(path)
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns = [name.strip() for name in self.options["columns"].split(",")]
        if unknown := [name for name in columns if name not in rows[0]]:
            raise self.error(f"{self.arguments[0]} has no column {', '.join(unknown)}")
        head = f"| {' | '.join(name.replace('_', ' ') for name in columns)} |"
        return [head, "|" + "---|" * len(columns), *(f"| {' | '.join(row[n] for n in columns)} |" for row in rows)]


def setup(app) -> dict:
    """Register the directives with Sphinx."""
    app.add_directive("method-index", MethodIndex)
    app.add_directive("measurements", Measurements)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
