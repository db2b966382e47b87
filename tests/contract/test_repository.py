"""What every tracked file promises: nothing of one machine, no dead link, no bare reminder."""

import re
import subprocess

import pytest
import yaml

from tools.address import address
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


def test_the_addresses_stand_in_one_place():
    """Notebooks carry them too, stamped from _config.yml; a change there is carried over by `stamp`."""
    where = address()
    for known in filter(None, (where.repository, where.site)):
        others = [p for p in text_files() if p.suffix != ".ipynb" and p.name != "_config.yml"]
        short = known.removeprefix("https://")
        assert [str(p.relative_to(ROOT)) for p in others if short in p.read_text(encoding="utf-8")] == []


def test_constraints_are_exact_and_cover_the_requirements():
    lines = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if x and not x.startswith("#")]
    assert [x for x in lines if not re.match(r"[A-Za-z0-9._-]+==[^+\s]+(; .*)?$", x)] == []
    pinned = {re.split("==", x)[0].lower().replace("_", "-") for x in lines}
    text = (ROOT / "pyproject.toml").read_text()
    block = re.findall(r'^\s+"([A-Za-z][\w.-]*)', text.split("[tool.")[0], flags=re.MULTILINE)
    wanted = {name.lower().replace("_", "-") for name in block} - {"mlcomp-book", "d100", "license"}
    # Other libraries have an environment of their own, since they do not go with the versions pinned here.
    apart = re.findall(r'"([A-Za-z][\w.-]*)', re.search(r"^rivals = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)[1])
    assert len(apart) > 5 and sorted(wanted - pinned - set(apart)) == []


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# What a step makes before it is named, or what stands outside of the repository.
MADE = re.compile(r"^(_build|dist|notes\.md|freeze\.txt|versions\.txt|/dev|~|\.venv|\.\./|https?:|\$)|kernel\.")


def steps(path) -> list[dict]:
    jobs = yaml.safe_load(path.read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_all_targets_are_phony_and_explained():
    text = (ROOT / "Makefile").read_text()
    assert set(re.search(r"^\.PHONY: (.*)", text, flags=re.MULTILINE)[1].split()) == make_targets()
    told = set(re.findall(r'@echo "make ([a-z]+) ', text))
    assert told == make_targets() - {"help"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_workflows_call_what_exists(path):
    commands = "\n".join(step.get("run", "") for step in steps(path))
    assert set(re.findall(r"^\s*make ([a-z]+)", commands, flags=re.MULTILINE)) <= make_targets()
    words = (word.strip("\"';|&") for word in re.split(r"[\s=]+", commands))
    named = {w for w in words if re.search(r"/|\.(py|txt|md|toml)$", w) and not MADE.search(w)}
    assert named, "no command names a file: the pattern is wrong"
    assert [w for w in sorted(named) if not (ROOT / w).exists()] == []
    texts = [str(step.get("with", {})) for step in steps(path)]
    hashed = {w for text in texts for w in re.findall(r"mlcomp/[\w/]+(?=/\*\.py)", text)}
    assert [folder for folder in sorted(hashed) if not list((ROOT / folder).glob("*.py"))] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_workflows_have_limits_and_no_foreign_actions(path):
    settings = yaml.safe_load(path.read_text())
    assert settings["permissions"] and (settings.get("on") or settings[True])  # YAML 1.1 reads `on` as true
    slow = [name for name, job in settings["jobs"].items() if "timeout-minutes" not in job and name != "publish"]
    assert slow == []
    assert [s["uses"] for s in steps(path) if not s.get("uses", "actions/").startswith("actions/")] == []


def test_macos_runs_every_reference():
    (command,) = (s["run"] for s in steps(ROOT / ".github/workflows/ci.yml") if "tests/obs" in s.get("run", ""))
    elsewhere = set("assets book contract data deploy exercises grading kernels models notebooks".split())
    folders = {p.name for p in (ROOT / "tests").iterdir() if (p / "__init__.py").exists()}
    assert set(re.findall(r"tests/(\w+)(?=\s|$)", command)) == folders - elsewhere


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[0-9]*.yml")), ids=lambda p: p.stem
)
def test_forms_of_issues_are_what_github_takes(path):
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= set(form)
    asked = [field for field in form["body"] if field["type"] in ("input", "textarea")]
    assert asked and all(field["attributes"]["label"] for field in asked)
    assert len({field["attributes"]["label"] for field in asked}) == len(asked)
    notes = [field for field in form["body"] if field not in asked]
    assert all(field["type"] == "markdown" and field["attributes"]["value"] for field in notes)


def test_dependabot_and_hooks_are_what_their_programs_take():
    updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())
    assert updates["version"] == 2
    assert {u["package-ecosystem"] for u in updates["updates"]} == {"pip", "github-actions"}
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    tools = {hook["entry"].split()[0] for hook in local["hooks"]}
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert {tool.removeprefix(".venv/bin/") for tool in tools} <= set(pinned)


def test_the_hook_strips_what_the_tests_strip():
    from tools.run_tests import EXTRA_KEYS, STRIP

    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (entry,) = (hook["entry"] for hook in local["hooks"] if hook["id"] == "nbstripout")
    assert entry == f'.venv/bin/nbstripout {" ".join(STRIP)} --extra-keys "{EXTRA_KEYS}"'
