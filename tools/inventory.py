"""What the repository holds, read off the source without importing it: methods, their tests, notebooks and exercises.

The `Syllabus:` line of a module's docstring and the `mlcomp.syllabus` list of a notebook's metadata are the only
places where a method's ids are stated. The method index of the book and the contract tests both read them here.
So are the terms of `book/glossary.yml`, by the glossary's page and whoever else asks what a word means.
"""

import ast
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
# Lectures whose every row has code, test, notebook and index entry; the contract test holds them to it.
FINISHED_LECTURES: list[int] = [1, 2, 3, 4, 5]
ROWS = {1: 22, 2: 10, 3: 15, 4: 18, 5: 11}
SYLLABUS = {lecture: [f"{lecture}.{n:02d}" for n in range(1, count + 1)] for lecture, count in ROWS.items()}
# The packages of the API page, with the heading of each.
PACKAGES = {
    "formats": "Number formats and storage",
    "sources": "Distributions of weights",
    "layerwise": "One layer's problem, and a model's layers",
    "quant": "Quantization",
    "prune": "Pruning",
    "obs": "Inverse-curvature methods",
    "budget": "Which level for which layer",
    "compare": "Which method at the same size",
    "distill": "Teacher and student",
    "generate": "Text from language models",
    "metrics": "Metrics",
    "cost": "What a model costs",
    "train": "Training",
    "deploy": "What an engineer takes along",
    "models": "Models",
    "data": "Data",
    "assets": "Files that are fetched",
}
ID = re.compile(r"\b[1-5]\.\d\d\b")
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


@cache
def parsed(path: Path) -> ast.Module:
    """Parse a file once: the index asks for the same modules again and again."""
    return ast.parse(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Module:
    """One source file of mlcomp."""

    path: Path

    @property
    def name(self) -> str:
        parts = self.path.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def tree(self) -> ast.Module:
        return parsed(self.path)

    @property
    def doc(self) -> str:
        return ast.get_docstring(self.tree) or ""

    @property
    def title(self) -> str:
        return self.doc.split("\n")[0].rstrip(".")

    @property
    def source(self) -> str:
        """The paper: what follows `Source:`, up to the `Syllabus:` line or a blank line."""
        found = re.search(r"Source:\s*(.*?)(?=\s*Syllabus:|\n\n|\Z)", self.doc, re.DOTALL)
        return " ".join(found.group(1).split()) if found else ""

    @property
    def syllabus(self) -> list[str]:
        found = re.search(r"Syllabus:([^\n]*)", self.doc)
        return ID.findall(found.group(1)) if found else []

    @property
    def papers(self) -> list[str]:
        return list(dict.fromkeys(ARXIV.findall(self.source)))

    @property
    def test(self) -> Path:
        inside = self.path.relative_to(ROOT / "mlcomp")
        return ROOT / "tests" / inside.parent / f"test_{inside.stem}.py"

    @property
    def public(self) -> list[ast.FunctionDef | ast.ClassDef]:
        """Top-level functions and classes without a leading underscore; an overloaded one counts once."""
        kinds = (ast.FunctionDef, ast.ClassDef)
        named = [node for node in self.tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
        return [node for node in named if "overload" not in map(ast.unparse, node.decorator_list)]

    @property
    def exports(self) -> list[str]:
        """The names in ``__all__``."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
                return ast.literal_eval(node.value)
        return []

    def imports(self, *, top_level: bool = False) -> set[str]:
        """Names of the modules that this one imports, in functions, too, unless only the top level is asked for."""
        names = set()
        for node in self.tree.body if top_level else ast.walk(self.tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module)
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        return names


@dataclass(frozen=True)
class Notebook:
    """A notebook that follows the syllabus."""

    path: Path
    title: str
    syllabus: list[str]


@dataclass(frozen=True)
class Term:
    """One entry of the glossary.

    Attributes:
        name: as the page shows it.
        forms: the name and all other words for the same; a plural in -s is understood.
        common: a word that often means something else, so that no link should be made without being asked for.
        names: "ru", "zh" → the name there.
        meanings: "en", "ru", "zh" → one line of plain text.
    """

    name: str
    forms: tuple[str, ...]
    common: bool
    names: dict[str, str]
    meanings: dict[str, str]

    @property
    def slug(self) -> str:
        """What stands behind ``#term-`` in the address of the entry."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower().replace("#", " sharp")).strip("-")


@cache
def glossary() -> list[Term]:
    """The entries of ``book/glossary.yml``, in the file's order."""
    entries = yaml.safe_load((ROOT / "book" / "glossary.yml").read_text(encoding="utf-8"))
    return [
        Term(
            entry["term"],
            (entry["term"], *entry.get("forms", ())),
            entry.get("common", False),
            {language: entry[language] for language in ("ru", "zh")},
            entry["meaning"],
        )
        for entry in entries
    ]


def modules() -> list[Module]:
    return [Module(p) for p in sorted((ROOT / "mlcomp").rglob("*.py"))]


def home(package: str, name: str) -> str:
    """Return the module in which a ``name`` that ``package`` hands on is written, through all faces between."""
    folder = ROOT / package.replace(".", "/")
    for node in Module(folder / "__init__.py").tree.body if folder.is_dir() else ():
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            return home(node.module, name)
    return package


def api() -> dict[str, dict[str, list[str]]]:
    """What a user may import: package → home module → functions and classes that the package hands on.

    A name belongs to the package in which it lives. Kernels are imported one by one.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for package in (f"mlcomp.{name}" for name in PACKAGES):
        homes = found.setdefault(package, {})
        face = Module(ROOT / package.replace(".", "/") / "__init__.py")
        by_name = {name: home(package, name) for name in face.exports}
        for module in modules():
            if module.name.startswith(f"{package}."):
                names = [node.name for node in module.public if by_name.get(node.name) == module.name]
                homes |= {module.name: names} if names else {}
    kernels = [m for m in modules() if m.name.startswith("mlcomp.kernels.")]
    kernels = [m for m in kernels if m.path.stem in {node.name for node in m.public}]
    found["mlcomp.kernels"] = {m.name: [m.path.stem] for m in kernels}
    return found


def methods() -> list[Module]:
    return [m for m in modules() if m.syllabus]


def notebooks(folder: str) -> list[Notebook]:
    found = []
    for path in sorted((ROOT / folder).glob("**/*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        info = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("mlcomp", {})
        found.append(Notebook(path, info.get("title", path.stem), list(info.get("syllabus", []))))
    return found
