"""The page Beside other libraries: its figures are those of the tables, and each library is told about once."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "book" / "_ext"))

import beside_others as subject
import which_method

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "book" / "beside_others.md").read_text(encoding="utf-8")
BASE = {
    "run": "dense", "library": "transformers", "version": "5.1", "method": "dense", "setting": "float32",
    "seconds": "0.0", "others": "0.0", "peak_mb": "1023", "perplexity": "16.884", "layers": "0", "left": "all",
    "zeros": "0.0", "as_rounded": "0.0", "file_mb": "538.1", "exported_mb": "", "date": "2030-01-02", "commit": "abc",
    "machine": "M, 2 cores", "threads": "2", "torch": "3", "python": "3.20", "seed": "42",
}  # fmt: skip
GPTQ = BASE | {
    "run": "llmcompressor_gptq", "library": "llmcompressor", "version": "0.14", "method": "GPTQ", "setting": "4 bits",
    "seconds": "44.1", "perplexity": "19.671", "layers": "210", "left": "lm_head", "as_rounded": "0.75",
}  # fmt: skip
OURS = GPTQ | {
    "run": "mlcomp_gptq",
    "library": "mlcomp",
    "version": "0.9",
    "seconds": "66.15",
    "exported_mb": "173.0",
}
ZEROS = GPTQ | {"run": "llmcompressor_sparsegpt_50", "method": "SparseGPT", "setting": "50 % zeros"}
ROWS = {row["run"]: row for row in (BASE, GPTQ, OURS, ZEROS)}


@pytest.fixture
def tables(monkeypatch, tmp_path):
    """The page's tables, small."""
    runs, codes = tmp_path / "runs.csv", tmp_path / "codes.csv"
    lines = [",".join(BASE), *(",".join(f'"{v}"' for v in row.values()) for row in ROWS.values())]
    runs.write_text("\n".join(lines) + "\n")
    names = "run,block,same,least_same,step_difference,error_theirs,error_ours"
    blocks = ["llmcompressor_gptq,1,0.98,0.97,2e-07,0.02,0.03", "llmcompressor_gptq,0,1.0,1.0,1e-07,0.04,0.03"]
    codes.write_text("\n".join([names, *blocks]) + "\n")
    monkeypatch.setattr(subject, "measured", lambda: _measured(runs))
    monkeypatch.setattr(subject, "compared", lambda: _compared(codes))
    for directive in (subject.BesideCodes, subject.BesideLeft, subject.NotBeside, subject.BesideMade):
        monkeypatch.setattr(directive, "watch", lambda self, *paths: None)


_measured, _compared = subject.measured, subject.compared


def lines(directive):
    return directive.lines(directive.__new__(directive))


def test_the_newest_row_of_a_run_counts(tmp_path):
    path = tmp_path / "runs.csv"
    rows = [GPTQ, GPTQ | {"perplexity": "1.5"}]
    path.write_text("\n".join([",".join(GPTQ), *(",".join(f'"{v}"' for v in row.values()) for row in rows)]) + "\n")
    assert subject.measured(path)["llmcompressor_gptq"]["perplexity"] == "1.5"


def test_the_table_has_a_row_for_each_run_and_says_what_is_missing():
    bits, zeros = (subject.table(ROWS, pruning) for pruning in (False, True))
    assert "| llm-compressor | GPTQ | 4 bits | 19.67 | 44 s | 1\u202f023\u00a0MB | 538\u00a0MB |" in bits
    assert (
        "| **ours** | GPTQ | 4 bits | 19.67 | 66 s | 1\u202f023\u00a0MB | 538\u00a0MB<br>(173\u00a0MB exported) |"
        in bits
    )
    assert not any("SparseGPT" in line for line in bits)
    longer = {"mlcomp_gptq": OURS | {"setting": "4 bits, groups of 64, affine"}}
    assert "| GPTQ | affine | " in subject.table(longer, pruning=False)[2]
    assert sum(line.startswith("| ") for line in zeros) == 3 and any("SparseGPT | 50 % zeros" in x for x in zeros)
    assert "`hqq`" in bits[-1] and "autoround_200" not in bits[-1]
    disturbed = subject.table({"llmcompressor_gptq": GPTQ | {"others": "0.9"}}, pruning=False)
    assert "44 s\\*" in disturbed[2] and any("too long" in line for line in disturbed)
    assert not any("too long" in line for line in bits)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("llmcompressor_gptq perplexity", "19.67"),
        ("llmcompressor_gptq seconds", "44 s"),
        ("llmcompressor_gptq moved", "25.00%"),
        ("mlcomp_gptq seconds / llmcompressor_gptq", "1.5"),
        ("llmcompressor_gptq codes", "99.00%"),
        ("hqq codes", subject.NOT_YET),
        ("hqq seconds", subject.NOT_YET),
        ("mlcomp_gptq seconds / hqq", subject.NOT_YET),
    ],
)
def test_figures_in_sentences(tables, asked, said):
    assert subject.figure(asked) == said


def test_codes_are_averaged_over_blocks(tables):
    (row,) = lines(subject.BesideCodes)[2:]
    assert row == "| llm-compressor | GPTQ, 4 bits | 99.00% | 97.00% | 2e-07 | 0.0300 | 0.0300 |"


def test_what_was_left_is_said_once_for_each_library(tables):
    rows = lines(subject.BesideLeft)[2:]
    assert len(rows) == 2 and all("| 210 | `lm_head` |" in row for row in rows)
    assert rows[0].startswith("| [llm-compressor](https://") and rows[1].startswith("| ours |")


def test_where_the_numbers_come_from(tables):
    rows = lines(subject.BesideMade)[2:]
    assert (
        "| llm-compressor | 0.14 | 2030-01-02, commit abc, torch 3, Python 3.20 | M, 2 cores, 2 of them used |"
        in rows
    )


def test_each_library_was_run_or_says_why_not():
    run = {library for library in _libraries_of_runs() if library != "transformers"}
    for key, about in subject.libraries().items():
        assert ("left" in about) == (key in run), key
        assert not ("left" in about and "out" in about), key
        assert key == "mlcomp" or about["url"].startswith("https://")
    told = "\n".join(lines_of_not_beside())
    assert "GPTQModel" in told and "mslk" in told


def _libraries_of_runs():
    from benchmarks.beside_others.runs import RUNS

    return {run.library for run in RUNS.values()}


def lines_of_not_beside():
    directive = subject.NotBeside.__new__(subject.NotBeside)
    directive.watch = lambda *paths: None
    return directive.lines()


def test_the_page_asks_for_figures_that_there_are(tables):
    asked = re.findall(r"\{beside\}`([^`]+)`", PAGE)
    known = set(subject.registered())
    assert len(asked) >= 5
    for text in asked:
        name, column, *rest = text.split()
        assert name in known and column in {*subject.SAID, "codes"}, text
        assert not rest or (rest[0] == "/" and rest[1] in known), text
    sentences = re.sub(r"`[^`]*`|```[\s\S]*?```", "", PAGE)
    assert not re.search(r"\d\.\d\d|\d ?%", sentences), "typed figures"


def test_committed_rows_are_of_registered_runs():
    assert set(_measured()) <= set(subject.registered()) and set(_compared()) <= set(subject.registered())
    for name, row in _measured().items():
        # Whoever compresses has read the whole model, 538 MB; "dense" leaves parts of its mapped file unread.
        assert float(row["perplexity"]) > 1 and int(row["peak_mb"]) > (0 if name == "dense" else 538), name


def test_none_of_our_runs_takes_more_memory_than_the_dense_model_and_a_block():
    measured = _measured()
    # A block of SmolLM2 has 3.54 million weights; its inputs are 16 · 256 · 576 numbers.
    most = int(measured["dense"]["peak_mb"]) + 4 * (3_540_096 + 16 * 256 * 576) / 1e6
    ours = {name: int(row["peak_mb"]) for name, row in measured.items() if name.startswith("mlcomp_")}
    assert len(ours) == 7 and all(peak <= most for peak in ours.values()), (ours, most)


CASES = yaml.safe_load(which_method.CASES.read_text(encoding="utf-8"))


def test_the_column_of_which_method_names_libraries_by_their_own_words():
    named = subject.libraries()
    told = [which_method.elsewhere(case) for case in CASES]
    assert sum(bool(text) for text in told) >= 8 and "" in told
    for case in CASES:
        assert set(case.get("elsewhere", {})) <= set(named)
    assert "[llm-compressor](https://github.com/vllm-project/llm-compressor)<br>`GPTQModifier`" in told


@pytest.mark.parametrize(
    ("library", "path"), sorted({item for case in CASES for item in case.get("elsewhere", {}).items()})
)
def test_the_names_are_there_where_the_library_is_installed(library, path):
    module, _, name = path.rpartition(".")
    pytest.importorskip(module.partition(".")[0], reason=f"{library} is not installed")
    assert hasattr(importlib.import_module(module), name)


def test_each_recipe_is_told_about_and_was_measured_on_each_draw(monkeypatch):
    from experiments.four_bit_recipes import DRAWS, RECIPES, UNDRAWN

    assert subject.CHANGES.keys() == {"dense", *RECIPES}
    wanted = {(name, str(draw)) for name in subject.CHANGES for draw in range(1 if name in UNDRAWN else DRAWS)}
    assert sorted(wanted) == sorted((row["recipe"], row["draw"]) for row in which_method.table(subject.RECIPES.stem))
    monkeypatch.setattr(subject.BesideRecipes, "watch", lambda self, *paths: None)
    head, _, *shown = lines(subject.BesideRecipes)
    assert len(shown) == len(subject.CHANGES) and len({line.count("|") for line in (head, *shown)}) == 1
    (ours,) = [line for line in shown if "`gptq`'s recipe" in line]
    assert ours.split("|")[2:-1] == [" 4.31 ", " 18.30 ", " 18.42 ", " 18.36 ", " 18.36 "]


def test_what_the_page_says_of_the_recipes_holds():
    found = {name: {} for name in subject.CHANGES}
    for row in which_method.table(subject.RECIPES.stem):
        found[row["recipe"]][row["draw"]] = float(row["perplexity"])
    means = {name: sum(draws.values()) / len(draws) for name, draws in found.items()}

    def gains(one, other):
        return means[one] - means[other]

    assert abs(gains("natural_static", "rtn_affine_mse")) < 0.25
    assert round(2 * gains("natural_static", "natural")) / 2 == 2.5
    assert round(gains("natural_static", "by_activation")) == 3
    assert round(2 * gains("by_activation", "affine")) / 2 == 1.5
    assert round(gains("affine", "affine_mse"), 1) == 0.4
    spread = max(found["affine_mse"].values()) - min(found["affine_mse"].values())
    assert abs(gains("affine_mse_on_the_way", "affine_mse")) < spread
    assert abs(gains("affine_mse_dense_inputs", "affine_mse")) < spread
    assert all(found["affine_mse_damp_0.1"][draw] > value for draw, value in found["affine_mse"].items())
