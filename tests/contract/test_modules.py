"""What every module of the library promises by its form."""

import ast
import importlib

import pytest

from tools.inventory import FINISHED_LECTURES, PACKAGES, ROOT, SYLLABUS, Module, api, methods, modules, notebooks

METHOD_PACKAGES = ("sources", "formats", "layerwise", "quant", "prune", "generate", "obs", "budget", "compare")
METHOD_PACKAGES = (*METHOD_PACKAGES, "distill")
API, METHODS, NOTEBOOKS = api(), methods(), notebooks("lectures")
USED = {name for m in modules() if m.path.name != "__init__.py" for name in m.imports()}
EVERY = pytest.mark.parametrize("module", modules(), ids=lambda m: m.name)


def is_method(module) -> bool:
    """A module whose names its package exports; what is not exported is a part of a method and tested with it."""
    parts = module.name.split(".")
    if len(parts) < 3 or parts[1] not in METHOD_PACKAGES or module.path.name == "__init__.py":
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
    code = [m for m in METHODS if row in m.syllabus]
    assert code, f"no module's `Syllabus:` line holds {row}"
    assert any(m.test.exists() for m in code), f"no test beside {[m.name for m in code]}"
    assert any(m.source for m in code), f"none of {[m.name for m in code]} names its paper in a `Source:` line"
    assert any(row in n.syllabus for n in NOTEBOOKS), f"no notebook's mlcomp.syllabus holds {row}"


# Public by their form, and no part of the API: programs, and what the exercises and notebooks import.
NO_API = (
    "mlcomp.cli",
    "mlcomp.grading",
    "mlcomp.notebook",
    "mlcomp.extras",
    "mlcomp.addresses",
    "mlcomp.assets.__main__",
    "mlcomp.kernels.roofline",
)


def test_every_package_is_on_the_api_page():
    packages = {m.name.split(".")[1] for m in modules() if m.name.count(".") >= 2} - {"grading", "kernels"}
    assert packages == set(PACKAGES)


@EVERY
def test_every_module_is_on_the_api_page_or_part_of_one_that_is(module):
    """What is neither is dead, or was forgotten: the API page shows what the packages hand on."""
    if module.name.startswith(NO_API) or module.path.name == "__init__.py":
        return
    part = any(name.startswith(f"{module.name}.") for name in USED)
    assert part or any(module.name in homes for homes in API.values())


def test_the_api_page_shows_what_the_packages_hand_out():
    """Every function and class in an ``__all__`` has its entry, in the package in which it lives."""
    shown = {name for homes in API.values() for names in homes.values() for name in names}
    for package in PACKAGES:
        face = importlib.import_module(f"mlcomp.{package}")
        things = {name: getattr(face, name) for name in face.__all__}
        things = [name for name, thing in things.items() if getattr(thing, "__name__", None) == name]
        assert things and [name for name in things if name not in shown] == []
    assert {"reestimate_batchnorm", "model_cost", "w4a16_matmul", "gptq"} <= shown
