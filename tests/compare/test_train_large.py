import copy

import pytest
import torch
from torch import nn

from mlcomp.compare import train_large
from mlcomp.layerwise import keep_zeros
from mlcomp.train import train

OPTIONS = {"lr": 1e-2, "batch_size": 8, "seed": 3}


def network(width, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def problem(n=20):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 6, generator=g)
    return x, (x @ torch.randn(6, 3, generator=g)).argmax(1)


def weights_of(net):
    return torch.cat([net[0].weight.detach().flatten(), net[2].weight.detach().flatten()])


def literal(start, x, y, steps, seed, hold=False):
    """Batches drawn one after the other from passes in random order, by hand."""
    net, g, queue = copy.deepcopy(start), torch.Generator().manual_seed(seed), []
    while len(queue) < steps * 8:
        queue += torch.randperm(len(x), generator=g).tolist()
    queue = queue[: steps * 8]
    after = keep_zeros(net) if hold else None
    train(net, x[queue], y[queue], epochs=1, lr=1e-2, batch_size=8, seed=seed, after_step=after, progress=False)
    return net


def test_equals_the_procedure_written_out():
    """Nine weights a hidden unit: 54 and 108 multiply-adds. 30 steps of the narrow one are 15 of the wide one."""
    x, y = problem()
    nets = {"narrow": network(6), "wide": network(12)}
    found = train_large(nets, x, y, budget=2 * 54 * 30, kept=[20, 54], retraining=1 / 3, **OPTIONS)
    assert [(f.name, f.weights, f.pruned, f.steps) for f in found] == [
        ("narrow", 54, False, (30, 0)),
        ("narrow", 20, True, (20, 10)),
        ("wide", 108, False, (15, 0)),
        ("wide", 20, True, (10, 5)),
        ("wide", 54, True, (10, 5)),
    ]
    assert torch.equal(weights_of(found[2].model), weights_of(literal(nets["wide"], x, y, 15, 3)))
    half = literal(nets["wide"], x, y, 10, 3)
    order = weights_of(half).abs().argsort()[:54].tolist()  # the 54 smallest of both layers
    with torch.no_grad():
        for i in order:
            layer, place = (half[0], i) if i < 72 else (half[2], i - 72)
            layer.weight.view(-1)[place] = 0
    end = literal(half, x, y, 5, 4, hold=True)
    assert torch.equal(weights_of(found[4].model), weights_of(end))
    assert int((weights_of(found[4].model) != 0).sum()) == 54


def test_nothing_is_lost_or_spent_twice():
    """The networks stay as they were, all spend the budget to within a step, and what is too wide is left out."""
    x, y = problem()
    nets = {"a": network(6), "too wide": network(600)}
    before = weights_of(nets["a"]).clone()
    found = train_large(nets, x, y, budget=2 * 54 * 9.5, kept=[30], augment=lambda t, g: t + 0.0, **OPTIONS)
    assert torch.equal(weights_of(nets["a"]), before)
    assert [f.name for f in found] == ["a", "a"]
    assert [f.steps for f in found] == [(9, 0), (7, 2)]  # 9.5, and 7.125 + 2.375


def test_the_second_part_has_a_seed_of_its_own():
    x, y = problem()
    runs = [
        train_large({"a": network(6)}, x, y, budget=2 * 54 * 20, kept=[30], retraining_seed=s, **OPTIONS)
        for s in (None, 4, 5)
    ]
    none, four, five = (weights_of(run[1].model) for run in runs)
    assert torch.equal(none, four) and not torch.equal(four, five)
    assert torch.equal(weights_of(runs[0][0].model), weights_of(runs[2][0].model))


def test_layers_that_start_at_zero_are_trained_before_pruning():
    """Only what pruning removes is held at zero: an output layer that starts at zero must learn."""
    x, y = problem()
    net = network(6)
    nn.init.zeros_(net[2].weight)
    found = train_large({"a": net}, x, y, budget=2 * 54 * 20, kept=[30], **OPTIONS)
    assert float(found[0].model[2].weight.detach().abs().min()) > 0


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"networks": {}}, "no network"),
        ({"networks": {"a": nn.ReLU()}}, "no linear or convolutional"),
        ({"budget": 0}, "budget"),
        ({"budget": 300}, "no network makes a step"),
        ({"kept": [0]}, "kept"),
        ({"retraining": 1.0}, "retraining"),
        ({"batch_size": 0}, "batch_size"),
        ({"epochs": 3}, "budget says how long"),
        ({"checkpoint": "x"}, "not taken"),
    ],
)
def test_bad_input(changed, message):
    x, y = problem()
    options = {"networks": {"a": network(6)}, "budget": 1e4, "kept": [30]} | OPTIONS | changed
    with pytest.raises((ValueError, TypeError), match=message):
        train_large(options.pop("networks"), x, y, **options)
