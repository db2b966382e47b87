import copy

import pytest
import torch
from torch import nn

from mlcomp.prune import cubic_schedule, gradual_pruning, layer_normalized, layer_weights, network_sparsity
from mlcomp.train import train


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


def problem(n=64):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 8, generator=g)
    return x, (x @ torch.randn(8, 3, generator=g)).argmax(1)


OPTIONS = {"epochs": 5, "lr": 1e-2, "batch_size": 16, "progress": False}  # 20 steps


def test_equals_the_loop_written_out():
    """The same run with a callback of the test's own: thresholds by sorting, the schedule by its formula."""
    x, y = problem()
    literal = network()
    weights = [literal[0].weight, literal[3].weight]
    gone = torch.zeros(176, dtype=torch.bool)

    def after(step):
        nonlocal gone
        with torch.no_grad():
            flat = torch.cat([w.flatten() for w in weights])
            flat[gone] = 0
            if step in (4, 7, 10, 13, 15):  # begin 0.2, end 0.75 of 20 steps, every 3
                share = 0.8 - 0.8 * (1 - (step - 4) / 11) ** 3
                gone = torch.zeros(176, dtype=torch.bool)
                gone[flat.abs().argsort(stable=True)[: int(share * 176 + 0.5)]] = True
                flat[gone] = 0
            weights[0].copy_(flat[:128].view(16, 8))
            weights[1].copy_(flat[128:].view(3, 16))

    train(literal, x, y, after_step=after, **OPTIONS)
    made = gradual_pruning(network(), x, y, sparsity=0.8, begin=0.2, end=0.75, every=3, **OPTIONS)
    assert list(made.sparsity) == [4, 7, 10, 13, 15]
    for a, b in zip(made.model.parameters(), literal.parameters(), strict=True):
        assert torch.equal(a, b)
    assert network_sparsity(made.model) == 141 / 176  # 0.8·176 = 140.8, rounded
    assert len(made.history.loss) == 5


def test_sparsity_rises_as_planned_and_nothing_returns():
    x, y = problem()
    seen = []

    def spying(weights, *, sparsity):
        before = {n: w == 0 for n, w in weights.items()}
        pruned = layer_normalized(weights, sparsity=sparsity)
        assert all((pruned[n] == 0)[before[n]].all() for n in weights)
        seen.append(sum(int((p == 0).sum()) for p in pruned.values()) / 176)
        return pruned

    made = gradual_pruning(network(), x, y, sparsity=0.9, every=2, pruner=spying, **OPTIONS)
    assert seen == pytest.approx(list(made.sparsity.values()), abs=0.5 / 176 + 1e-12)  # whole weights
    assert list(made.sparsity.values()) == sorted(made.sparsity.values())
    assert made.sparsity[15] == 0.9 and made.sparsity[5] == cubic_schedule(4, steps=14, final=0.9)


def test_the_argument_and_its_state_are_left_alone():
    x, y = problem()
    model = network().eval()
    state, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    made = gradual_pruning(model, x, y, sparsity=0.5, layers=["0"], **OPTIONS)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert list(made.model.state_dict()) == list(state)  # no mask is left behind
    assert not made.model.training and torch.equal(torch.get_rng_state(), rng)
    assert network_sparsity(made.model, ["0"]) == 0.5 and made.model[3].weight.all()


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path):
    x, y = problem()
    options = OPTIONS | {"sparsity": 0.8, "every": 3}
    whole = gradual_pruning(network(), x, y, **options)
    calls = 0

    def dies(batch, generator):
        nonlocal calls
        calls += 1
        if calls == 12:  # in the third epoch
            raise KeyboardInterrupt
        return batch

    options |= {"checkpoint": tmp_path / "c.pt", "augment": dies}
    with pytest.raises(KeyboardInterrupt):
        gradual_pruning(network(), x, y, **options)
    resumed = gradual_pruning(network(), x, y, **options)
    assert resumed.history == whole.history
    assert all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True))


@pytest.mark.parametrize(("begin", "end", "every"), [(0.0, 1.0, 1000), (0.0, 0.01, 1), (0.99, 1.0, 1), (0.3, 1.0, 7)])
def test_the_target_is_met_at_the_ends_of_the_options(begin, end, every):
    x, y = problem()
    made = gradual_pruning(network(), x, y, sparsity=0.75, begin=begin, end=end, every=every, **OPTIONS)
    assert network_sparsity(made.model) == 0.75


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_nothing_and_everything(sparsity):
    x, y = problem()
    made = gradual_pruning(network(), x, y, sparsity=sparsity, **OPTIONS)
    assert network_sparsity(made.model) == sparsity
    if sparsity == 0:
        dense = network()
        train(dense, x, y, **OPTIONS)
        assert all(torch.equal(a, b) for a, b in zip(made.model.parameters(), dense.parameters(), strict=True))
    assert all(bool(w.any()) == (sparsity == 0) for w in layer_weights(made.model).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsity": 1.2}, "sparsity is the share"),
        ({"begin": 0.8}, "begin < end"),
        ({"end": 1.1}, "begin < end"),
        ({"begin": -0.1}, "begin < end"),
        ({"every": 0}, "every must be"),
        ({"every": 2.5}, "every must be"),
        ({"layers": ["nope"]}, "no layer 'nope'"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": -1.0}, "lr"),
    ],
)
def test_bad_input(as_user, change, message):
    x, y = problem()
    with pytest.raises(ValueError, match=message):
        gradual_pruning(network(), x, y, **{"sparsity": 0.5, **OPTIONS} | change)
