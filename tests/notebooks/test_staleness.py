"""Outputs are stale when a module changes that the notebook imports, directly or through others; not otherwise."""

import ast

import pytest

from tools import staleness
from tools.staleness import bare, closure, file_of, imported, library_hash


def needs(code: str) -> set[str]:
    return closure(imported(ast.parse(code)))


def test_a_name_leads_to_the_module_in_which_it_is_written():
    assert imported(ast.parse("from mlcomp.quant import gptq")) == {"mlcomp.quant.post_training.gptq"}
    assert imported(ast.parse("from mlcomp.quant import quantization_snr")) == {"mlcomp.compare.quantization_snr"}
    assert imported(ast.parse("from mlcomp.kernels import obq, interpret_without_gpu")) == {
        "mlcomp.kernels",
        "mlcomp.kernels.obq",
    }
    assert imported(ast.parse("import torch\nfrom numpy import array")) == set()


def test_what_is_used_through_others_counts_and_nothing_else():
    gptq = needs("from mlcomp.obs import gptq")
    assert {"mlcomp.quant.grid", "mlcomp.layerwise.hessian", "mlcomp.checks"} <= gptq
    assert not any(name.startswith(("mlcomp.prune", "mlcomp.budget", "mlcomp.obs.")) for name in gptq)
    assert "mlcomp.quant.post_training.quip" not in needs("from mlcomp.prune import wanda")


@pytest.fixture
def edit(monkeypatch, tmp_path):
    """Return a function that makes a module read as if it had been edited."""

    def edited(name: str, change):
        path = tmp_path / f"{name}.py"
        path.write_text(change(file_of(name).read_text()))
        real = file_of
        monkeypatch.setattr(staleness, "file_of", lambda asked: path if asked == name else real(asked))

    return edited


CODE = "from mlcomp.quant import gptq\n%matplotlib inline\n"


@pytest.mark.parametrize(
    ("module", "change", "stale"),
    [
        ("mlcomp.quant.grid", lambda t: t.replace("import torch\n", "import torch\n\nNEW = 1\n", 1), True),
        ("mlcomp.quant.grid", lambda t: t + "\n# a comment\n", False),
        ("mlcomp.quant.grid", lambda t: t.replace('"""', '"""Another docstring. ', 1), False),
        ("mlcomp.prune.importance.wanda", lambda t: t + "\nNEW = 1\n", False),
    ],
)
def test_edits(edit, module, change, stale):
    before = library_hash(CODE)
    edit(module, change)
    assert (library_hash(CODE) != before) == stale


def test_source_that_is_shown_counts_with_its_docstring(edit):
    shown, before = CODE + "show_source(gptq)\n", library_hash(CODE + "show_source(gptq)\n")
    edit("mlcomp.quant.post_training.gptq", lambda t: t + "\n# a comment\n")
    assert library_hash(shown) != before


def test_tables_count_where_they_are_named():
    assert library_hash("committed_table('whole_model')") != library_hash("committed_table('every_method')")


def test_weights_of_a_network_that_stands_alone_count_where_it_is_used(monkeypatch):
    codes = [f"from mlcomp.models import {name}\n" for name in ("mlp", "vit")]
    before = [library_hash(code) for code in codes]
    monkeypatch.setattr("tools.staleness.ALONE", ("in_context_teacher",))
    mlp, vit = (library_hash(code) for code in codes)
    assert mlp != before[0] and vit == before[1]


def test_bare_code_is_the_same_program():
    for name in ("mlcomp.quant.grid", "mlcomp.layerwise.compress", "mlcomp.resume"):
        text = bare(file_of(name))
        assert '"""' not in text and "  #" not in text and "def " in text
