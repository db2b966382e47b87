import os

import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import config

from tests.exercises.tables import pytest_terminal_summary  # noqa: F401  (a hook: prints the graders' tables)

# A busy machine is not a wrong result: no deadlines. In CI the examples are the same at each run, so that a red run
# can be repeated; a developer's runs keep looking for new ones.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("developer", patient)
settings.register_profile("ci", patient, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "developer")

# Small matrices on two cores: more threads than cores only add noise.
torch.set_num_threads(int(os.environ.get("MLCOMP_TEST_THREADS", "2")))


@pytest.fixture
def as_user():
    """Switch the shape checker off, so that a test of bad input sees the error that a user would see."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
