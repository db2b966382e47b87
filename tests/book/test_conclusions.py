"""The closing page: each row of the lectures stands on the map once, and each figure comes from a table."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from mlcomp.data import committed_table
from tools.inventory import SYLLABUS, notebooks

sys.path.insert(0, str(Path(__file__).parents[2] / "book" / "_ext"))

import conclusions as subject

PAGE = (subject.ROOT / "book" / "conclusions.md").read_text(encoding="utf-8")
FIGURES = [re.sub(r"\s+", " ", text) for text in re.findall(r"\{measured\}`([^`]+)`", PAGE)]


def test_each_row_of_the_lectures_stands_on_the_map_once():
    groups = yaml.safe_load(subject.MAP.read_text(encoding="utf-8"))
    assert all(group.keys() <= {"what", *subject.NEEDS} for group in groups)
    shown = [row for group in groups for need in subject.NEEDS for row in group.get(need, {})]
    assert sorted(shown) == sorted(row for rows in SYLLABUS.values() for row in rows)
    covered = {row for notebook in notebooks("lectures") for row in notebook.syllabus}
    assert set(shown) <= covered, "rows without a notebook to link to"


@pytest.mark.parametrize("text", FIGURES)
def test_each_figure_is_in_a_table(text):
    assert re.search(r"\d", subject.measured(text))


def test_no_figure_is_typed():
    prose = re.sub(r"\{measured\}`[^`]+`|\[[^\]]*\]\([^)]*\)", "", PAGE)
    assert re.findall(r"\d+\.\d+", prose) == []


def test_a_figure_is_the_mean_over_the_rows_that_fit():
    rows = [r for r in committed_table("qlora_smollm2") if (r["base"], r["steps"]) == ("nf4", "20")]
    assert len(rows) > 1
    mean = sum(float(r["reference"]) for r in rows) / len(rows)
    assert subject.measured("qlora_smollm2: reference; base=nf4; steps=20; .2f") == f"{mean:.2f}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("qlora_smollm2: reference; base=none; .1f", KeyError),
        ("qlora_smollm2: nothing; base=nf4; .1f", KeyError),
        ("no_table: reference; .1f", KeyError),
        ("qlora_smollm2: reference; nf4; .1f", ValueError),
        ("qlora_smollm2", ValueError),
    ],
)
def test_what_is_wrong_is_said(text, problem):
    with pytest.raises(problem):
        subject.measured(text)
