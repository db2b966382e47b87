"""Imports point one way, and `import mlcomp` is light."""

import ast
import importlib
import os
import subprocess
import sys

import pytest

from mlcomp.addresses import MOVED
from tools.inventory import ROOT, modules

# The floors of the house, from the ground up: a package may import its own floor's ground and what stands below it.
FLOORS = (
    ("sources", "formats", "train", "models", "data", "assets"),
    ("layerwise",),
    ("metrics", "cost"),
    ("quant", "prune", "generate"),
    ("obs",),
    ("budget", "compare", "distill"),
    ("kernels",),
    ("deploy",),
    ("cli",),
)
# On one floor the rooms stand apart, but for these.
DOORS = {"formats": {"sources"}, "models": {"assets", "data"}, "data": {"assets"}}
# Modules at the root serve every floor.
GROUND = {
    "addresses",
    "checks",
    "context",
    "extras",
    "fingerprint",
    "modes",
    "notebook",
    "references",
    "resume",
    "terminal",
    "workers",
}
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
HEAVY = ["triton", "transformers", "matplotlib", "sklearn", "nbgrader", "IPython", "compressed_tensors", "peft"]


def rooms(name: str) -> list[str]:
    parts = name.split(".")
    return parts[1:] if parts[0] == "mlcomp" else []


def wrong_way(module) -> list[str]:
    """Return the imports that point upward, across to a closed room, or to a face of the module's own package."""
    home = rooms(module.name)[:1]
    found = set()
    for name in module.imports():
        there = rooms(name)[:1]
        if not there or there[0] in GROUND or (there == home and home):
            continue
        if there[0] == "grading" or not home or there[0] not in FLOOR:
            found.add(there[0])
        elif home[0] in GROUND or home[0] == "grading":
            found.add(there[0])
        elif FLOOR[there[0]] >= FLOOR[home[0]] and there[0] not in DOORS.get(home[0], ()):
            found.add(there[0])
    return sorted(found)


def own_faces(module) -> list[str]:
    """Return where a module imports from the face of its own package, which may not be complete by then."""
    package = ".".join(module.name.split(".")[:2])
    face = ROOT / package.replace(".", "/")
    return [
        node.module
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and node.module == package and module.path.parent != face.parent
        if module.path.name != "__init__.py" and not all((face / f"{x.name}.py").exists() for x in node.names)
    ]


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.name)
def test_imports_point_one_way(module):
    assert wrong_way(module) == []
    assert own_faces(module) == []


def test_the_scan_sees_a_wrong_import(tmp_path, monkeypatch):
    from tools import inventory

    monkeypatch.setattr(inventory, "ROOT", tmp_path)
    path = tmp_path / "mlcomp" / "formats" / "bad.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "def f():\n    from mlcomp.obs import obq\n    import mlcomp.kernels.fwht\n"
        "from mlcomp.formats import pack\nfrom mlcomp.sources.source import Cells\nfrom mlcomp.models import mlp\n"
    )
    assert wrong_way(inventory.Module(path)) == ["kernels", "models", "obs"]
    assert own_faces(inventory.Module(path)) == ["mlcomp.formats"]


def in_fresh_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_is_light():
    loaded = in_fresh_python(f"import mlcomp, sys; print([m for m in {HEAVY} if m in sys.modules])")
    assert loaded == "[]"


@pytest.mark.slow
def test_library_imports_without_the_extras():
    """The core packages work where only the core requirements are installed, and without Triton (macOS)."""
    code = f"""
import sys
for name in {[*HEAVY, "accelerate", "gguf", "hypothesis", "beartype", "scipy"]}:
    sys.modules[name] = None  # an import of it raises ImportError
import mlcomp, mlcomp.formats, mlcomp.quant, mlcomp.prune, mlcomp.obs, mlcomp.layerwise, mlcomp.metrics
import mlcomp.sources, mlcomp.models, mlcomp.data, mlcomp.assets, mlcomp.budget, mlcomp.compare, mlcomp.cost
import mlcomp.train, mlcomp.deploy, mlcomp.distill
print("imported")
"""
    assert in_fresh_python(code) == "imported"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_module_imports_first():
    """No module depends on what was imported before it: each is imported by a process that has only torch."""
    names = [m.name for m in modules() if not m.name.startswith(("mlcomp.kernels", "mlcomp.grading"))]
    names = [name for name in names if not name.endswith("__main__")]
    assert len(names) > 100
    code = f"""
import os, sys, torch, tqdm, matplotlib
for name in {names}:
    child = os.fork()
    if not child:
        try:
            __import__(name)
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        print(name)
"""
    assert in_fresh_python(code) == ""


@pytest.mark.slow
def test_the_first_guess_is_right():
    """As a name of the package, and as a module, whatever room it stands in."""
    guesses = "quant.gptq quant.quip quant.kmeans prune.wanda prune.sparsegpt obs.exact_obs obs.gptq".split()
    code = "import importlib\n"
    for package, name in (guess.split(".") for guess in guesses):
        code += f"from mlcomp.{package}.{name} import {name} as a\nfrom mlcomp.{package} import {name} as b\n"
        code += f"assert a is b is importlib.import_module('mlcomp.{package}').{name}, {name!r}\n"
    in_fresh_python(code)


def test_every_name_handed_out_is_there():
    """Also those that moved to a package above, and the old addresses of modules."""
    packages = [m.name for m in modules() if m.path.name == "__init__.py" and m.name.count(".") == 1]
    for package in packages:
        face = importlib.import_module(package)
        for name in getattr(face, "__all__", ()):
            assert getattr(face, name) is not None
    with pytest.raises(ImportError, match="cannot import name 'gtpq'"):
        exec("from mlcomp.quant import gtpq")


@pytest.mark.slow
def test_old_addresses_lead_to_the_new_ones():
    code = "import importlib, sys\n"
    for old, new in MOVED.items():
        code += f"import {old}\nassert sys.modules[{old!r}] is importlib.import_module({new!r})\n"
    done = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True)
    assert [f"{old} is now {new}" in done.stderr for old, new in MOVED.items()] == [True] * len(MOVED)
