"""What the pattern of the notebooks promises of all of them together."""

import re

import nbformat
import pytest

from tools.inventory import ROOT
from tools.stamp import contents, info_of, lecture_path, reading_minutes

NOTEBOOKS = [ROOT / f"{name}.ipynb" for name in contents() if name.startswith("lectures/") and "/" in name[9:]]
BOOKS = [path for path in NOTEBOOKS if path.exists()]
LECTURES = sorted({info_of(path)["lecture"] for path in BOOKS}, key=str)


@pytest.mark.parametrize("lecture", LECTURES)
def test_the_core_path_of_a_lecture_takes_at_most_two_hours(lecture):
    core = [path for path, info in lecture_path(lecture) if info.get("path") == "core"]
    assert core
    assert sum(reading_minutes(nbformat.read(path, as_version=4)) for path in core) <= 120


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_small_enough_to_open_anywhere(path):
    assert path.stat().st_size < 3 * 2**20  # GitHub shows larger ones not at all, or after a long wait


def test_every_notebook_of_the_contents_is_there_and_no_other():
    assert [path for path in NOTEBOOKS if not path.exists()] == []
    found = {p for p in (ROOT / "lectures").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts}
    assert found - set(NOTEBOOKS) == set()


def test_every_drawing_is_shown_and_needs_nothing_from_outside():
    shown = "".join(path.read_text(encoding="utf-8") for path in BOOKS)
    for drawing in sorted((ROOT / "mlcomp" / "data" / "drawings").glob("*.svg")):
        text = drawing.read_text(encoding="utf-8")
        assert drawing.stem in shown or drawing.stem in (ROOT / "tools" / "template.py").read_text(), drawing.name
        assert "<title>" in text and "viewBox" in text, drawing.name
        addresses = set(re.findall(r"https?://[^\"'\s<]+", text)) - {"http://www.w3.org/2000/svg"}
        assert addresses == set() and "<script" not in text, drawing.name
