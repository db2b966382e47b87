"""The benchmark of packed models, on a model of a few neurons."""

import csv
import functools

import pytest
import torch

from benchmarks import packed_model
from benchmarks.record import origin
from mlcomp.layerwise import compress, save
from mlcomp.quant import rtn


@pytest.fixture
def folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, **sizes)).eval()
    method = functools.partial(rtn, bits=4, group_size=16)
    result, report = compress(model, [torch.arange(8)[None]], method, sequential=False, progress=False)
    save(result, report.results, packed_model.narrow(tmp_path / "tiny"), dtype=torch.float16)
    return save(result, report.results, tmp_path / "tiny")


def test_versions_choose_the_same_tokens_and_packed_holds_less(folder):
    threads = torch.get_num_threads()
    dense, packed = (packed_model.measure(v, str(folder), "cpu", 6, 5, threads) for v in ("dense", "packed"))
    assert dense["chosen"] == packed["chosen"] and len(packed["chosen"]) == 5
    half = packed_model.measure(packed_model.HALF, str(packed_model.narrow(folder)), "cpu", 6, 5, threads)
    assert packed["alive_mb"] < 0.5 * dense["alive_mb"] and half["chosen"] == dense["chosen"]
    # Embeddings (the head is another layer, and is rounded): 64 vectors of 32 numbers, at two bytes less.
    assert packed["alive_mb"] - half["alive_mb"] == pytest.approx(64 * 32 * 2 / 1e6)
    for numbers in (dense, packed, half):
        assert all(numbers[key] > 0 for key in ("peak_mb", "prefill_tokens_s", "decode_tokens_s"))


@pytest.mark.slow
def test_rows_are_appended(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(packed_model, "RESULTS", tmp_path / "rows.csv")
    packed_model.main(["--folder", str(folder), "--prompt", "4", "--tokens", "2", "--device", "cpu"])
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["version"] for row in rows] == ["dense", "packed"] and rows[1]["same_tokens"] == "2"
    assert list(rows[0])[: len(origin(seed=0, device=torch.device("cpu")))] == list(
        origin(seed=0, device=torch.device("cpu"))
    )
