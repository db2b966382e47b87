"""A page of the built book is printed: text, formulas, open folds, no navigation."""

import os
import shutil
from pathlib import Path

import pytest

from tools import print_book
from tools.inventory import ROOT
from tools.stamp import contents

BOOK = Path(os.environ.get("MLCOMP_BOOK", ROOT / "_build" / "html"))


def test_each_lecture_begins_with_its_opening_page_and_has_all_its_notebooks():
    found = print_book.lectures()
    assert sorted(name for names in found.values() for name in names if name.startswith("lectures/")) == sorted(
        name for name in contents() if name.startswith("lectures/")
    )
    assert found["2_optimal_brain_compression"][0] == "book/lecture2"


@pytest.mark.browser
def test_paper_shows_what_folds_hide(tmp_path):
    pypdf = pytest.importorskip("pypdf")
    program = next(filter(None, map(shutil.which, print_book.PROGRAMS)), None)
    if program is None or not (BOOK / "index.html").exists():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("needs a browser and the built book")
    from playwright.sync_api import sync_playwright

    name = "lectures/2_optimal_brain_compression/02_obd_and_obs"
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        print_book.print_page(browser.new_page(), (BOOK / f"{name}.html").resolve().as_uri(), tmp_path / "page.pdf")
        browser.close()
    pages = pypdf.PdfReader(tmp_path / "page.pdf").pages
    text = "\n".join(page.extract_text() for page in pages)
    assert 5 < len(pages) < 60
    assert "Quiz" in text and "In three sentences" in text and "Search" not in text
    answer = (ROOT / f"{name}.ipynb").read_text(encoding="utf-8").split("<summary>Answer</summary>")[1]
    words = [word for word in answer.replace("\\n", " ").split() if word.isalpha() and len(word) > 3][:8]
    assert sum(word in text for word in words) >= 6  # hyphenation may cut one or the other
