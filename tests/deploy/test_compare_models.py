from functools import partial

import pytest
import torch

from mlcomp.data import token_batches
from mlcomp.deploy import compare_models, compress_model
from mlcomp.metrics import perplexity
from tests.deploy import tiny

byte_lm = partial(compress_model, "byte_lm_16", layers=["blocks.0.*"], samples=2, tokens=64, progress=False)


@pytest.mark.slow
def test_what_folders_say(tmp_path):
    a = byte_lm(method="rtn", bits=3, out=tmp_path / "a")
    b = compress_model("mlp", method="magnitude", sparsity=0.5, data="noise", out=tmp_path / "b", progress=False)
    first, second = compare_models([tmp_path / "a", str(tmp_path / "b")])
    assert (
        first.model == "byte_lm_16"
        and first.method.startswith("rtn bits 3")
        and second.method == ("magnitude sparsity 0.5")
    )
    assert (first.perplexity, first.dense_perplexity) == (a.perplexity[1], a.perplexity[0])
    assert second.same_class == b.agreement.same_class and second.output_error == b.agreement.output_error
    assert first.nbytes == (tmp_path / "a" / "model.safetensors").stat().st_size == a.nbytes_after
    layers = [row for row in a.report.rows if row.status == "compressed"]
    assert first.bits_per_weight == pytest.approx(8 * sum(r.nbytes_after for r in layers) / (48 * 16 + 9 * 16 * 16))
    assert first.worst_layer == max(((r.name, r.held_out_error) for r in layers), key=lambda pair: pair[1])
    assert "(dense" in first.quality and "the same class, output error" in second.quality


@pytest.mark.slow
def test_a_text_is_measured_now(tmp_path):
    folder = tiny.saved(tiny.llama(), tmp_path / "llama")
    text = tmp_path / "text.txt"
    text.write_text(tiny.TEXT)
    kept = tmp_path / "kept"
    done = compress_model(folder, method="rtn", bits=4, out=kept, data=text, samples=2, progress=False)
    (row,) = compare_models([kept], text=text, tokens=32)
    batches = token_batches(tiny.tokenizer(), tiny.TEXT, length=32, count=8)
    assert row.perplexity == pytest.approx(perplexity(done.model, batches), rel=1e-6)
    assert row.dense_perplexity is None and "dense" not in row.quality


@pytest.mark.slow
def test_a_network_of_the_course_is_opened_to_measure(tmp_path):
    byte_lm(method="rtn", bits=8, group_size="none", out=tmp_path / "kept")
    (tmp_path / "text.txt").write_text("The grammar of a language, and what it means. " * 60)
    (row,) = compare_models([tmp_path / "kept"], text=tmp_path / "text.txt", tokens=32)
    assert 1 < row.perplexity < 256


def test_what_cannot_be_compared(tmp_path, as_user):
    with pytest.raises(ValueError, match=r"it has no run\.json"):
        compare_models([tmp_path])
    (tmp_path / ".resume").mkdir()
    with pytest.raises(ValueError, match="its run is not finished: give its command again"):
        compare_models([tmp_path])
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        compare_models([tmp_path])
    for folders in ([], "kept"):
        with pytest.raises(ValueError, match="in a list"):
            compare_models(folders)
    torch.manual_seed(0)
    mlp = tmp_path / "mlp"
    compress_model("mlp", method="rtn", bits=4, data="noise", samples=4, out=mlp, progress=False)
    (tmp_path / "text.txt").write_text("text")
    with pytest.raises(ValueError, match="holds no language model"):
        compare_models([mlp], text=tmp_path / "text.txt")
    with pytest.raises(FileNotFoundError, match="there is no text file"):
        compare_models([mlp], text=tmp_path / "none.txt")
