import os
import re
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch

import mlcomp
from mlcomp import workers
from mlcomp.cli import OPTIONS, main, split_options
from mlcomp.deploy import compress_model, open_model
from mlcomp.layerwise import load
from mlcomp.terminal import as_table, one_line

QUICK = ["--layers", "blocks.0.*", "--samples", "2", "--tokens", "64"]
BYTE_LM = ["compress", "byte_lm_16", "--method", "rtn", "--bits", "4", *QUICK]


def failing(capsys, *words) -> str:
    """Return what a command that cannot work says: one line."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    told = [line for line in err.splitlines() if line.startswith("mlcomp")]
    assert out == "" and len(told) == 1 and "Traceback" not in err
    return told[0]


@pytest.mark.slow
def test_compress_and_compare(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert main([*BYTE_LM, "--out", "kept", "--quiet", "--symmetric"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.splitlines()[-1] == "kept in kept: report.html to read"
    assert re.search(r"^perplexity [\d.]+ → [\d.]+ \(held-out text\)$", out, re.MULTILINE)
    assert len(re.findall(r"^ +[\d.e-]+  blocks\.0\.\w+$", out, re.MULTILINE)) == 4
    assert main(["compare", "kept"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["folder", "model", "method"] and row.startswith("kept    byte_lm_16  rtn bits 4")
    assert "symmetric True" in row and "perplexity" in row and "blocks.0." in row
    told = failing(capsys, *BYTE_LM, "--out", "kept")
    assert "kept is finished" in told
    same = compress_model(
        "byte_lm_16", method="rtn", bits=4, symmetric=True, layers="blocks.0.*", samples=2, tokens=64, progress=False
    )
    for key, value in load("kept", model=open_model("byte_lm_16").model).state_dict().items():
        torch.testing.assert_close(value, same.model.state_dict()[key], rtol=0, atol=0)


def test_without_a_folder_it_says_that_nothing_is_kept(capsys):
    assert main([*BYTE_LM, "--quiet"]) == 0
    assert capsys.readouterr().out.endswith("nothing was kept: that takes --out FOLDER\n")


def test_progress_is_told_on_stderr(capsys):
    assert main(BYTE_LM) == 0
    err = capsys.readouterr().err
    assert "opening byte_lm_16" in err and "2 runs of 64 tokens of the Python reference" in err
    assert "measuring the dense model" in err and "4/4" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["compress", "byte_lm_17", "--method", "rtn"], "there is no model 'byte_lm_17'; did you mean"),
        (["compress", "mlp", "--method", "rtm"], "there is no method 'rtm'; did you mean rtn"),
        (["compress", "mlp", "--method", "rtn", "--bitz", "4"], "rtn has no option 'bitz'; did you mean bits?"),
        (["compress", "mlp", "--method", "rtn", "--bits", "four"], "--bits takes INT, got 'four'"),
        (["compress", "mlp", "--method", "rtn", "--bits", "3", "--bits=4"], "--bits is given twice"),
        (["compress", "mlp", "--method", "wanda", "--pattern", "2-4"], "--pattern takes N:M|none, got '2-4'"),
        (["compress", "mlp", "--method", "rtn", "--bits", "99", "--data", "noise"], "bits must be a whole number"),
        (["compress", "mlp", "--method", "rtn", "--data", "nowhere"], "there is no file or folder nowhere"),
        (["compress", "byte_lm_16", "--method", "rtn", "--tokens", "999"], "tokens must be a whole number"),
        (["compress", "mlp", "--method", "rtn", "--format", "onnx"], None),
        (["compress", "mlp", "--method", "rtn", "--device", "cuda:99"], "there is no device 'cuda:99' here"),
        (["compress", "mlp", "--method", "rtn", "--workers", "0"], "workers must be a whole number of at least 1"),
        (["compress", "mlp", "--method", "rtn", "--workers", "9999"], "workers must be at most "),
        (["compare", "nowhere"], "nowhere holds no model"),
        (["methods", "nothing-like-it"], "no method's line holds 'nothing-like-it'"),
    ],
)
def test_what_a_user_gets_wrong_is_told_in_one_line(words, told, capsys, tmp_path, monkeypatch, as_user):
    monkeypatch.chdir(tmp_path)
    if told is None:
        words, told = [*words, "--out", "kept"], "format must be one of mlcomp, compressed-tensors"
    assert told in failing(capsys, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["compress", "--method", "rtn"], "the following arguments are required: MODEL"),
        (["compress", "mlp"], "the following arguments are required: --method"),
        (["compress", "mlp", "--method", "rtn", "--samples", "many"], "invalid int value: 'many'"),
        (["compress", "mlp", "--method", "rtn", "--workers", "all"], "invalid int value: 'all'"),
        (["compress", "mlp", "other", "--method", "rtn"], "unrecognized arguments: other"),
        (["compare"], "the following arguments are required: FOLDER"),
        (["compare", "x", "--bits", "4"], "unrecognized arguments: --bits"),
        (["squeeze"], "invalid choice: 'squeeze'"),
    ],
)
def test_usage_errors_are_one_line_too(words, told, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and told in err and len(err.splitlines()) == 1


def test_options_of_the_method_stand_anywhere():
    words = ["compress", "--bits", "4", "mlp", "--damp=-1", "--tau", "-0.5", "--no-rescale", "--method", "rtn"]
    own, options = split_options(words)
    assert own == ["compress", "mlp", "--method", "rtn"]
    assert options == {"bits": "4", "damp": "-1", "tau": "-0.5", "rescale": "no"}
    own, options = split_options(["compress", "mlp", "--group-size", "8", "--symmetric", "--out", "x", "--quiet"])
    assert own == ["compress", "mlp", "--out", "x", "--quiet"]
    assert options == {"group_size": "8", "symmetric": "yes"}


def test_methods_are_listed_and_explained(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^gptq +2\.08, 3\.11 +GPTQ: OBQ with one column order", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 100
    assert main(["methods", "GPTQ"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^--bits INT +bits per code, 1 to 8", out, re.MULTILINE) and "sparsegpt" not in out
    assert main(["methods", "1.12"]) == 0
    out = capsys.readouterr().out
    assert "blockwise" in out and "compare.scaling_law" in out and "gptq" not in out


def test_help_has_examples_and_nothing_heavy_is_imported():
    code = "import sys; from mlcomp.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'numpy', 'matplotlib', 'transformers') if m in sys.modules])"
    for words in (["--help"], ["compress", "--help"], ["compare", "--help"], ["methods", "--help"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        *text, heavy = done.stdout.splitlines()
        assert heavy == "[]"
        if "--help" in words:
            assert "  mlcomp " in "\n".join(text)
        else:
            assert text == [f"mlcomp {mlcomp.__version__}"]


def test_every_option_is_explained_and_passed_on(capsys):
    with pytest.raises(SystemExit):
        main(["compress", "--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in OPTIONS)


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 2 and "mlcomp compress smollm2" in capsys.readouterr().out


def test_a_table_is_wrapped_in_its_last_column(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    table = as_table(("a", "b"), [("x", "1"), ("yy", "word " * 20)], right=(0,))
    first, second, *rest = table.splitlines()
    assert first == " a  b" and second == " x  1" and rest[0].startswith("yy  word")
    assert len(rest) > 1 and all(len(line) <= 50 and line.startswith(" " * 4) for line in rest[1:])


def test_layers_with_the_same_problem_are_counted():
    error = ValueError("layer 'a': too small, got 3; layer 'b': tied; layer 'c': too small, got 3")
    assert one_line(error).startswith("a and 1 more: too small, got 3; b: tied (--layers")
    assert one_line(ValueError("two\n  lines")) == "two lines" and one_line(OSError()) == "OSError"


@pytest.mark.slow
def test_workers_keep_the_same_model_and_show_progress(tmp_path, capsys, monkeypatch, request):
    asked = []

    class Spied(workers.ProcessPoolExecutor):
        def map(self, function, jobs):
            asked.extend(job.name for job in jobs)
            return super().map(function, jobs)

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Spied)
    monkeypatch.setattr(workers, "_cores", lambda: 2)
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(1)  # in this process, too: it has the same bits
    words = ["compress", "byte_lm_16", "--method", "gptq", "--bits", "3", *QUICK, "--no-sequential"]
    folders = {number: tmp_path / f"by-{number}" for number in (1, 2)}
    for number, folder in folders.items():
        assert main([*words, "--workers", str(number), "--out", str(folder)]) == 0
        assert "4/4" in capsys.readouterr().err
        assert ("blocks.0.up" in asked) == (number == 2)
    one, two = (load(folder, model=open_model("byte_lm_16").model).state_dict() for folder in folders.values())
    torch.testing.assert_close(two, one, rtol=0, atol=0)
    assert {file.name for file in folders[1].iterdir()} == {file.name for file in folders[2].iterdir()}


def run(words, folder, until=None, stop=None):
    """Run the command in a group of its own; once ``until`` layers are finished, interrupt the group, or kill it."""
    code = "import sys; from mlcomp.cli import main; sys.exit(main(sys.argv[1:]))"
    # The parent's Ctrl-C handling, whatever started pytest.
    reset = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    command = [sys.executable, "-c", code, *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, **reset)
    deadline = time.monotonic() + 300
    while until is not None and len(list(folder.glob(".resume/*.safetensors"))) < until:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    if stop == signal.SIGINT:
        os.killpg(process.pid, stop)  # as a terminal does
    elif stop is not None:
        process.send_signal(stop)
    err = process.communicate(timeout=600)[1]  # at its end only when no worker holds the other end of the pipe
    return err, process.returncode


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [1, 2])
def test_stopped_killed_and_finished_by_the_same_command(tmp_path, number):
    if number > workers._cores():
        pytest.skip("needs two cores")
    folder = tmp_path / "kept"
    options = ["--bits", "3", "--steps", "3000", "--samples", "2", "--tokens", "64", "--workers", str(number)]
    words = ["compress", "byte_lm_16", "--method", "adaround", *options, "--out", str(folder)]
    err, code = run(words, folder, 2, signal.SIGINT)
    assert code == 130 and err.splitlines()[-1] == "stopped; the same command goes on from here"
    assert "Traceback" not in err
    _, code = run(words, folder, 4, signal.SIGKILL)
    assert code == -signal.SIGKILL and [p.name for p in folder.iterdir()] == [".resume"]
    _, code = run(words, folder)
    assert code == 0 and not (folder / ".resume").exists()
    whole = compress_model(
        "byte_lm_16", method="adaround", bits=3, steps=3000, samples=2, tokens=64, progress=False
    ).model
    for key, value in load(folder, model=whole).state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[key], rtol=0, atol=0)
