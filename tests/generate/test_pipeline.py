"""Steps that are done once: found again, kept under other settings, refused where damaged, resumed where stopped."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors import safe_open

from mlcomp.generate import Pipeline, Reply, Sampling
from mlcomp.generate.language_model import item_seed
from tests.generate.tiny_model import MadeUp

SAMPLING = Sampling(max_tokens=5)
PROMPTS = [f"prompt {n}" for n in range(7)]


def double(numbers, *, times=2):
    return [times * number for number in numbers]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pieces(folder):
    """Return what the pieces say, hash and all: the order of these entries in a file is not fixed."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found[path.relative_to(folder)] = file.metadata()
    return found


def test_a_step_is_done_once(tmp_path):
    first, second = Pipeline(tmp_path), Pipeline(tmp_path)
    assert first.step("double", double, [1, 2]) == second.step("double", double, [1, 2]) == [2, 4]
    assert (first.made, second.made) == ({"double": 1}, {"double": 0})
    assert second.counts == {"double": 2} and second.funnel() == "double      2"


def test_what_comes_back_is_what_json_holds_whether_or_not_it_was_there(tmp_path):
    for _ in range(2):
        assert Pipeline(tmp_path).step("pairs", lambda: [("a", 1), ("b", 2)]) == [["a", 1], ["b", 2]]
        tensors = Pipeline(tmp_path).step("head", lambda: {"w": torch.arange(3.0), "b": torch.tensor(1.5)})
        assert tensors["w"].tolist() == [0, 1, 2] and tensors["b"] == 1.5


@pytest.mark.parametrize("other", [{"numbers": [1, 3]}, {"times": 3}, {"function": lambda numbers, *, times=2: [7]}])
def test_other_settings_leave_the_old_result_and_find_it_again(tmp_path, other, caplog):
    def run(numbers=(1, 2), times=2, function=double):
        pipeline = Pipeline(tmp_path)
        return pipeline.step("double", function, list(numbers), times=times), pipeline.made["double"]

    assert run() == ([2, 4], 1)
    before = contents(tmp_path)
    with caplog.at_level("INFO"):
        changed, made = run(**other)
    assert changed != [2, 4] and made == 1 and "has other settings or inputs" in caplog.text
    assert before.items() <= contents(tmp_path).items()
    assert run() == ([2, 4], 0) and run(**other) == (changed, 0)


@pytest.mark.parametrize(
    "other",
    [
        {"model": MadeUp("another")},
        {"prompts": PROMPTS[1:]},
        {"seed": 4},
        {"sampling": Sampling(max_tokens=6)},
        {"batch": 2},
    ],
)
def test_replies_hang_on_everything_that_was_given(tmp_path, other):
    given = {"model": MadeUp(), "prompts": PROMPTS, "seed": 3, "sampling": SAMPLING, "batch": 3}
    pipelines = [Pipeline(tmp_path) for _ in range(3)]
    for pipeline, asked in zip(pipelines, (given, given | other, given), strict=True):
        pipeline.generate("generate", **asked)
    assert pipelines[1].made["generate"] > 0 == pipelines[2].made["generate"]


def test_each_prompt_is_asked_with_its_own_seed(tmp_path):
    replies = Pipeline(tmp_path).generate("g", MadeUp(), PROMPTS, seed=3, sampling=SAMPLING, batch=3)
    seeds = [item_seed(3, n) for n in range(7)]
    assert replies == MadeUp().generate(PROMPTS, seeds=seeds, sampling=SAMPLING)
    assert all(isinstance(reply, Reply) for reply in replies)


@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_a_run_that_stopped_goes_on_after_its_last_whole_batch(tmp_path, fail_at):
    asked = {"prompts": PROMPTS, "seed": 3, "sampling": SAMPLING, "batch": 3}
    want = Pipeline(tmp_path / "whole").generate("g", MadeUp(), **asked)
    with pytest.raises(KeyboardInterrupt):
        Pipeline(tmp_path / "broken").generate("g", MadeUp(fail_at=fail_at), **asked)
    again = MadeUp()
    assert Pipeline(tmp_path / "broken").generate("g", again, **asked) == want
    assert again.calls == 3 - (fail_at - 1)
    assert contents(tmp_path / "broken").keys() == contents(tmp_path / "whole").keys()


def test_a_damaged_folder_is_refused_and_a_damaged_result_made_again(tmp_path):
    Pipeline(tmp_path).step("double", double, [1, 2])
    (folder,) = tmp_path.iterdir()
    piece = folder / "result.safetensors"
    data = bytearray(piece.read_bytes())
    data[data.index(b"[2, 4]") + 1] = ord("9")
    piece.write_bytes(data)
    again = Pipeline(tmp_path)
    assert again.step("double", double, [1, 2]) == [2, 4] and again.made["double"] == 1

    manifest = folder / "manifest.json"
    whole = manifest.read_text()
    for text in ("", whole[:20], json.dumps(json.loads(whole) | {"inputs": "0"})):
        manifest.write_text(text)
        with pytest.raises(ValueError, match=r"damaged|begun with another inputs"):
            Pipeline(tmp_path).step("double", double, [1, 2])
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt.*no manifest\.json"):
        Pipeline(tmp_path).step("double", double, [1, 2])
    assert (folder / "notes.txt").read_text() == "mine"


def test_names_and_results_that_are_refused(tmp_path):
    pipeline = Pipeline(tmp_path)
    for name in ("", "Load", "a/b", "../a", "1st", "a" * 41):
        with pytest.raises(ValueError, match="a step's name"):
            pipeline.step(name, double, [1])
    pipeline.step("double", double, [1])
    with pytest.raises(ValueError, match="already"):
        pipeline.step("double", double, [2])
    with pytest.raises(TypeError):
        pipeline.step("set", lambda: {1, 2})
    with pytest.raises(ValueError, match="batch"):
        pipeline.generate("g", MadeUp(), PROMPTS, seed=0, sampling=SAMPLING, batch=0)
    with pytest.raises(ValueError, match="at least one string"):
        pipeline.generate("g", MadeUp(), [], seed=0, sampling=SAMPLING)
    assert [path.name.partition("-")[0] for path in sorted(tmp_path.iterdir())] == ["double", "set"]


def test_replies_do_not_depend_on_the_map_and_one_goes_on_where_another_stopped(tmp_path):
    def generate(folder, map):
        pipeline = Pipeline(folder)
        replies = pipeline.generate("ask", MadeUp(), PROMPTS, seed=3, sampling=SAMPLING, batch=2, map=map)
        return replies, pipeline.made["ask"]

    def two_batches(function, items):
        for item in items[:2]:
            yield function(item)

    here, _ = generate(tmp_path / "here", map)
    with pytest.raises(RuntimeError, match="map ended before 'from_000004'"):
        generate(tmp_path / "there", two_batches)
    with ThreadPoolExecutor(2) as threads:
        assert generate(tmp_path / "there", threads.map) == (here, 2)
    assert pieces(tmp_path / "there") == pieces(tmp_path / "here")
    with pytest.raises(TypeError, match="map"):
        generate(tmp_path / "nowhere", 3)
    assert not (tmp_path / "nowhere").exists()
