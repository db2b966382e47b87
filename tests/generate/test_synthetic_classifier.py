"""From examples to a student: stopped at any step it goes on, and what it learned is what the rows say."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mlcomp.data.written_tasks import WrittenTask, written_task
from mlcomp.generate import Reply, Sampling, Student, list_prompt, parse_numbered, rouge_l, synthetic_classifier
from mlcomp.generate.synthetic_classifier import class_prompts, head_accuracy, train_head
from mlcomp.resume import ResumeFolder
from tests.generate.tiny_model import MadeUp

TASK = WrittenTask(
    "lines",
    {"digits": "of digits", "letters": "of letters"},
    {"digits": ("1 2 3 4", "5 6 7 8"), "letters": ("a b c d", "e f g h")},
    {"digits": ("2 3 4 5", "3 4 5 2"), "letters": ("c d e f", "d e f c")},
)
GIVEN = {"prompts": 4, "shown": 1, "batch": 2, "seed": 5}
SAVED = 2 + 4 + 5  # load and prompt, the batches, and parse, vote, filter, train, evaluate


class TwoKinds(MadeUp):
    """Writes digits for one class and letters for the other; ``pause`` seconds a call."""

    pause = 0.0

    def generate(self, prompts: Sequence[str], *, seeds: Sequence[int], sampling: Sampling) -> list[Reply]:
        """Return lists of four items."""
        time.sleep(self.pause)
        replies = super().generate(prompts, seeds=seeds, sampling=sampling)
        return [in_kind(reply, "letters" in prompt) for prompt, reply in zip(prompts, replies, strict=True)]


def in_kind(reply: Reply, letters: bool) -> Reply:
    table = str.maketrans("0123456789", "ghijklmnop") if letters else str.maketrans("abcdef", "012345")
    items = [item.translate(table) for item in parse_numbered(reply)]
    return Reply(list_prompt("list", items).removeprefix("list\n1."), False)


def shares(texts: Sequence[str]) -> torch.Tensor:
    """Return how many letters and digits a text has, as a unit vector."""
    counts = [[sum(map(str.isalpha, text)), sum(map(str.isdigit, text)), 1.0] for text in texts]
    return F.normalize(torch.tensor(counts), dim=1)


def run(folder: Path, model: MadeUp | None = None, **options) -> Student:
    return synthetic_classifier(folder, TASK, model or TwoKinds(), shares, **GIVEN | options)


def same(first: Student, second: Student) -> bool:
    tensors = torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)
    return tensors and (first.rows, first.accuracy, first.counts) == (second.rows, second.accuracy, second.counts)


def test_the_student_learns_what_the_model_wrote(tmp_path):
    student = run(tmp_path)
    assert student.accuracy == 1 and {name for _, name in student.rows} == {"digits", "letters"}
    assert list(student.counts) == ["load", "prompt", "generate", "parse", "vote", "filter"]
    assert student.counts["load"] == 4 and student.counts["prompt"] == student.counts["generate"] == 8
    assert student.counts["parse"] == 32 and student.counts["filter"] == len(student.rows) <= student.counts["vote"]
    for text, name in student.rows:
        assert text.replace(" ", "").isdigit() == (name == "digits")
        assert all(rouge_l(text, example) <= 0.7 for own in TASK.examples.values() for example in own)


def test_the_same_seed_gives_the_same_data_and_another_seed_others(tmp_path):
    first = run(tmp_path / "a")
    assert same(first, run(tmp_path / "b")) and same(first, run(tmp_path / "a"))
    assert run(tmp_path / "c", seed=6).rows != first.rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("number", range(1, SAVED + 1))
@pytest.mark.parametrize("saved", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_stopped_at_any_step_it_goes_on(tmp_path, number, saved, whole, monkeypatch):
    """The n-th result of the run is the last: it is not kept any more, or the run stops just after."""
    save, count = ResumeFolder.save, []

    def stopping(*args):
        count.append(1)
        if saved or len(count) < number:
            save(*args)
        if len(count) == number:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ResumeFolder, "save", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    count.clear()
    monkeypatch.setattr(ResumeFolder, "save", lambda *args: (count.append(1), save(*args)))
    assert same(run(tmp_path), whole)
    assert len(count) == SAVED - number + (not saved)  # nothing is done twice


@pytest.mark.slow
def test_a_killed_process_is_gone_on_with(tmp_path, whole):
    code = """
        import sys
        from pathlib import Path
        from tests.generate.test_synthetic_classifier import TwoKinds, run
        TwoKinds.pause = 0.5
        print("begins", flush=True)
        run(Path(sys.argv[1]))
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], stdout=subprocess.PIPE)
    try:
        for _ in range(1200):
            if len(list(tmp_path.glob("generate-*/*.safetensors"))) >= 2 or process.poll() is not None:
                break
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert 2 <= len(list(tmp_path.glob("generate-*/*.safetensors"))) < 4 and not list(tmp_path.glob("parse-*"))
    assert same(run(tmp_path), whole)


def test_classes_take_turns_and_prompts_show_examples_of_their_own():
    task = written_task("messages")
    asked = class_prompts(task, prompts=5, shown=3, seed=0)
    assert [name for _, name in asked] == [*task.classes] * 5
    for prompt, name in asked:
        heading, *items, last = prompt.splitlines()
        assert task.heading in heading and task.classes[name] in heading and last == "4."
        assert len({*items}) == 3 and all(item.partition(" ")[2] in task.examples[name] for item in items)
    assert len({prompt for prompt, _ in asked}) > 12  # of three out of four there are 24 orders


def test_a_head_weighs_the_classes_alike_and_separates_what_can_be_separated():
    x = torch.tensor([[1.0, 0.0]] * 30 + [[0.0, 1.0]])
    y = torch.tensor([0] * 30 + [1])
    head = train_head(x, y, classes=2, seed=0)
    assert head_accuracy(head, x, y) == 1
    # By symmetry of the weighted loss its gradient at the middle is the same for both: no bias towards the many.
    middle = torch.tensor([0.5, 0.5]) @ head["weight"].T + head["bias"]
    assert middle.softmax(0).tolist() == pytest.approx([0.5, 0.5], abs=0.05)


def test_bad_input(tmp_path):
    for options, message in (({"prompts": 0}, "prompts"), ({"shown": 3}, "shown"), ({"batch": 0}, "batch")):
        with pytest.raises(ValueError, match=message):
            run(tmp_path / message, **options)

    class Silent(MadeUp):
        def generate(self, prompts, *, seeds, sampling):
            return [Reply("", True) for _ in prompts]

    with pytest.raises(ValueError, match="no text of digits, letters is left"):
        run(tmp_path / "silent", Silent())
