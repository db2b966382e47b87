import os

import pytest
import torch
from jaxtyping import config

from tests.exercises.tables import pytest_terminal_summary  # noqa: F401  (a hook: prints the graders' tables)

# Small matrices on two cores: more threads than cores only add noise.
torch.set_num_threads(int(os.environ.get("MLCOMP_TEST_THREADS", "2")))


@pytest.fixture
def as_user():
    """Switch the shape checker off, so that a test of bad input sees the error that a user would see."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
