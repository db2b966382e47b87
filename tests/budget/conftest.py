import pytest

from mlcomp.layerwise import collect_hessians
from tests.budget.database_case import LEVELS, batches, build, net


@pytest.fixture(scope="session")
def made():
    """Return a small network, its Hessians and its level database; not to be modified."""
    model = net()
    hessians = collect_hessians(model, batches())
    return model, hessians, build(model, hessians, LEVELS)
