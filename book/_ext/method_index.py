"""`{method-index}` and `{measurements}`: tables made from the source, the notebooks and the measurements."""

import ast
import csv
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import ClassVar

import yaml
from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from glossary import entry
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools import inventory  # noqa: E402  (the folder is put on the path above)

NAMES = ROOT / "book" / "method_names.yml"
CONFIG = ROOT / "_config.yml"


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
    """One row for each method, its name first; with the argument ``parts``, for each part of them."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Let the rows be filtered, and their names be found by the search."""
        children = super().run()
        for table in (table for child in children for table in child.findall(nodes.table)):
            table["classes"] += ["filterable", "method-index"]
        return [*(entry(name, f"method-{slug(name)}", main=True) for name in self.names), *children]

    def lines(self) -> list[str]:
        """Return the table."""
        modules = {m.name.removeprefix("mlcomp."): m for m in inventory.methods()}
        chosen = yaml.safe_load(NAMES.read_text(encoding="utf-8"))
        if unknown := chosen.keys() - modules.keys():
            raise self.error(f"{NAMES.name} names modules without a syllabus line: {', '.join(sorted(unknown))}")
        self.watch(NAMES, CONFIG, *(m.path for m in modules.values()))
        kernels, links = kernels_of(modules), Links(self)
        if self.arguments[0] == "methods":
            rows = [
                (f'<span id="method-{slug(name)}"></span>**{name}**', modules[key]) for key, name in chosen.items()
            ]
            self.names = list(chosen.values())
        else:
            shown = (m for key, m in modules.items() if key not in chosen and not key.startswith("kernels."))
            rows, self.names = [(f"**{m.path.stem.replace('_', ' ')}**", m) for m in shown], []
        head = ["Method", "Notebook", "Paper", "Code, kernel, test", "Exercise", "Syllabus"]
        lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for name, m in sorted(rows, key=lambda item: item[0].casefold().partition("**")[2]):
            code = "<br>".join(filter(None, [*map(links.code, (m, *kernels.get(m.name, ()))), links.test(m)]))
            cells = [f"{name}<br>{meaning(m)}", links.notebooks(m), papers(m), code, links.exercises(m)]
            lines.append(f"| {' | '.join([*cells, ', '.join(m.syllabus)])} |")
        return lines


def slug(name: str) -> str:
    """Return what stands behind ``#method-`` in the address of a row: of the name without what is in parentheses."""
    short = re.sub(r"\(.*?\)", "", name).lower().replace("#", " sharp")
    return re.sub(r"[^a-z0-9]+", "-", short).strip("-")


def meaning(module: inventory.Module) -> str:
    """Return a module's first line without the name that it may begin with."""
    name, colon, rest = module.title.partition(": ")
    told = rest if colon and len(name) < 50 else module.title
    return (told[0].upper() + told[1:]).replace("|", "\\|")


def papers(module: inventory.Module) -> str:
    """Link to the papers that a module names as its source."""
    return ", ".join(f"[{paper}](https://arxiv.org/abs/{paper})" for paper in module.papers)


def kernels_of(modules: dict[str, inventory.Module]) -> dict[str, list[inventory.Module]]:
    """Return the kernels of each module that has some."""
    found = defaultdict(list)
    for module in modules.values():
        for node in module.tree.body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "REFERENCE":
                package, name = ast.literal_eval(node.value).rsplit(".", 1)
                found[inventory.home(package, name)].append(module)
    return found


class Links:
    """Where a cell of the index leads: to a page of the book, or else to a file, named where it has no address."""

    def __init__(self, directive: Generated) -> None:
        repository = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["repository"]
        self.blob = f"{repository['url']}/blob/{repository['branch']}/" if repository.get("url") else None
        self.in_toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")
        self.documented = {module for homes in inventory.api().values() for module in homes}
        self.lectures, self.practice = inventory.notebooks("lectures"), inventory.notebooks("solutions")
        directive.watch(ROOT / "_toc.yml", *(n.path for n in [*self.lectures, *self.practice]))

    def file(self, text: str, path: Path) -> str:
        """Return a link to a file of the repository."""
        where = path.relative_to(ROOT).as_posix()
        return f"[{text}]({self.blob}{where})" if self.blob else f"<code>{breakable(where)}</code>"

    def code(self, module: inventory.Module) -> str:
        """Link to the module's source: a page of the book where the API page documents it."""
        short = breakable(module.name.removeprefix("mlcomp."))
        if module.name in self.documented:
            return f'<a href="../_modules/{module.name.replace(".", "/")}.html">{short}</a>'
        return self.file(short, module.path)

    def test(self, module: inventory.Module) -> str:
        """Link to the module's test."""
        return self.file("test", module.test) if module.test.exists() else ""

    def notebooks(self, module: inventory.Module) -> str:
        """Link to the notebooks of the module's rows of the syllabus."""
        found = []
        for book in (n for n in self.lectures if set(n.syllabus) & set(module.syllabus)):
            where = book.path.relative_to(ROOT).as_posix()
            in_book = where.removesuffix(".ipynb") in self.in_toc
            found.append(f"[{book.title}](/{where})" if in_book else self.file(book.title, book.path))
        return ", ".join(found)

    def exercises(self, module: inventory.Module) -> str:
        """Name the assignments of the module's rows; the page of the exercises says how to get each."""
        chosen = (n for n in self.practice if set(n.syllabus) & set(module.syllabus))
        return ", ".join(f"[{n.title}](/book/exercises.md)" for n in chosen)


def breakable(name: str) -> str:
    """Return a path or a dotted name that may be broken at its parts."""
    return re.sub(r"([._/])", r"\1<wbr>", name)


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
