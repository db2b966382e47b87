import copy

import pytest
import torch
from torch import nn

from mlcomp.distill import hint_loss, hint_projection, train_hints
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


def test_projections():
    linear = hint_projection(drawn(5, 3), drawn(5, 7))
    assert isinstance(linear, nn.Linear) and linear(drawn(5, 3)).shape == (5, 7)
    tokens = hint_projection(drawn(5, 2, 3), drawn(5, 2, 7))
    assert tokens(drawn(5, 2, 3)).shape == (5, 2, 7)
    images = drawn(5, 3, 4, 6)
    conv = hint_projection(images, drawn(5, 7, 4, 6))
    # The same linear map at each pixel.
    each = images.permute(0, 2, 3, 1) @ conv.weight.detach()[:, :, 0, 0].T + conv.bias.detach()
    torch.testing.assert_close(conv(images).detach(), each.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)


def test_projections_are_drawn_by_the_seed_alone():
    state = torch.get_rng_state()
    first, again, other = (hint_projection(drawn(2, 3), drawn(2, 4), seed=s) for s in (0, 0, 1))
    assert torch.equal(first.weight, again.weight) and not torch.equal(first.weight, other.weight)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("features", "hint"),
    [
        ((2, 3), (2, 3, 4)),
        ((2, 3, 4, 4), (2, 3, 4, 5)),
        ((2, 5, 3), (2, 4, 3)),
        ((3, 3), (2, 3)),
        ((2,), (2,)),
        ((0, 3), (0, 3)),
    ],
)
def test_shapes_that_no_projection_matches_are_refused(features, hint, as_user):
    with pytest.raises(ValueError, match="features"):
        hint_projection(torch.zeros(features), torch.zeros(hint))


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
        seeded(fixed).double(), master, x, hints={"0": "2"}, epochs=600, lr=0.1, batch_size=60, progress=False
    )
    with torch.no_grad():
        hint = master[2](master[1](master[0](x)))
    ones = torch.cat([x, torch.ones(60, 1, dtype=x.dtype)], 1)
    best = torch.linalg.lstsq(ones, hint).solution
    learned = got.projections["0"]
    torch.testing.assert_close(learned.weight.detach(), best[:8].T, atol=1e-3, rtol=0)  # Adam's last steps
    torch.testing.assert_close(learned.bias.detach(), best[8], atol=1e-3, rtol=0)


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
