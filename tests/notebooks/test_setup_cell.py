"""The set-up cell finds the package, installs it, or says what to do; pip runs in none of the quick tests."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient
from packaging.requirements import Requirement

from tools.address import Address, address
from tools.build_book import build_wheel
from tools.inventory import ROOT
from tools.setup_cell import FIRST_LINE, library_version, setup_cell, wheel_name

HERE = library_version()
NOWHERE = Address(None, None, "main")
SITE, REPOSITORY = "https://example.org/book", "https://github.com/someone/book"
# Of the packages that Colab has, those that we ask for: none may be replaced.
COLAB = {"numpy": "2.0.2", "torch": "2.11.0", "matplotlib": "3.10.0", "scikit-learn": "1.6.1"}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with packages of your choice, on which pip only notes what it is asked for."""
    folder = tmp_path / "course" / "lecture"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    made = SimpleNamespace(folder=folder, packages={}, asked=[], code=0, stderr="")

    def distributions(name):
        return iter([SimpleNamespace(version=made.packages[name])] if name in made.packages else [])

    def pip(command, **options):
        assert command[1:5] == ["-m", "pip", "install", "--quiet"]
        made.asked += command[5:]
        return SimpleNamespace(returncode=made.code, stderr=made.stderr)

    monkeypatch.setattr(importlib.metadata, "distributions", distributions)
    monkeypatch.setattr(subprocess, "run", pip)
    made.run = lambda where=NOWHERE: exec(setup_cell(where), {})
    return made


@pytest.mark.parametrize("version", [HERE, "999.0"])
def test_what_is_installed_is_left_alone(machine, version):
    machine.packages = {"mlcomp-book": version}
    machine.run(Address(REPOSITORY, SITE, "main"))
    assert machine.asked == []


@pytest.mark.parametrize("ours", [{}, {"mlcomp-book": HERE}])
def test_another_project_of_the_same_name_is_named(machine, ours):
    machine.packages = {"mlcomp": "23.1", **ours}
    with pytest.raises(ImportError, match=r"another project .*pip uninstall -y mlcomp mlcomp-book"):
        machine.run()
    assert machine.asked == []


def test_where_nothing_is_published_the_way_out_is_said(machine):
    with pytest.raises(ImportError) as error:
        machine.run()
    assert wheel_name(HERE) in str(error.value) and str(machine.folder) in str(error.value)
    assert machine.asked == []


@pytest.mark.parametrize("place", [".", "..", "wheel", "../wheel"])
@pytest.mark.parametrize("packages", [{}, {"mlcomp-book": "0.0.1"}])
def test_a_wheel_near_the_notebook_comes_first(machine, place, packages):
    machine.packages = packages
    folder = (machine.folder / place).resolve()
    folder.mkdir(exist_ok=True)
    (folder / wheel_name(HERE)).touch()
    (machine.folder / wheel_name("0.0.1")).touch()  # too old for this notebook
    machine.run(Address(REPOSITORY, SITE, "main"))
    address_of_it = (folder / wheel_name(HERE)).as_uri()
    assert machine.asked == [f"mlcomp-book[notebooks,kernels] @ {address_of_it}"]


@pytest.mark.parametrize(
    ("where", "source"),
    [
        (Address(REPOSITORY, SITE, "main"), f"{SITE}/wheel/{wheel_name(HERE)}"),
        (Address(None, SITE, "main"), f"{SITE}/wheel/{wheel_name(HERE)}"),
        (Address(REPOSITORY, None, "main"), f"git+{REPOSITORY}@v{HERE}"),
    ],
)
def test_then_the_site_and_then_the_tag(machine, where, source):
    machine.run(where)
    assert machine.asked == [f"mlcomp-book[notebooks,kernels] @ {source}"]


def test_a_failure_of_pip_is_an_error_with_the_way_out(machine):
    machine.code, machine.stderr = 1, "ERROR: no network"
    with pytest.raises(ImportError, match=r"Download mlcomp_book-(.|\n)*no network"):
        machine.run(Address(None, SITE, "main"))


# --- what it asks for -----------------------------------------------------------------------------------------------

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


@pytest.mark.parametrize(
    ("system", "machine_name", "triton"),
    [("linux", "x86_64", True), ("linux", "aarch64", True), ("linux", "armv7l", False), ("darwin", "arm64", False)],
)
def test_triton_is_asked_for_where_it_can_be_had(system, machine_name, triton):
    (kernels,) = map(Requirement, EXTRAS["kernels"])
    there = {"sys_platform": system, "platform_machine": machine_name}
    assert kernels.name == "triton" and kernels.marker.evaluate(there) is triton


def test_nothing_that_colab_has_is_replaced():
    asked = {r.name: r for r in map(Requirement, [*PROJECT["dependencies"], *EXTRAS["notebooks"]])}
    assert [n for n, version in COLAB.items() if not asked[n].specifier.contains(version)] == []


def test_the_exercises_carry_the_present_cell():
    for path in [*ROOT.glob("solutions/*/*.ipynb"), *ROOT.glob("exercises/*/*.ipynb")]:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        (found,) = ("".join(c["source"]) for c in cells if "".join(c["source"]).startswith(FIRST_LINE))
        assert found == setup_cell(address()), f"{path}: run tools/setup_cell.py solutions, then make exercises"


# --- the wheel alone ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """A folder with what is in the wheel, and nothing else of this checkout."""
    wheel = build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))
    assert wheel.name == wheel_name(HERE)
    assert wheel.name in (wheel.parent / "index.html").read_text()
    target = tmp_path_factory.mktemp("packages")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*command, str(wheel)], check=True)
    return target


def run_alone(name, unpacked, folder, monkeypatch, *, triton):
    """Run a copy of a notebook in an empty folder, with the unpacked wheel before everything else."""
    here, path = folder / "notebook.ipynb", [str(unpacked)]
    shutil.copy(ROOT / "lectures" / name, here)
    if not triton:
        hide = folder / "hide"
        hide.mkdir()
        (hide / "sitecustomize.py").write_text('import sys\n\nsys.modules["triton"] = None\n')
        path.append(str(hide))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    notebook = nbformat.read(here, as_version=4)
    proof = f"import mlcomp\nassert mlcomp.__file__.startswith({str(unpacked)!r}), mlcomp.__file__"
    if not triton:
        proof += "\nfrom mlcomp.kernels import unavailable\nassert unavailable()"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(proof))
    work = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=work).execute()


@pytest.mark.slow
@pytest.mark.parametrize("triton", [True, False], ids=["with Triton", "without"])
@pytest.mark.parametrize(
    "name",
    [
        "1_quantization_and_sparsification/02_uniform_quantizers.ipynb",
        "2_optimal_brain_compression/03_exact_obs.ipynb",
        "3_sparsification_and_distillation/05_two_four.ipynb",
        "4_quantization_pruning_distillation_nlp/04_gobo.ipynb",
        "5_llm_compression/04_onebit.ipynb",
        "kernels/01_from_loop_to_kernel.ipynb",
        "kernels/02_signs_and_levels.ipynb",
    ],
)
def test_a_notebook_runs_from_the_wheel_alone(name, unpacked, tmp_path, monkeypatch, triton):
    run_alone(name, unpacked, tmp_path, monkeypatch, triton=triton)
