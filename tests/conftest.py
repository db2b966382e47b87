import os
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import config

from mlcomp.kernels import interpret_without_gpu
from tests.exercises.tables import pytest_terminal_summary  # noqa: F401  (a hook: prints the graders' tables)

# A busy machine is not a wrong result: no deadlines. "ci" has the same examples at each run, so that a red run can be
# repeated; "developer" keeps looking for new ones; "quick", of `make check`, looks less long, and "search", of the
# weekly run, ten times as long.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("developer", patient)
settings.register_profile("ci", patient, derandomize=True, database=None)
settings.register_profile("quick", patient, max_examples=20)
settings.register_profile("search", patient, max_examples=1000)
settings.load_profile(os.environ.get("MLCOMP_EXAMPLES") or ("ci" if os.environ.get("CI") else "developer"))

# Small matrices on two cores: more threads than cores only add noise.
torch.set_num_threads(int(os.environ.get("MLCOMP_TEST_THREADS", "2")))

# Before any test module can import Triton, which decides at that moment whether it interprets.
interpret_without_gpu()

# Moves every seed of the global generators: a test that needs luck falls for some of them (the weekly run tries).
SEED = int(os.environ.get("MLCOMP_TEST_SEED", "0"))


@pytest.fixture(autouse=True)
def seeded():
    """Start every test from the same state of the global generators, whatever ran before it."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002  (the global generator is what is meant)
    torch.manual_seed(SEED)


@pytest.fixture
def as_user():
    """Switch the shape checker off, so that a test of bad input sees the error that a user would see."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
