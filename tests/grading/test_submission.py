import json
import os
from dataclasses import replace

import pytest

from mlcomp.grading.assignment import AssignmentError
from mlcomp.grading.limits import Limits
from mlcomp.grading.submission import cells_of, content, digest

LIMITS = Limits()


def book(*cells):
    return json.dumps({"cells": list(cells)}).encode()


def code(text):
    return {"cell_type": "code", "source": text}


def test_only_regular_files_are_read(tmp_path):
    (tmp_path / "real.ipynb").write_bytes(b"real")
    (tmp_path / "link.ipynb").symlink_to("real.ipynb")
    (tmp_path / "nowhere.ipynb").symlink_to("absent")
    (tmp_path / "folder.ipynb").mkdir()
    os.mkfifo(tmp_path / "pipe.ipynb")
    (tmp_path / "there").symlink_to(tmp_path)
    assert content(tmp_path / "real.ipynb", LIMITS) == b"real"
    for name, message in {
        "link.ipynb": "a link",
        "nowhere.ipynb": "a link",
        "there/real.ipynb": "a link",
        "folder.ipynb": "not a file|cannot be read",
        "pipe.ipynb": "not a file",
        "absent.ipynb": "cannot be read",
    }.items():
        with pytest.raises(AssignmentError, match=message):
            content(tmp_path / name, LIMITS)
        assert digest(tmp_path / name, LIMITS) == ""
    assert content(tmp_path / "link.ipynb", LIMITS, follow=True) == b"real"  # one's own


def test_a_large_file_is_not_read_whole(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)  # a sparse file of a tebibyte
    with pytest.raises(AssignmentError, match="larger than 20 MiB"):
        content(tmp_path / "large", LIMITS)


def test_cells_and_texts_are_limited():
    small = replace(LIMITS, cells=3, text=10)
    assert len(cells_of(book(*[code("x" * 10)] * 3), small)) == 3
    with pytest.raises(AssignmentError, match="4 cells; 3 is the limit"):
        cells_of(book(*[code("")] * 4), small)
    with pytest.raises(AssignmentError, match="cell 2 is too long"):
        cells_of(book(code(""), code("x" * 11)), small)
    with pytest.raises(AssignmentError, match="cell 11 is too long"):
        cells_of(book(*[code("x" * 10)] * 11), replace(small, cells=20))


@pytest.mark.parametrize("kind", [[], {}, None, 3, "heading", "code\ud800"])
def test_a_cell_of_no_known_kind_is_raw(kind):
    (cell,) = cells_of(book({"cell_type": kind, "source": ["a", 1, "\ud83d"], "metadata": 3}), LIMITS)
    assert cell["cell_type"] == "raw" and cell["source"] == "a1?"


def test_pictures_are_kept_and_nothing_else_that_is_attached():
    attached = {
        "a.png": {"image/png": "iVBO\nRw0="},
        "b.svg": {"image/svg+xml": "PHN2Zz4="},
        "c.png": {"image/png": '"><script>'},
        "d": ["image/png"],
        "e": {"image/png": 3},
    }
    (cell,) = cells_of(book({"cell_type": "markdown", "attachments": attached}), LIMITS)
    assert cell["attachments"] == {"a.png": {"image/png": "iVBORw0="}}
    assert cells_of(book({"cell_type": "markdown", "attachments": "x"}), LIMITS)[0]["attachments"] == {}
