"""The lint of notebooks: each rule sees the fault it is for, and leaves alone what only looks like one."""

import shutil

import nbformat
import pytest

from tools import lint
from tools import notebooks as tool
from tools.inventory import ROOT


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The authors' template with outputs made up: no kernel is needed to look at Markdown and metadata."""
    source = tmp_path_factory.mktemp("lecture") / "01_template.py"
    shutil.copy(ROOT / "tools" / "template.py", source)
    path = tool.from_py(source)
    nb = tool.read(path)
    for cell in nb.cells:
        if cell.cell_type == "code" and "show_drawing(" in cell.source:
            alt = {"image/svg+xml": {"alt": "a number line with four points"}}
            cell.outputs = [nbformat.v4.new_output("display_data", {"image/svg+xml": "<svg/>"}, metadata=alt)]
    return nb, path


@pytest.fixture
def notebook(good):
    nb, path = good
    return nbformat.from_dict(nb), path


def visible(nb):
    return next(c for c in nb.cells if c.cell_type == "code" and not lint.is_folded(c))


def add(nb, text):
    nb.cells.insert(3, nbformat.v4.new_markdown_cell(text))


def edit(nb, old, new):
    """Replace a text wherever it stands in Markdown, and make sure that it stood there."""
    hit = [c for c in nb.cells if c.cell_type == "markdown" and old in c.source]
    assert hit
    for cell in hit:
        cell.source = cell.source.replace(old, new)


def test_the_template_is_faultless(notebook):
    assert lint.pattern(*notebook) == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("as {cite:t}`max1960` says", "a role"),
        ("{doc}`x`", "a role"),
        ("```{note}\nx\n```", "a directive"),
        (":::{note}\nx\n:::", "a directive"),
        (":class: note", "an option of a directive"),
        ("(some-label)=", "a label"),
        ("$$\nx\n$$ (eq-x)", "a label"),
        ("> **Theorem 7 (Late).** x", "not numbered"),
        ("> **Lemma.** x", "no number or no name"),
        ("> **Lemma 2.** x", "no number or no name"),
        ("by Theorem 9 it follows", "refers to Theorem 9"),
        ("> **Exercise 5 (late).** x", "exercises are not numbered"),
        ("[there](nowhere.ipynb)", "doesn't exist"),
        ("[there](#no-such-heading)", "no such place"),
        ("[Ann (2020)](https://arxiv.org/abs/2001.00001)", "doesn't list"),
        ("[Jacob et al. (2019)](https://arxiv.org/abs/1712.05877)", "names 'Jacob et al. (2019)'"),
        ("![plot](x.png)", "too few words"),
        ("<details><summary>Why</summary>\ntext\n</details>", "an empty line"),
        ("<details><summary>Why</summary>\n\ntext", "not closed"),
    ],
)
def test_a_fault_in_the_text_is_seen(notebook, text, what):
    nb, path = notebook
    add(nb, text)
    assert any(what in fault for fault in lint.pattern(nb, path))


@pytest.mark.parametrize(
    "text",
    [
        r"$\{a\}$ and $x_{ij}$ and `{cite:t}` in code, `:label:` too",
        "```python\nx = {a: 1}\n```",
        "$$\n\\begin{cases} a \\\\ b \\end{cases} \\tag{1}\n$$",
        "by Theorem 1 it follows; [Theorem 9 of the paper](https://example.org)",
        "the paper's Algorithm 1, and Theorem 9 of Markstein",
        "[the idea](#the-idea)",
        "![an axis with three points and their distances](x.png)",
    ],
)
def test_what_only_looks_like_a_fault_is_left_alone(notebook, text):
    nb, path = notebook
    add(nb, text)
    assert lint.pattern(nb, path) == []


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("> **Predict first.** One column", "One column", "1 stops 'Predict first'"),
        ("**3.** Does", "Does", "quiz has not three"),
        ("## Quiz", "## Questions", "lacks the section '## Quiz'"),
        ("## What breaks it", "## Limits", "lacks the section '## What breaks it'"),
        ("> **Your turn.**", "Now:", "no cell 'Your turn'"),
    ],
)
def test_a_missing_part_is_seen(notebook, old, new, what):
    nb, path = notebook
    edit(nb, old, new)
    assert any(what in fault for fault in lint.pattern(nb, path))


def test_an_answer_that_is_not_folded_is_seen(notebook):
    nb, path = notebook
    add(nb, "> **Predict first.** What happens?\n\nIt grows.\n\n## Next")
    assert any("no folded answer" in fault for fault in lint.pattern(nb, path))


@pytest.mark.parametrize(("key", "what"), [("goals", "2 goals, not three"), ("summary", "2 summary, not three")])
def test_metadata_that_are_not_three_are_seen(notebook, key, what):
    nb, path = notebook
    nb.metadata.mlcomp[key].pop()
    assert any(what in fault for fault in lint.pattern(nb, path))


def test_a_path_that_is_neither_is_seen(notebook):
    nb, path = notebook
    nb.metadata.mlcomp.path = "short"
    assert any("neither core nor deeper" in fault for fault in lint.pattern(nb, path))


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("\n".join(["x = 1"] * 21), "has 21 lines"),
        ("x = 1\nassert x == 1", "asserts in view"),
        ("torch.testing.assert_close(a, b)", "asserts in view"),
        ("# NBVAL_CHECK_OUTPUT\nx", "marked by a comment"),
    ],
)
def test_a_fault_in_a_visible_cell_is_seen_and_in_a_folded_one_allowed(notebook, source, what):
    nb, path = notebook
    cell = visible(nb)
    cell.source = source
    assert any(what in fault for fault in lint.pattern(nb, path))
    if "comment" not in what:
        cell.metadata["tags"] = ["hide-input"]
        assert lint.pattern(nb, path) == []


def test_a_value_that_python_writes_is_no_output(notebook):
    nb, path = notebook
    cell = visible(nb)
    cell.outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "History(loss=(0.1,))"})]
    assert any("as Python writes it" in fault for fault in lint.pattern(nb, path))
    cell.outputs[0].data["text/html"] = "<table></table>"
    assert lint.pattern(nb, path) == []


def test_twenty_numbers_may_be_printed_and_more_only_below_a_fold(notebook):
    nb, path = notebook
    cell = visible(nb)
    cell.outputs = [nbformat.v4.new_output("stream", text="w4 layer2 " + "-1.25 " * 20)]
    assert lint.pattern(nb, path) == []
    cell.outputs[0].text += " 3e-4"
    assert any("prints 21 numbers" in fault for fault in lint.pattern(nb, path))
    cell.metadata["tags"] = ["hide-output"]
    assert lint.pattern(nb, path) == []


def test_a_picture_needs_words_and_the_notebook_a_drawing(notebook):
    nb, path = notebook
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            output.data = {"image/png": ""}
            output.metadata = {}
    faults = lint.pattern(nb, path)
    assert any("without words" in f for f in faults) and any("no schematic drawing" in f for f in faults)


def test_sentences_that_cells_say_are_looked_at(notebook):
    nb, path = notebook
    said = nbformat.v4.new_output("display_data", {"text/markdown": "as {cite:t}`max1960` says"})
    visible(nb).outputs = [said]
    assert any("a role" in fault for fault in lint.pattern(nb, path))


def test_links_ahead_are_allowed_only_in_the_last_sections(tmp_path, monkeypatch, notebook):
    nb, path = notebook
    ahead = path.parent / "02_later.ipynb"
    shutil.copy(path, ahead)
    order = [str(p.with_suffix("")) for p in (path, ahead)]
    monkeypatch.setattr(lint, "contents", lambda: order)
    edit(nb, "## Reading\n", "## Reading\n\nMore in [the next](02_later.ipynb).\n")
    assert lint.pattern(nb, path) == []
    add(nb, "See [the next](02_later.ipynb).")
    assert any("links ahead" in fault for fault in lint.pattern(nb, path))
    monkeypatch.setattr(lint, "contents", lambda: order[::-1])
    assert lint.pattern(nb, path) == []
