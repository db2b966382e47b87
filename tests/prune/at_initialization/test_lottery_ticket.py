import copy

import pytest
import torch
from torch import nn

from mlcomp.layerwise import keep_zeros
from mlcomp.prune import layer_weights, lottery_tickets, shuffled_zeros
from mlcomp.train import train


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def problem(n=64):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 8, generator=g)
    return x, (x @ torch.randn(8, 3, generator=g)).argmax(1)


OPTIONS = {"epochs": 3, "lr": 1e-2, "batch_size": 16, "progress": False}  # 12 steps


def states_equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("rewind", [0, 5])
def test_equals_the_procedure_written_out(rewind):
    """Two rounds at 50 % (25 % at the output) by sorting, the start taken from a callback of the test's own."""
    x, y = problem()
    model = network()
    start = copy.deepcopy(model)
    dense, seen = copy.deepcopy(model), {}

    def note(step):
        seen[step] = copy.deepcopy(dense.state_dict())

    train(dense, x, y, after_step=note, **OPTIONS)
    if rewind:
        start.load_state_dict(seen[rewind])
    trained = dense
    nets = [(copy.deepcopy(start), dense)]
    for _ in range(2):
        net = copy.deepcopy(start)
        for index, rate in ((0, 0.5), (2, 0.25)):
            old, new = nets[-1][0][index].weight.detach(), trained[index].weight.detach()
            alive = (old != 0).flatten().nonzero()[:, 0].tolist()
            alive.sort(key=lambda i, new=new: abs(float(new.view(-1)[i])))
            gone = alive[: int(rate * len(alive) + 0.5)]
            with torch.no_grad():
                net[index].weight.copy_(old)
                net[index].weight.view(-1)[gone] = 0
        trained = copy.deepcopy(net)
        train(trained, x, y, after_step=keep_zeros(trained), **OPTIONS)
        nets.append((net, trained))
    found = lottery_tickets(model, x, y, rounds=2, rate=0.5, rewind=rewind, **OPTIONS)
    assert len(found) == 3 and states_equal(model, network())
    for ticket, (net, after) in zip(found, nets, strict=True):
        assert states_equal(ticket.start, net) and states_equal(ticket.trained, after)
    # 128 → 64 → 32 weights, and 48 → 36 → 27.
    assert [t.sparsity for t in found] == pytest.approx([0, 1 - 100 / 176, 1 - 59 / 176])
    for ticket in found:
        for a, b in zip(layer_weights(ticket.start).values(), layer_weights(ticket.trained).values(), strict=True):
            assert torch.equal(a == 0, b == 0)


def test_shuffled_zeros_keep_the_counts_and_the_other_weights():
    weights = layer_weights(network())
    like = {"0": torch.zeros(16, 8), "2": weights["2"].clone()}
    like["0"][:3] = 1
    shuffled = shuffled_zeros(weights, like, seed=1)
    assert int((shuffled["0"] == 0).sum()) == 13 * 8 and torch.equal(shuffled["2"], weights["2"])
    assert torch.equal(shuffled["0"][shuffled["0"] != 0], weights["0"][shuffled["0"] != 0])
    assert not torch.equal(shuffled["0"] != 0, like["0"] != 0)
    with pytest.raises(ValueError, match="same names and shapes"):
        shuffled_zeros(weights, {"0": like["0"]})


@pytest.mark.parametrize(
    "options, match",
    [
        ({"rounds": 0}, "rounds"),
        ({"rate": 1.0}, "rate"),
        ({"output_rate": 0.0}, "output_rate"),
        ({"rewind": 13}, "beyond the last step"),
        ({"after_step": print}, "after_step is not taken"),
    ],
)
def test_bad_options_are_refused(options, match):
    x, y = problem()
    with pytest.raises(ValueError, match=match):
        lottery_tickets(network(), x, y, **{"rounds": 1, **OPTIONS, **options})
