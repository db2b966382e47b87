import json
import math
from functools import partial

import pytest
import torch
from torch import nn

from mlcomp.deploy import compress_model, open_model
from mlcomp.deploy.chosen_layers import layer_names
from mlcomp.deploy.recipes import RECIPES
from mlcomp.layerwise import CompressionReport, compress, load
from mlcomp.quant import gptq
from tests.deploy import tiny

FIRST = ("blocks.0.*",)
byte_lm = partial(compress_model, "byte_lm_16", method="rtn", layers=FIRST, samples=2, tokens=64, progress=False)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(tiny.TEXT)
    return path


@pytest.fixture
def llama(tmp_path):
    return tiny.saved(tiny.llama(), tmp_path / "llama")


def same(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)


@pytest.mark.slow
def test_it_is_compress_on_what_was_drawn(llama, text):
    from mlcomp.deploy.calibration_inputs import draw_inputs

    done = compress_model(llama, method="gptq", bits=4, group_size=8, data=text, samples=6, seed=3, progress=False)
    opened = open_model(llama)
    inputs = draw_inputs(opened, text, None, samples=6, tokens=None, seed=3)
    names = [name for name in layer_names(opened.model) if name != "lm_head"]
    method = partial(gptq, **RECIPES["gptq"] | {"bits": 4, "group_size": 8})
    model, report = compress(
        opened.model, inputs.calibration, method, layers=names, held_out=inputs.held_out, progress=False
    )
    assert same(done.model, model) and done.report.nbytes_after == report.nbytes_after
    assert [row.error for row in done.report.rows] == [row.error for row in report.rows]
    assert done.report["lm_head"].status == "skipped: the output head, left alone unless it is named"
    assert done.folder is None and done.agreement is None
    before, after = done.perplexity
    assert 1 < before < math.inf and after != before
    assert "lm_head, the output head" in str(done) and "size, if it were kept," in str(done)


def test_a_folder_holds_the_model_and_its_report(llama, text, tmp_path):
    done = compress_model(llama, method="gptq", bits="4", group_size="8", out=tmp_path / "kept", data=text, samples=4)
    kept = {file.name for file in done.folder.iterdir()}
    assert {"model.safetensors", "mlcomp.json", "config.json", "tokenizer.json", "run.json"} <= kept
    assert {"report.csv", "report.json", "report.html", "report.svg"} <= kept
    assert not [name for name in kept if name.startswith(".")]
    assert same(load(done.folder), done.model)
    assert CompressionReport.from_json(done.folder / "report.json") == done.report
    assert done.nbytes_after == (done.folder / "model.safetensors").stat().st_size
    assert done.nbytes_before == sum(p.numel() * 4 for p in done.model.parameters())
    run = json.loads((done.folder / "run.json").read_text())
    assert run["options"].items() >= {"bits": 4, "group_size": 8}.items() and run["method"] == "gptq"
    assert tuple(run["perplexity"]) == done.perplexity


@pytest.mark.slow
def test_a_network_of_the_course_is_loaded_into_itself(tmp_path):
    done = byte_lm(bits=3, out=tmp_path / "kept")
    assert same(load(tmp_path / "kept", model=open_model("byte_lm_16").model), done.model)


@pytest.mark.slow
def test_the_rest_can_be_rounded_in_the_file(tmp_path):
    a, b = byte_lm(bits=4, out=tmp_path / "a"), byte_lm(bits=4, out=tmp_path / "b", rest_dtype="float16")
    rest = 66112 - 12 * 16 * 16 * 4  # bytes of all but the first block's matrices
    # Half of it is gone; how the file says so takes some bytes.
    assert a.nbytes_after - b.nbytes_after == pytest.approx(rest / 2, abs=500)


def test_a_model_that_agrees_is_told_to(tmp_path):
    done = compress_model("convnet", method="rtn", bits=8, data="noise", samples=16, layers=["head"], progress=False)
    assert done.perplexity is None and done.agreement.same_class == 1 and 0 < done.agreement.output_error < 1e-3
    assert [row.name for row in done.report.rows if row.status == "compressed"] == ["head"]


def test_a_module_and_batches_of_ones_own():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    before = [p.clone() for p in model.parameters()]
    batches = [torch.randn(20, 8) for _ in range(2)]
    done = compress_model(model, method="wanda", pattern="1:2", data=batches, progress=False)
    assert (done.model[0].weight == 0).sum() == 24 and done.run["options"] == {"pattern": "1:2"}
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert "(calibration)" in str(done)


@pytest.mark.slow
def test_a_module_with_a_tokenizer_reads_a_text(text):
    done = compress_model(
        tiny.llama(), tokenizer=tiny.tokenizer(), method="rtn", bits=8, data=text, samples=2, progress=False
    )
    assert done.perplexity[1] == pytest.approx(done.perplexity[0], rel=0.01)


def test_encoders_see_padded_paragraphs(text, tmp_path):
    folder = tiny.saved(tiny.bert(), tmp_path / "bert")
    done = compress_model(folder, method="gptq", bits=8, data=text, samples=4, tokens=24, progress=False)
    assert done.agreement.same_class is None and done.agreement.output_error < 0.01


def test_layers_by_patterns():
    done = byte_lm(bits=4, layers=["blocks.0.*", "blocks.3.up"])
    names = [row.name for row in done.report.rows if row.status == "compressed"]
    assert names == ["blocks.0.qkv", "blocks.0.out", "blocks.0.up", "blocks.0.down", "blocks.3.up"]
    with pytest.raises(
        ValueError, match=r"no layer of the model fits 'blocks.4.\*'; its layers are named like blocks"
    ):
        byte_lm(bits=4, layers="blocks.4.*")


def test_a_head_that_is_named_is_compressed(llama, text):
    done = compress_model(llama, method="rtn", bits=8, data=text, samples=2, layers="lm_head", progress=False)
    assert done.report["lm_head"].status == "compressed"


@pytest.mark.slow
def test_a_finished_folder_is_left_alone(tmp_path):
    byte_lm(bits=4, out=tmp_path / "kept")
    before = {file.name: file.read_bytes() for file in (tmp_path / "kept").iterdir()}
    with pytest.raises(ValueError, match=r"kept is finished: it holds byte_lm_16 by rtn bits 4, .*\. Give another"):
        byte_lm(bits=3, out=tmp_path / "kept")
    assert {file.name: file.read_bytes() for file in (tmp_path / "kept").iterdir()} == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds thesis\.txt, which is not of a run"):
        byte_lm(bits=4, out=tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        byte_lm(bits=4, out=tmp_path / "thesis.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"group_size": 7}, "group_size must divide the 16 inputs"),
        ({"clip": "max"}, "clip must be one of"),
        ({"clip": "max", "on_error": "skip"}, "no layer was compressed: layer 'blocks.0.qkv': clip must"),
        ({"format": "gguf"}, "format must be one of mlcomp, compressed-tensors"),
        ({"format": "compressed-tensors"}, "byte_lm_16 is none: use --format mlcomp"),
        ({"rest_dtype": "int8"}, "rest_dtype must be one of"),
        ({"device": "abacus"}, "there is no device 'abacus'"),
        ({"samples": 10**7}, "fewer than the 10000000 wanted"),
        ({"layers": ["nothing"]}, "no layer of the model fits"),
        ({"layers": lambda name, module: False}, "no layer is left"),
        ({"on_error": "hide"}, "on_error must be one of"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(options, told, tmp_path, as_user):
    with pytest.raises(ValueError, match=told):
        byte_lm(**{"bits": 4, "out": tmp_path / "kept", **options})
    assert not (tmp_path / "kept").exists()


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    from mlcomp.layerwise import task

    expected = byte_lm(bits=3)
    real, calls = task.call_method, []

    def counted(method, weight, hessian):
        calls.append(weight.shape)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(method, weight, hessian)

    monkeypatch.setattr(task, "call_method", counted)
    with pytest.raises(KeyboardInterrupt):
        byte_lm(bits=3, out=tmp_path / "kept")
    assert [p.name for p in (tmp_path / "kept").iterdir()] == [".resume"]
    with pytest.raises(ValueError, match="was begun with another method"):
        byte_lm(bits=4, out=tmp_path / "kept")
    done = byte_lm(bits=3, out=tmp_path / "kept")
    assert len(calls) == 3 + 4 - 2 and same(done.model, expected.model)  # two layers were there
    assert not (tmp_path / "kept" / ".resume").exists()


@pytest.mark.slow
@pytest.mark.parametrize("step", ["report.csv", "run.json", "moving", "deleting"])
def test_stopped_while_it_writes_it_writes_again(step, tmp_path, monkeypatch):
    from mlcomp.deploy import kept_folder

    expected = byte_lm(bits=3)
    with monkeypatch.context() as patch:
        if step == "report.csv":
            patch.setattr(CompressionReport, "to_csv", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        elif step == "run.json":
            patch.setattr(kept_folder, "write", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        else:
            real, moved = kept_folder.os.replace, []

            def replace(a, b):
                moved.append(str(b))
                if (step == "moving" and len(moved) > 12) or (step == "deleting" and str(b).endswith(".done")):
                    raise KeyboardInterrupt
                real(a, b)

            patch.setattr(kept_folder.os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            byte_lm(bits=3, out=tmp_path / "kept")
    assert (tmp_path / "kept" / ".resume").exists()
    done = byte_lm(bits=3, out=tmp_path / "kept")
    assert same(done.model, expected.model) and same(load(done.folder, model=done.model), done.model)
    assert not [p.name for p in done.folder.iterdir() if p.name.startswith(".")]


@pytest.mark.slow
def test_compressed_tensors_are_exported(llama, text, tmp_path):
    options = {"method": "gptq", "bits": 4, "group_size": 8, "symmetric": True, "data": text, "samples": 2}
    done = compress_model(llama, out=tmp_path / "kept", format="compressed-tensors", progress=False, **options)
    config = json.loads((done.folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert (done.folder / "report.html").exists() and (done.folder / "tokenizer.json").exists()


@pytest.mark.slow
def test_what_a_format_does_not_take_is_kept_for_another(llama, text, tmp_path):
    options = {"method": "blockwise", "bits": 4, "data": text, "samples": 2, "out": tmp_path / "kept"}
    with pytest.raises(ValueError, match=r"The compressed layers lie in .*\.resume: the same command with another"):
        compress_model(llama, format="compressed-tensors", progress=False, **options)
    done = compress_model(llama, progress=False, **options)
    assert same(load(done.folder), done.model)


def test_bytes_of_a_shared_weight_count_once():
    from mlcomp.deploy.compress_model import dense_nbytes

    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    model[1].weight = model[0].weight
    assert dense_nbytes(model) == 64 + 4 * 16 + 8
