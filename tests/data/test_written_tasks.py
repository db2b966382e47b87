"""What was written by hand: balanced, and nothing in it twice."""

import pytest

from mlcomp.data.written_tasks import TASKS, seed_tasks, written_task
from mlcomp.generate import rouge_l


@pytest.mark.parametrize("name", TASKS)
def test_the_written_tasks_are_balanced_and_hold_nothing_twice(name):
    task = written_task(name)
    texts, labels = task.texts_and_labels("held_out")
    examples, _ = task.texts_and_labels("examples")
    assert len(texts) == len({*texts}) == 80 and len({labels.count(c) for c in range(len(task.classes))}) == 1
    assert max(rouge_l(text, other) for text in texts for other in examples) <= 0.7
    assert max(rouge_l(text, other) for i, text in enumerate(texts) for other in texts[:i]) <= 0.75
    assert all(text.isascii() and text == " ".join(text.split()) for text in (*texts, *examples))
    with pytest.raises(ValueError, match="part"):
        task.texts_and_labels("train")


def test_seed_tasks_differ_by_the_filters_own_measure():
    seeds = seed_tasks()
    assert len(seeds) == 24 and all(len(seed.split()) >= 4 for seed in seeds)
    assert max(rouge_l(seed, other) for i, seed in enumerate(seeds) for other in seeds[:i]) <= 0.7


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="name"):
        written_task("other")
