"""What SmolLM2 answered once gives the committed funnels again: prompts, seeds and filters are those of that run."""

import pytest

from mlcomp.data.committed_table import TABLES, committed_table
from mlcomp.data.written_tasks import seed_tasks, written_task
from mlcomp.generate import RecordedAnswers, self_instruct
from mlcomp.generate.language_model import item_seed
from mlcomp.generate.synthetic_classifier import (
    SAMPLING,
    class_prompts,
    keep_new,
    load_examples,
    parse_all,
    vote_all,
)

ANSWERS = TABLES / "synthetic_answers.json"


def counts(part, seed=0):
    rows = [row for row in committed_table("synthetic_data") if (row["part"], row["seed"]) == (part, str(seed))]
    return {row["method"]: int(row["texts"]) for row in rows}


def test_self_instruct(tmp_path):
    found = self_instruct(tmp_path, RecordedAnswers(ANSWERS), seed_tasks(), rounds=4)
    assert {"prompts": found.prompts, **dict(found.funnel())} == counts("self_instruct")


@pytest.mark.parametrize(("name", "prompts"), [("messages", 8), ("reviews", 16)])
@pytest.mark.parametrize("seed", [0, 1])
def test_texts_of_each_class(name, prompts, seed):
    task = written_task(name)
    asked = class_prompts(task, prompts=prompts, shown=3, seed=seed)
    texts, seeds = [prompt for prompt, _ in asked], [item_seed(seed, number) for number in range(len(asked))]
    replies = RecordedAnswers(ANSWERS).generate(texts, seeds=seeds, sampling=SAMPLING)
    parsed = parse_all([[r.text, r.ended, own] for r, (_, own) in zip(replies, asked, strict=True)])
    voted = vote_all(parsed)
    kept = keep_new(voted, load_examples(task))
    want = counts(name, seed)
    assert [want[f"funnel: {step}"] for step in ("parse", "vote", "filter")] == [len(parsed), len(voted), len(kept)]
    assert len(kept) == want["synthetic"]
