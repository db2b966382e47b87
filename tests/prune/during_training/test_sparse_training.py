import copy

import pytest
import torch
from torch.nn import functional as F

from mlcomp.prune import rigl, sparse_evolution
from tests.prune.during_training.sparse_nets import OPTIONS, network, problem, states_equal


@pytest.mark.parametrize("method", [rigl, sparse_evolution])
def test_killed_and_resumed_run_equals_an_unbroken_one(tmp_path, method):
    x, y = problem()
    whole = method(network(), x, y, every=3, **OPTIONS)
    calls = 0

    def loss(outputs, labels):
        nonlocal calls
        calls += 1
        if calls == 11:
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, labels)

    options = OPTIONS | {"loss": loss, "checkpoint": tmp_path / "c.pt"}
    with pytest.raises(KeyboardInterrupt):
        method(network(), x, y, every=3, **options)
    resumed = method(network(), x, y, every=3, **options)
    assert states_equal(whole.model, resumed.model) and whole.history == resumed.history
    assert set(resumed.model.state_dict()) == set(network().state_dict())


def test_model_stays_and_bad_options_are_refused():
    x, y = problem()
    start = network()
    before = copy.deepcopy(start.state_dict())
    rigl(start, x, y, every=3, **OPTIONS)
    assert all(torch.equal(v, before[k]) for k, v in start.state_dict().items())
    for method, options, match in [
        (rigl, {"fraction": 1.5}, "fraction"),
        (rigl, {"end": -0.1}, "end"),
        (rigl, {"every": 0}, "every"),
        (rigl, {"after_step": print}, "after_step is taken"),
        (sparse_evolution, {"fraction": float("nan")}, "fraction"),
        (sparse_evolution, {"every": 0}, "every"),
        (sparse_evolution, {"before_step": print}, "before_step is taken"),
    ]:
        with pytest.raises(ValueError, match=match):
            method(start, x, y, **OPTIONS | options)
