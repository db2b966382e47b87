import pytest
import torch

from experiments import kbit_scaling
from experiments.every_method.run import FIELDS
from mlcomp.compare import quantize_matrices
from mlcomp.data import committed_results, committed_table
from mlcomp.data.committed_table import read_results, read_table, write_results
from mlcomp.models.byte_lm import WIDTHS


def test_kbit_table_is_complete_and_counts_as_the_library_does():
    rows = committed_table("kbit_scaling")
    key = {(int(r["width"]), int(r["bits"]), r["block_size"], r["data_type"]) for r in rows}
    wanted = {(w, bits, str(size or "matrix"), kind) for w in WIDTHS for bits, size, kind in kbit_scaling.settings()}
    assert key == wanted and len(rows) == len(wanted)
    assert all(1.4 < float(r["bits_per_byte"]) < 40 and r["torch"] and r["device"] for r in rows)
    made = kbit_scaling.row(16, 16, None, "float", kbit_scaling.reference_bytes(300))
    about = kbit_scaling.origin(seed=0, device=torch.device("cpu"))
    assert [*made, *about] == list(rows[0])  # so that the next run can append


@pytest.mark.parametrize(("bits", "size", "kind"), [(4, 64, "int"), (3, None, "quantile"), (16, None, "float")])
def test_rows_can_be_made_again(bits, size, kind):
    from mlcomp.models import byte_lm

    (row,) = (
        r
        for r in committed_table("kbit_scaling")
        if (r["width"], r["bits"], r["block_size"], r["data_type"]) == ("16", str(bits), str(size or "matrix"), kind)
    )
    made = quantize_matrices(byte_lm(16), bits=bits, block_size=size, data_type=kind)
    assert made.total_bits == int(row["total_bits"])
    again = kbit_scaling.row(16, bits, size, kind, kbit_scaling.reference_bytes(kbit_scaling.TEXT + 1))
    # Other processors sum in another order: far below the third digit.
    assert float(again["bits_per_byte"]) == pytest.approx(float(row["bits_per_byte"]), abs=2e-3)


def test_every_method_table_has_the_runners_columns():
    rows = committed_table("every_method")
    assert rows and all(list(row) == FIELDS for row in rows)
    assert len({(r["method"], r["setting"]) for r in rows}) == len(rows)


def test_unknown_table(as_user):
    with pytest.raises(ValueError, match=r"the csv files are .*every_method, .*kbit_scaling.*got 'other'"):
        committed_table("other")
    with pytest.raises(ValueError, match=r"the json files are .*pruning_taxonomy.*got 'kbit_scaling'"):
        committed_results("kbit_scaling")


@pytest.mark.parametrize("text", ["a,b\n1,2\n3", "a,b\n1,2\n3\n", "a,b\n1,2,3\n", "a,b\n1,2", "a,\udcff\n"])
def test_a_damaged_table_is_named_with_the_way_out(tmp_path, text):
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"rows\.csv is damaged.*committed file again"):
        read_table(path)


def test_a_table_that_is_empty_or_has_a_header_only_has_no_rows(tmp_path):
    path = tmp_path / "rows.csv"
    for text, rows in (("", []), ("a,b\n", []), ('a,b\n"x\ny","ä, z"\n', [{"a": "x\ny", "b": "ä, z"}])):
        path.write_text(text, encoding="utf-8")
        assert read_table(path) == rows


def test_results_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "results.json"
    write_results({"rows": [1, 2], "text": "ä"}, path)
    with pytest.raises(TypeError):
        write_results({"rows": object()}, path)
    assert read_results(path) == {"rows": [1, 2], "text": "ä"} and [p.name for p in path.parent.iterdir()] == [
        path.name
    ]
    path.write_text('{"rows": [1')
    with pytest.raises(ValueError, match=r"results\.json is damaged.*let its script begin anew"):
        read_results(path)
