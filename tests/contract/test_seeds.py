"""Every test starts from one state of the global generators, which MLCOMP_TEST_SEED moves."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests import conftest
from tests.examples import examples


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002  (the global generators)


@pytest.fixture(scope="module")
def seen():
    return []


@pytest.mark.parametrize("run", [1, 2])
def test_what_one_test_draws_does_not_move_the_next(seen, run):
    seen.append(draw())
    assert seen[-1] == seen[0]
    here = (
        random.Random(conftest.SEED).random(),
        float(np.random.RandomState(conftest.SEED).rand()),
        float(torch.rand((), generator=torch.Generator().manual_seed(conftest.SEED))),
    )
    assert seen[-1] == here


@pytest.mark.slow
def test_the_variables_move_the_seed_and_the_number_of_examples():
    code = "from tests.conftest import SEED; from tests.examples import examples as of\n"
    code += "print(SEED, of(8).max_examples, of(25).max_examples)"
    env = os.environ | {"MLCOMP_TEST_SEED": "7", "MLCOMP_EXAMPLES": "search"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["7", "80", "250"]


def test_a_property_keeps_what_the_profile_says_of_time():
    assert examples(8).deadline is None and examples(8).print_blob
