"""Answers on a file: those of the model, and no others."""

import json

import pytest

from mlcomp.generate import RecordedAnswers, Sampling
from tests.generate.tiny_model import MadeUp

SAMPLING = Sampling()
ASKED = {"seeds": [1, 2], "sampling": SAMPLING}


@pytest.fixture
def recorded(tmp_path):
    file = tmp_path / "answers.json"
    RecordedAnswers(file, model=MadeUp(), about={"origin": {"machine": "x"}}).generate(["a", "b"], **ASKED)
    return file


def test_the_file_answers_as_the_model_did(recorded):
    model, file = MadeUp(), RecordedAnswers(recorded)
    assert file.generate(["b", "a"], seeds=[2, 1], sampling=SAMPLING) == model.generate(["a", "b"], **ASKED)[::-1]
    assert file.identity == model.identity and len(file) == 2
    assert json.loads(recorded.read_text())["origin"] == {"machine": "x"}


def test_what_is_there_is_not_asked_again(recorded):
    model = MadeUp()
    file = RecordedAnswers(recorded, model=model)
    file.generate(["a", "b"], **ASKED)
    assert model.calls == 0
    file.generate(["a", "c"], **ASKED)
    assert model.calls == 1 and len(RecordedAnswers(recorded)) == 3
    assert json.loads(recorded.read_text())["origin"] == {"machine": "x"}


@pytest.mark.parametrize(
    "asked",
    [
        {"prompts": ["a", "c"], **ASKED},
        {"prompts": ["a", "b"], "seeds": [1, 3], "sampling": SAMPLING},
        {"prompts": ["a", "b"], "seeds": [1, 2], "sampling": Sampling(temperature=0.5)},
    ],
)
def test_other_questions_have_no_answer(recorded, asked):
    with pytest.raises(ValueError, match=r"answers\.json holds no answer to [12] of 2 prompts"):
        RecordedAnswers(recorded).generate(**asked)


def test_another_model_and_no_file(recorded, tmp_path):
    with pytest.raises(ValueError, match="another model"):
        RecordedAnswers(recorded, model=MadeUp("other"))
    with pytest.raises(ValueError, match="not there"):
        RecordedAnswers(tmp_path / "none.json")


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"identity": 3, "answers": {}}', '{"identity": "a", "answers": {"k": [1]}}']
)
def test_a_damaged_file_is_refused(recorded, text):
    recorded.write_text(text)
    with pytest.raises(ValueError, match="damaged"):
        RecordedAnswers(recorded)
