"""Self-instruct: the prompt as the authors write it, lists as models write them, and a run that nothing disturbs."""

import pytest

from mlcomp.generate import Reply, list_prompt, parse_numbered, rouge_l, self_instruct
from mlcomp.generate.self_instruct import HEADING, round_prompts
from tests.generate.tiny_model import MadeUp

SEEDS = [f"Seed task number {word} of ten" for word in "one two three four five six seven eight nine ten".split()]


def test_the_prompt_is_that_of_the_authors():
    assert list_prompt("Come up with a series of tasks:", ["Sort  the\nlist:", "Name a river."]) == (
        "Come up with a series of tasks:\n1. Sort the list\n2. Name a river.\n3."
    )


@pytest.mark.parametrize(
    ("text", "ended", "items"),
    [
        (" Name a river.\n10. Sort\nthis  list.\n11 . Sing", True, ["Name a river.", "Sort this list.", "Sing"]),
        (" Name a river.\n10. Sort\nthis  list.\n11. Sin", False, ["Name a river.", "Sort this list."]),
        (" Only one, cut he", False, []),
        ("\n9. Repeated number\n10) Round bracket", True, ["Repeated number", "Round bracket"]),
        (" In 2. place\n10. It costs 3.50 now", True, ["In 2. place", "It costs 3.50 now"]),
        ("", True, []),
        ("  \n10.  \n11. Last", True, ["Last"]),
    ],
)
def test_items_of_a_list(text, ended, items):
    assert parse_numbered(Reply(text, ended)) == items


def test_what_was_listed_is_read_again():
    items = ["Name a river", "Sort this list.", "Sing"]
    assert parse_numbered(Reply(list_prompt("h", items).removeprefix("h\n1."), False)) == items


def test_eight_tasks_are_shown_two_of_them_the_models():
    own = ["own task a", "own task b", "own task c"]
    given = {"number": 1, "prompts": 20, "human": 6, "own": 2, "seed": 0}
    for kept, count in (([], 0), (own[:1], 1), (own, 2)):
        prompts = round_prompts(SEEDS, kept, **given)
        shown = [[line.partition(" ")[2] for line in prompt.splitlines()[1:-1]] for prompt in prompts]
        assert len({*prompts}) == 20 and all(prompt.startswith(f"{HEADING}\n1. ") for prompt in prompts)
        for items in shown:
            assert len({*items}) == 8 and len({*items} & {*own}) == count
        if count == 2:  # shuffled: the model's do not always stand last
            assert len({tuple(item in own for item in items) for items in shown}) > 5


def test_a_run_that_was_stopped_gives_what_one_that_was_not_gives(tmp_path):
    given = {"seeds": SEEDS, "rounds": 3, "prompts": 2, "seed": 1}
    want = self_instruct(tmp_path / "whole", MadeUp(), **given)
    with pytest.raises(KeyboardInterrupt):
        self_instruct(tmp_path / "broken", MadeUp(fail_at=2), **given)
    again = MadeUp()
    assert self_instruct(tmp_path / "broken", again, **given) == want and again.calls == 2
    assert self_instruct(tmp_path / "other", MadeUp(), **given | {"seed": 2}) != want
    # Of a longer run the first rounds are the same.
    longer = self_instruct(tmp_path / "whole", MadeUp(), **given | {"rounds": 4})
    assert longer.kept[: len(want.kept)] == want.kept and longer.prompts == 8


def test_the_funnel_ends_at_what_is_kept(tmp_path):
    found = self_instruct(tmp_path, MadeUp(), SEEDS, rounds=2, prompts=3)
    lines = found.funnel()
    assert lines[0] == ("parsed", 2 * 3 * 4) and lines[-1] == ("not similar", len(found.kept))
    assert [count for _, count in lines] == sorted((count for _, count in lines), reverse=True)
    pool = [*SEEDS, *found.kept]
    assert all(rouge_l(a, b) <= 0.7 for i, a in enumerate(pool) for b in pool[:i] if a in found.kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds"),
        ({"rounds": 1, "prompts": 0}, "prompts"),
        ({"rounds": 1, "human": -1}, "human"),
        ({"rounds": 1, "human": 9}, "human . own = 11 tasks"),
        ({"rounds": 1, "human": 0, "own": 0}, "above 0"),
    ],
)
def test_bad_input(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        self_instruct(tmp_path / "new", MadeUp(), SEEDS, **options)
    assert not (tmp_path / "new").exists()
