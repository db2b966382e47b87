"""Nothing before its definition, over all notebooks in the order of the contents."""

import nbformat
import pytest

from tools.definitions import first_uses, linked
from tools.inventory import ROOT


@pytest.mark.slow
def test_every_term_is_defined_or_linked_where_the_book_first_uses_it():
    found = [
        f"{use.notebook.relative_to(ROOT)}: {use.text!r} (python tools/notebooks.py define)"
        for use in first_uses()
        if not use.explained
    ]
    assert found == []


def notebook(path, *texts):
    frame = "a header or footer that names the Hessian"
    cells = [nbformat.v4.new_markdown_cell(text) for text in (frame, *texts, frame)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.mark.parametrize(
    ("text", "explained"),
    [
        ("Take the Hessian of the layer.", False),
        ("The **Hessian** is a matrix.", True),
        ("## The Hessian", True),
        ("> **The Hessian of a layer.** It is a matrix.", True),
        ("Take the [Hessian](../../book/glossary.md#term-hessian) of the layer.", True),
        ("Take the [Hessian of a layer](01_problem.ipynb) here.", True),
    ],
)
def test_a_first_use_must_be_bold_in_a_heading_or_a_link(tmp_path, text, explained):
    (use,) = first_uses([notebook(tmp_path / "x.ipynb", text, "The Hessian again.")])
    assert (use.slug, use.explained, use.cell) == ("hessian", explained, 1)


@pytest.mark.parametrize(
    "text", ["`Hessian`", "```\nHessian\n```", r"$\text{Hessian}$", "## Reading\n\nThe Hessian."]
)
def test_code_formulas_and_the_last_sections_do_not_count(tmp_path, text):
    assert first_uses([notebook(tmp_path / "x.ipynb", text)]) == []


def test_what_one_notebook_defines_the_next_may_use(tmp_path):
    first = notebook(tmp_path / "1.ipynb", "The **Hessian** is a matrix.")
    second = notebook(tmp_path / "2.ipynb", "Take the Hessian.")
    assert [use.explained for use in first_uses([first, second])] == [True]
    assert [use.explained for use in first_uses([second, first])] == [False]


def test_the_tool_links_what_the_test_finds(tmp_path):
    path = notebook(tmp_path / "x.ipynb", "Take the Hessian, and the inverse\nHessian, too.")
    nb = nbformat.read(path, as_version=4)
    linked(nb, first_uses([path]))
    assert nb.cells[1].source == (
        "Take the [Hessian](../../book/glossary.md#term-hessian), and the "
        "[inverse Hessian](../../book/glossary.md#term-inverse-hessian), too."
    )
    nbformat.write(nb, path)
    assert all(use.explained for use in first_uses([path]))
