"""What every tracked file promises: nothing of one machine, no dead link, no bare reminder."""

import re
import subprocess

import pytest
import yaml

from tools.inventory import ROOT

TEXT = {".py", ".md", ".toml", ".yml", ".yaml", ".cff", ".txt", ".cfg", ".ipynb", ".css", ".bib", ".csv", ".json", ""}
# A home folder, a temporary folder or a work folder of one machine, or the host of a package index.
MACHINE = re.compile(
    r"(?<![\w./~:])/(home|Users|root|work|tmp)/\w"
    r"|\b(pypi|files\.pythonhosted|test\.pypi)\.org|--(extra-)?index-url"
)
REMINDER = re.compile(r"\b(TODO|FIXME|XXX)\b(?!\(#\d+\))")
ENCODED = re.compile(r"[A-Za-z0-9+/=]{60,}")  # base64
LINK = re.compile(r"(?<!`)\[[^\]\n]*\]\(([^)\s]+)\)")


def tracked() -> list:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    paths = [ROOT / name for name in names if name]
    if not paths:  # an unpacked archive has no index
        pytest.skip("not a git checkout")
    return [p for p in paths if p.is_file()]


def text_files() -> list:
    return [p for p in tracked() if p.suffix in TEXT and p.name != "test_repository.py"]


def hits(pattern: re.Pattern) -> list[str]:
    found = []
    for path in text_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            # Pictures and animations hold every word sooner or later.
            words = ENCODED.sub("", line) if path.suffix == ".ipynb" else line
            if match := pattern.search(words):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match.group()}")
    return found


def test_no_machine_paths_and_no_package_index():
    assert hits(MACHINE) == []


def test_no_bare_reminders():
    assert hits(REMINDER) == []


def test_no_large_files():
    big = {str(p.relative_to(ROOT)): p.stat().st_size for p in tracked() if p.stat().st_size > 3_000_000}
    assert big == {}


def test_links_between_files_resolve():
    broken = []
    for path in (p for p in text_files() if p.suffix == ".md"):
        prose = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in LINK.findall(prose):
            name = target.split("#")[0]
            if not name or re.match(r"[a-z]+:", target):
                continue
            place = ROOT / name.lstrip("/") if name.startswith("/") else path.parent / name
            candidates = [place, *(place.with_name(place.name + ending) for ending in (".md", ".ipynb"))]
            if not any(c.exists() for c in candidates) and not name.endswith(".html"):
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert broken == []


def test_commands_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md"):
        used = set(re.findall(r"(?:^|`)\s*make ([a-z]+)", (ROOT / name).read_text(), flags=re.MULTILINE))
        assert used, f"{name} names no command"
        assert used <= targets


def test_every_page_of_the_contents_exists_and_every_notebook_is_in_it():
    contents = (ROOT / "_toc.yml").read_text()
    yaml.safe_load(contents)
    files = re.findall(r"^\s*(?:- )?(?:file|root): (\S+)", contents, flags=re.MULTILINE)
    there = {f: any((ROOT / f"{f}{ending}").exists() for ending in (".md", ".ipynb", ".rst")) for f in files}
    assert [f for f, exists in there.items() if not exists] == []
    notebooks = [p.relative_to(ROOT).with_suffix("").as_posix() for p in tracked() if p.suffix == ".ipynb"]
    assert [n for n in notebooks if n.startswith("lectures/") and n not in files] == []


def test_repository_address_stands_in_one_place():
    """Notebooks carry it too, stamped from _config.yml; a change there is carried over by `stamp`."""
    address = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"].removeprefix("https://")
    others = [p for p in text_files() if p.suffix != ".ipynb" and p.name != "_config.yml"]
    assert [str(p.relative_to(ROOT)) for p in others if address in p.read_text(encoding="utf-8")] == []


def test_constraints_are_exact_and_cover_the_requirements():
    lines = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if x and not x.startswith("#")]
    assert [x for x in lines if not re.match(r"[A-Za-z0-9._-]+==[^+\s]+(; .*)?$", x)] == []
    pinned = {re.split("==", x)[0].lower().replace("_", "-") for x in lines}
    text = (ROOT / "pyproject.toml").read_text()
    block = re.findall(r'^\s+"([A-Za-z][\w.-]*)', text.split("[tool.")[0], flags=re.MULTILINE)
    wanted = {name.lower().replace("_", "-") for name in block} - {"mlcomp-book", "d100", "license"}
    assert sorted(wanted - pinned) == []
