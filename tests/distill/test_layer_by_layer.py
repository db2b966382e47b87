import copy
import math
from itertools import islice

import pytest
import torch
from torch import nn

from mlcomp.distill import layer_by_layer
from mlcomp.models import byte_lm
from mlcomp.quant import finish_group_wise, prepare_group_wise
from mlcomp.train.loop import random_batches
from tests.quant.aware_training.test_group_wise import literal

BLOCKS = ["1", "2"]


class Block(nn.Module):
    """x + W₂ relu(W₁ x)."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 6, bias=False)

    def forward(self, x):
        return x + self.second(torch.relu(self.first(x)))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), Block(), Block(), nn.Linear(6, 3)).eval()


def batches(count=3):
    return list(torch.randn(count, 16, 5, generator=torch.Generator().manual_seed(7)))


def rounded(x, bits, size):
    """Groups of ``size`` rounded one by one, with the gradient of the identity."""
    groups = [literal(part, bits, True) for part in x.detach().reshape(-1, size).tolist()]
    value = torch.tensor(groups, dtype=x.dtype).reshape(x.shape)
    return x + (value - x).detach()


def written_out(model, data, *, inputs, targets, steps, lr, seed):
    """The algorithm for this network, with nothing of the library but the order of the batches."""
    names = ("first.weight", "first.bias", "second.weight")
    weights, errors = [], []

    def student(x, w):
        hidden = torch.relu(rounded(x, 8, 6) @ rounded(w[0], 2, 2).T + w[1])
        return x + rounded(hidden, 8, 8) @ rounded(w[2], 2, 2).T

    with torch.no_grad():
        theirs = ours = [model[0](x) for x in data]
    for k in (0, 1):
        block = model[k + 1]
        w = [block.get_parameter(name).detach().clone().requires_grad_() for name in names]
        x = theirs if inputs == "teacher" else ours
        with torch.no_grad():
            y = [block(v) for v in (theirs if targets == "teacher" else x)]
        optimizer = torch.optim.Adam(w, lr=lr)
        for step, i in enumerate(islice(random_batches(len(data), 1, seed=seed + k), steps)):
            # One step of warm-up, then a cosine that would be zero one step after the last.
            optimizer.param_groups[0]["lr"] = lr * (1 if step == 0 else (1 + math.cos(math.pi * step / steps)) / 2)
            optimizer.zero_grad()
            ((student(x[int(i)], w) - y[int(i)]) ** 2).mean().backward()
            optimizer.step()
        with torch.no_grad():
            errors.append(float(torch.stack([((student(a, w) - b) ** 2).mean() for a, b in zip(x, y)]).mean()))  # noqa: B905
            theirs, ours = [block(v) for v in theirs], [student(v, w) for v in ours]
        weights.append([v.detach() for v in w])
    return weights, errors


@pytest.mark.parametrize(
    ("inputs", "targets"), [("teacher", "teacher"), ("student", "teacher"), ("student", "student")]
)
def test_equals_the_algorithm_written_out(inputs, targets):
    model, data = network().double(), [x.double() for x in batches()]
    options = {"inputs": inputs, "targets": targets, "steps": 7, "lr": 0.02, "seed": 3}
    got = layer_by_layer(model, data, BLOCKS, weight_bits=2, group_size=2, **options)
    weights, errors = written_out(model, data, **options)
    assert [after for _, after in got.errors] == pytest.approx(errors, rel=1e-9)
    for k, (first, bias, second) in enumerate(weights, 1):
        torch.testing.assert_close(got.model[k].first.weight, rounded(first, 2, 2))
        torch.testing.assert_close(got.model[k].first.bias, bias)
        torch.testing.assert_close(got.layers[f"{k}.second"].dequantize(), rounded(second, 2, 2))


def test_no_steps_are_rounding_and_what_is_outside_stays():
    model = network()
    before = copy.deepcopy(model.state_dict())
    got = layer_by_layer(model, batches(), BLOCKS, weight_bits=3, steps=0)
    want = finish_group_wise(prepare_group_wise(model, weight_bits=3, layers=list(got.layers))).model
    x = batches()[0]
    assert torch.equal(got.model(x), want(x)) and all(a == b for a, b in got.errors)
    trained = layer_by_layer(model, batches(), ["2"], weight_bits=3, steps=2).model
    for other in (got.model, trained):
        assert torch.equal(other[0].weight, model[0].weight) and torch.equal(other[3].weight, model[3].weight)
    assert torch.equal(trained[1].first.weight, model[1].first.weight)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
def test_training_lowers_the_error_and_student_inputs_that_of_the_network():
    model, data = network(), batches(8)
    held = torch.randn(200, 5)
    options = {"weight_bits": 2, "steps": 50, "lr": 2e-3}
    paper = layer_by_layer(model, data, BLOCKS, **options)
    assert all(after < 0.6 * before for before, after in paper.errors)
    follows = layer_by_layer(model, data, BLOCKS, inputs="student", **options)
    nothing = layer_by_layer(model, data, BLOCKS, weight_bits=2, steps=0)
    with torch.no_grad():
        error = [float((r.model(held) - model(held)).square().mean()) for r in (nothing, paper, follows)]
    assert error[1] < 0.7 * error[0] and error[2] < 0.7 * error[0]


def test_a_language_model_whose_blocks_are_given_positions():
    model = byte_lm(16, pretrained=False)
    tokens = torch.randint(256, (4, 12), generator=torch.Generator().manual_seed(0))
    blocks = [f"blocks.{i}" for i in range(4)]
    got = layer_by_layer(model, list(tokens.split(2)), blocks, weight_bits=4, group_size=8, steps=2)
    assert len(got.layers) == 16 and len(got.errors) == 4
    same = layer_by_layer(model, list(tokens.split(2)), blocks, weight_bits=4, group_size=8, steps=2)
    assert all(torch.equal(q.codes, same.layers[name].codes) for name, q in got.layers.items())
    assert not any(module.training for module in got.model.modules())


class Doubling(nn.Module):
    """Two times x, written into x or not."""

    def __init__(self, inplace):
        super().__init__()
        self.inplace = inplace

    def forward(self, x):
        return x.mul_(2) if self.inplace else x * 2


def test_inputs_that_a_block_writes_into_are_copied():
    model = nn.Sequential(nn.Linear(5, 6), nn.Sequential(Doubling(True), nn.Linear(6, 6)), nn.Linear(6, 2))
    apart = copy.deepcopy(model)
    apart[1][0].inplace = False
    first, second = (layer_by_layer(net, batches(), ["1"], weight_bits=2, steps=4).errors for net in (model, apart))
    assert first == second


def test_flags_and_modes_are_kept():
    model = network().train()
    model[1].first.weight.requires_grad_(False)
    got = layer_by_layer(model, batches(), BLOCKS, weight_bits=3, steps=1).model
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in got.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in [*got.parameters(), *model.parameters()])


def test_bad_input(as_user):
    model = network()
    for blocks, told in (
        ([], "names of modules"),
        ("1", "names of modules"),
        ([""], "no block"),
        (["9"], "no block '9'"),
        (["1", "1"], "stands twice"),
        (["1", "1.first"], "holds another"),
    ):
        with pytest.raises(ValueError, match=told):
            layer_by_layer(model, batches(), blocks, weight_bits=4)
    for options, told in (
        ({"weight_bits": 1}, "weight_bits"),
        ({"inputs": "both"}, "inputs"),
        ({"targets": "labels"}, "targets"),
        ({"steps": -1}, "steps"),
        ({"lr": 0.0}, "lr"),
        ({"seed": -1}, "seed"),
        ({"group_size": 5}, "group_size"),
        ({"lr": 1e30, "steps": 3}, "lower lr|inf|NaN"),
    ):
        with pytest.raises(ValueError, match=told):
            layer_by_layer(model, batches(), BLOCKS, **{"weight_bits": 4} | options)
    with pytest.raises(ValueError, match="never called"):
        layer_by_layer(model, [], BLOCKS, weight_bits=4)
    with pytest.raises(ValueError, match="one-shot"):
        layer_by_layer(model, iter(batches()), BLOCKS, weight_bits=4)
    with pytest.raises(TypeError, match="iterable of batches"):
        layer_by_layer(model, batches()[0], BLOCKS, weight_bits=4)

    class Says(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 6)

        def forward(self, x):
            return {"y": self.linear(x)}

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Says()

        def forward(self, x):
            return self.block(x)["y"]

    with pytest.raises(ValueError, match="tensor first"):
        layer_by_layer(Net(), batches(), ["block"], weight_bits=4)
