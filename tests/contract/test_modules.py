"""What every module of the library promises by its form."""

import ast

import pytest

from tools.inventory import FINISHED_LECTURES, ROOT, SYLLABUS, Module, methods, modules, notebooks

METHOD_PACKAGES = ("sources", "formats", "quant", "prune", "obs", "distill")
EVERY = pytest.mark.parametrize("module", modules(), ids=lambda m: m.name)


def is_method(module) -> bool:
    """A module whose names its package exports; what is not exported is a part of a method and tested with it."""
    parts = module.name.split(".")
    if len(parts) != 3 or parts[1] not in METHOD_PACKAGES:
        return False
    return module.name in Module(module.path.with_name("__init__.py")).imports()


@EVERY
def test_at_most_300_lines(module):
    assert len(module.path.read_text().splitlines()) <= 300


@EVERY
def test_module_and_public_names_have_docstrings(module):
    bare = [node.name for node in module.public if not ast.get_docstring(node)]
    assert module.doc
    assert bare == []


@pytest.mark.parametrize("module", [m for m in modules() if is_method(m)], ids=lambda m: m.name)
def test_method_names_its_source_and_its_rows(module):
    assert module.syllabus, "the docstring has no `Syllabus:` line with ids"
    assert module.test.exists(), f"no {module.test.relative_to(ROOT)}"


@pytest.mark.parametrize("row", [row for lecture in FINISHED_LECTURES for row in SYLLABUS[lecture]])
def test_row_of_a_finished_lecture_has_code_test_and_notebook(row):
    code = [m for m in methods() if row in m.syllabus]
    assert code, f"no module's `Syllabus:` line holds {row}"
    assert any(m.test.exists() for m in code), f"no test beside {[m.name for m in code]}"
    assert any(m.source for m in code), f"none of {[m.name for m in code]} names its paper in a `Source:` line"
    assert any(row in n.syllabus for n in notebooks("lectures")), f"no notebook's mlcomp.syllabus holds {row}"


def test_every_api_package_is_in_the_reference():
    page = (ROOT / "book" / "api.md").read_text()
    packages = {m.name for m in modules() if m.path.name == "__init__.py" and "__all__" in m.path.read_text()}
    missing = [p for p in sorted(packages) if f"automodule:: {p}\n" not in page and ".grading" not in p]
    assert missing == []
