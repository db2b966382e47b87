import copy

import pytest
import torch
from torch import nn

from mlcomp.distill import hint_loss, train_hints
from tests.distill.nets import OPTIONS, data, seeded, student, teacher


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_half_the_mean_square():
    v, u = drawn(3, 4).double().requires_grad_(), drawn(3, 4, seed=1).double().requires_grad_()
    got = hint_loss(v, u)
    want = sum((a - b) ** 2 for a, b in zip(v.flatten().tolist(), u.flatten().tolist(), strict=True)) / 24
    assert float(got.detach()) == pytest.approx(want, rel=1e-12)
    got.backward()
    torch.testing.assert_close(v.grad, (v - u).detach() / 12)
    assert u.grad is None  # the teacher is a constant


def test_hints_alone_train_the_layers_up_to_the_guided_one():
    x, _ = data()
    start = student()
    before = copy.deepcopy(start)
    got = train_hints(start, teacher(), x, hints={"1": "2"}, **OPTIONS)
    assert torch.equal(start[0].weight, before[0].weight)
    assert not torch.equal(got.model[0].weight, start[0].weight)
    assert torch.equal(got.model[3].weight, start[3].weight)
    assert list(got.projections) == ["1"] and got.projections["1"].weight.shape == (12, 6)
    assert got.history.loss[-1] < got.history.loss[0]


def test_a_projection_of_fixed_features_reaches_least_squares():
    """The student has nothing to learn but the projection, whose optimum has a closed form."""
    x, _ = data(60)
    x = x.double()
    master = teacher().double().eval()

    def fixed():
        return nn.Sequential(nn.Identity(), nn.Linear(8, 3).requires_grad_(False))

    got = train_hints(
        seeded(fixed).double(), master, x, hints={"0": "2"}, epochs=200, lr=0.1, batch_size=60, progress=False
    )
    with torch.no_grad():
        hint = master[2](master[1](master[0](x)))
    ones = torch.cat([x, torch.ones(60, 1, dtype=x.dtype)], 1)
    best = float(0.5 * (ones @ torch.linalg.lstsq(ones, hint).solution - hint).square().mean())
    assert best - 1e-12 <= got.history.loss[-1] < 1.01 * best  # Adam comes close in 200 steps
    assert got.history.loss[0] > 3 * best


def test_several_hints_add_up():
    x, _ = data()
    deep = seeded(lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    got = train_hints(deep, teacher(), x, hints={"1": "2", "3": "0"}, **OPTIONS)
    assert list(got.projections) == ["1", "3"]
    assert not torch.equal(got.model[2].weight, deep[2].weight) and torch.equal(got.model[4].weight, deep[4].weight)


def test_bad_input_is_refused(as_user):
    x, _ = data()
    with pytest.raises(ValueError, match="hints names no layer"):
        train_hints(student(), teacher(), x, hints={}, **OPTIONS)
    with pytest.raises(ValueError, match="loss is taken"):
        train_hints(student(), teacher(), x, hints={"1": "2"}, loss=nn.functional.mse_loss, **OPTIONS)
    with pytest.raises(ValueError, match="must be"):
        hint_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="at least one feature"):
        hint_loss(torch.zeros(0, 3), torch.zeros(0, 3))
