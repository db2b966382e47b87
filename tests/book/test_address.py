"""Links to repository and site appear where their addresses are set, and nowhere else."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.address import Address, address
from tools.inventory import ROOT

REPOSITORY, SITE = "https://github.com/someone/a-book", "https://someone.example/a-book"
SET = Address(REPOSITORY, SITE, "trunk")
NOTEBOOK = "solutions/lecture2/optimal_brain_compression"
TOC = f"format: jb-book\nroot: book/working\nchapters:\n- file: book/exercises\n- file: {NOTEBOOK}\n"


def configured(text: str, url: str, site: str, branch: str = "main") -> str:
    block = f'repository:\n  url: "{url}"\n  site: "{site}"\n  branch: {branch}\n'
    changed, count = re.subn(r"^repository:\n(?:  .*\n)+", block, text, flags=re.MULTILINE)
    assert count == 1
    return changed


@pytest.mark.parametrize(
    ("url", "site", "expected"),
    [
        ("", "", Address(None, None, "trunk")),
        (f"{REPOSITORY}/", f"{SITE}/", SET),
        (REPOSITORY, "", Address(REPOSITORY, None, "trunk")),
    ],
)
def test_the_setting_is_read(tmp_path, url, site, expected):
    (tmp_path / "_config.yml").write_text(configured((ROOT / "_config.yml").read_text(), url, site, "trunk"))
    assert address(tmp_path) == expected


def test_what_is_no_address_is_refused(tmp_path):
    (tmp_path / "_config.yml").write_text('repository: {url: "github.com/a/b", site: "", branch: main}\n')
    with pytest.raises(ValueError, match=r"repository\.url in _config\.yml is no address"):
        address(tmp_path)


def test_links_are_made_of_it():
    assert SET.blob("a/b.py") == f"{REPOSITORY}/blob/trunk/a/b.py"
    assert SET.colab("a/b.ipynb") == "https://colab.research.google.com/github/someone/a-book/blob/trunk/a/b.ipynb"
    assert Address("https://gitlab.com/a/b", None, "main").colab("x") is None
    nowhere = Address(None, None, "main")
    assert nowhere.blob("x") is None and nowhere.colab("x") is None


def small_book(root: Path, url: str, site: str) -> Path:
    """Build three pages of the book with other addresses; return the folder of the pages."""
    for name in ("book", "tools"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mlcomp", "lectures", "exercises", "solutions", "experiments", "tests", "benchmarks"):
        (root / name).symlink_to(ROOT / name)
    (root / "_config.yml").write_text(configured((ROOT / "_config.yml").read_text(), url, site))
    (root / "_toc.yml").write_text(TOC)
    command = [Path(sys.executable).with_name("jupyter-book"), "build", "-q", str(root)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "_build" / "html"


@pytest.mark.slow
@pytest.mark.parametrize(("url", "site"), [("", ""), (REPOSITORY, SITE)], ids=["not set", "set"])
def test_pages_link_to_the_addresses_where_they_are_set(tmp_path, url, site):
    pages = small_book(tmp_path, url, site)
    page = (pages / f"{NOTEBOOK}.html").read_text()
    working = (pages / "book" / "working.html").read_text()
    links = {
        "Colab": f'href="https://colab.research.google.com/github/someone/a-book/blob/main/{NOTEBOOK}.ipynb"',
        "repository": f'href="{REPOSITORY}"',
        "edit": f"{REPOSITORY}/edit/main/{NOTEBOOK}.ipynb",
        "issue": f"{REPOSITORY}/issues/new?",
        "source": f"{REPOSITORY}/blob/main/{NOTEBOOK}.ipynb",
    }
    assert [name for name, link in links.items() if (link in page) != bool(url)] == []
    assert (f'<link rel="canonical" href="{SITE}/{NOTEBOOK}.html"' in page) == bool(site)
    assert ("has no address yet" in working) == (not url)
    assert (f'href="{REPOSITORY}/issues/new"' in working) == bool(url)
    for text in (page, working):
        article = text[text.index("<article") :]
        assert (
            not re.search(r'href="(None|/|https?://(github\.com)?/?)"|href="[^"]*(/blob/|/edit/|/issues)', text)
            or url
        )
        assert "{{" not in article
