"""The settings of a reply, and seeds that hang on an item alone."""

import pytest

from mlcomp.generate import Sampling
from mlcomp.generate.language_model import SEEDS, check_prompts, item_seed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"stop": "abc"}, "stop"),
        ({"stop": ("",)}, "stop"),
    ],
)
def test_settings_that_are_refused(options, message, as_user):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


def test_settings_are_equal_by_value():
    assert Sampling(stop=["\n"]) == Sampling(stop=("\n",)) and hash(Sampling(stop=["\n"]))


def test_seeds_of_items():
    seeds = {item_seed(seed, place) for seed in range(30) for place in range(30)}
    assert len(seeds) == 900 and all(0 <= seed < SEEDS for seed in seeds)
    assert item_seed(1, 11) != item_seed(11, 1) != item_seed(1, "1", 1)
    assert item_seed(0, 0) == 1427366890  # a stored run must find its seeds again
    with pytest.raises(ValueError, match="seed"):
        item_seed(-1, 0)


@pytest.mark.parametrize(
    ("prompts", "seeds", "message"),
    [
        ([], [], "at least one"),
        ("abc", [0, 1, 2], "at least one"),
        (["a", ""], [0, 1], "none of them empty"),
        (["a"], [], "1 prompts and 0 seeds"),
        (["a"], [-1], "seed"),
        (["a"], [2**31], "seed"),
    ],
)
def test_prompts_that_are_refused(prompts, seeds, message):
    with pytest.raises(ValueError, match=message):
        check_prompts(prompts, seeds)
