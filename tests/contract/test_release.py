"""One version, a changelog that knows it, and the sets of versions that the weekly run installs."""

import ast
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

import mlcomp
from tests.contract.test_repository import text_files
from tools import release_notes, version_sets
from tools.inventory import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SMALL = {
    "name": "me",
    "dependencies": ["torch>=2.11", "tqdm"],
    "optional-dependencies": {
        "a": ["scipy>=1.13", "scikit_learn>=1.7", "triton>=3.6; sys_platform == 'linux'", "book==1.0.4.post1"],
        "b": ["scipy>=1.9", "me[a]"],
    },
}


def test_the_version_stands_once():
    pattern = re.compile(rf"version[\W_]{{1,7}}v?{re.escape(mlcomp.__version__)}\b", re.IGNORECASE)
    places = [p.relative_to(ROOT).as_posix() for p in text_files() if pattern.search(p.read_text(encoding="utf-8"))]
    assert places == ["mlcomp/__init__.py"]


def test_the_package_takes_its_version_from_there_without_importing():
    """Setuptools reads an attribute from the source where it is a literal, and imports the package otherwise."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]
    assert tool["setuptools"]["dynamic"]["version"] == {"attr": "mlcomp.__version__"}
    body = ast.parse((ROOT / "mlcomp" / "__init__.py").read_text()).body
    given = [n.value for n in body if isinstance(n, ast.Assign) and n.targets[0].id == "__version__"]
    assert [ast.literal_eval(value) for value in given] == [mlcomp.__version__] == [release_notes.library_version()]


def test_the_citation_names_no_version_of_its_own():
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_changelog_has_the_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "### " in release_notes.section(text, mlcomp.__version__)
    versions = re.findall(r"^## \[(.+?)\]", text, flags=re.MULTILINE)
    assert versions == sorted(versions, key=version_sets.number, reverse=True)


def test_a_section_ends_where_the_next_begins():
    text = "# Changelog\n\n## [0.2.0] - 2030-01-02\n\nnew\n\n## [0.1.0] - 2029-01-02\n\nold\n"
    assert release_notes.section(text, "0.2.0") == "new" and release_notes.section(text, "0.1.0") == "old"
    for missing in ("0.3.0", "0.2"):
        with pytest.raises(ValueError, match="no section"):
            release_notes.section(text, missing)
    with pytest.raises(ValueError, match="no section"):
        release_notes.section(text.replace(" - 2030-01-02", ""), "0.2.0")


def test_another_tag_is_refused():
    command = [sys.executable, "tools/release_notes.py"]
    done = subprocess.run([*command, "v9.9.9"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "the tag is v9.9.9" in done.stderr and not done.stdout
    done = subprocess.run([*command, f"v{mlcomp.__version__}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "### " in done.stdout


def test_the_lowest_versions_are_the_bounds():
    assert version_sets.lowest(SMALL) == [
        "book==1.0.4.post1",
        "scikit_learn==1.7",
        "scipy==1.13",  # the higher of two bounds, as numbers: 1.9 is older
        "torch==2.11",
        "triton==3.6; sys_platform == 'linux'",
    ]
    lines = version_sets.lowest(PROJECT)
    assert len(lines) > 12 and not [x for x in lines if not re.fullmatch(r"[\w.-]+==[\w.]+(; .*)?", x)]


def test_colab_holds_what_we_allow():
    freeze = (
        "torch==2.9.0+cu126\nscikit-learn==1.8.0\nscipy==1.13.1\nbook==1.0.3\ntqdm==4.67.1\nother==1\nx @ file:///y\n"
    )
    assert version_sets.colab(SMALL, freeze) == ["scikit-learn==1.8.0", "scipy==1.13.1", "tqdm==4.67.1"]


def test_a_bound_that_would_be_misread_is_an_error():
    with pytest.raises(ValueError, match="no single bound"):
        version_sets.lowest(SMALL | {"dependencies": ["torch>=2.11,<3"]})
