import copy

import pytest
import torch
from torch import nn

from mlcomp.quant import GroupWiseLayer, TokenWiseLayer, binarize, finish_group_wise, fit_grid, prepare_group_wise

X = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4, bias=False)).eval()


def literal(values, bits, symmetric):
    """One group, number by number: the step is the range over 2^b − 1, the code of zero lies on the grid."""
    low, high = min(*values, 0.0), max(*values, 0.0)
    if symmetric:
        high = max(high, -low)
        low = -high
    step = (high - low) / (2**bits - 1) or 1.0
    zero = 2 ** (bits - 1) if symmetric else round(-low / step)
    return [step * (min(max(round(v / step) + zero, 0), 2**bits - 1) - zero) for v in values]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "size"), [(2, 2), (3, 4), (4, 8)])
def test_weights_are_rounded_group_by_group_and_inputs_token_by_token(bits, size, symmetric):
    dense = nn.Sequential(nn.Linear(8, 6)).double()
    model = prepare_group_wise(dense, weight_bits=bits, group_size=size, input_bits=4, symmetric=symmetric)
    rows = dense[0].weight.tolist()
    want = [[v for i in range(0, 8, size) for v in literal(row[i : i + size], bits, symmetric)] for row in rows]
    torch.testing.assert_close(model[0].weight, torch.tensor(want, dtype=torch.float64))
    rounded = torch.tensor([literal(x, 4, True) for x in X.tolist()], dtype=torch.float64)
    y = rounded @ torch.tensor(want, dtype=torch.float64).T + dense[0].bias
    torch.testing.assert_close(model(X.double()), y)
    torch.testing.assert_close(model(X.double().reshape(4, 5, 8)), y.reshape(4, 5, 6))  # a grid for each vector


def test_gradients_pass_straight_through_both():
    layer = prepare_group_wise(nn.Sequential(nn.Linear(8, 6)), weight_bits=2, group_size=4, input_bits=3)[0]
    x, g = X.clone().requires_grad_(), torch.randn(20, 6)
    layer(x).backward(g)
    rounded = fit_grid(X, bits=3, symmetric=True).round(X)
    torch.testing.assert_close(layer.layer.weight.grad, g.T @ rounded)
    torch.testing.assert_close(x.grad, g @ layer.weight.detach())


def test_the_grids_follow_the_weight_while_it_is_trained():
    layer = prepare_group_wise(nn.Sequential(nn.Linear(8, 6)), weight_bits=4)[0]
    before = layer.quantized.step
    with torch.no_grad():
        layer.layer.weight *= 2
    torch.testing.assert_close(layer.quantized.step, 2 * before)


def public(values, bits, *, symmetric):
    """The rule of the public code: 2^b parts of the range, no step of its own for groups without one."""
    if symmetric:
        scale = 2 * values.abs().max() / 2**bits
        return (values / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale
    scale = (values.max() - values.min()) / 2**bits
    zero = (values.min() / scale).round() * scale
    return ((values - zero) / scale).round().clamp(0, 2**bits - 1) * scale + zero


def ours(values, bits, *, symmetric):
    layer = nn.Linear(len(values), 1, bias=False)
    layer.weight.data = values[None].clone()
    model = prepare_group_wise(nn.Sequential(layer), weight_bits=bits, symmetric=symmetric)
    return model[0].weight.detach()[0], float(model[0].quantized.step)


@pytest.mark.parametrize("symmetric", [True, False])
def test_where_the_public_rule_is_off_by_a_step_ours_is_within_half_of_one(symmetric):
    """Fault 1, the positive maximum is clipped, and fault 2, 2^b parts for 2^b − 1 steps."""
    values = torch.tensor([-0.5, 0.2, 1.0])
    got, step = ours(values, 2, symmetric=symmetric)
    assert float((got - values).abs().max()) <= step / 2 + 1e-6
    theirs = public(values, 2, symmetric=symmetric)
    scale = (2.0 if symmetric else 1.5) / 4
    assert float(theirs[2]) == pytest.approx(1.0 - scale, abs=1e-6 if symmetric else scale / 2 + 1e-6)
    assert float((theirs - values).abs().max()) > scale / 2 + 1e-6
    # The other way round: the largest magnitude is negative, and the public symmetric rule has a code for it.
    if symmetric:
        assert float(public(-values, 2, symmetric=True)[2]) == -1.0
        assert float(ours(-values, 2, symmetric=True)[0][2]) == pytest.approx(-4 / 3)  # half a step outside


@pytest.mark.parametrize("value", [0.0, 0.7, -0.7])
def test_where_the_public_rule_gives_nan_a_constant_group_is_kept(value):
    """Fault 3: the asymmetric step of a constant group is zero, the symmetric one of a group of zeros, too."""
    values = torch.full((4,), value)
    assert public(values, 4, symmetric=False).isnan().all()
    torch.testing.assert_close(ours(values, 4, symmetric=False)[0], values)
    if value == 0:
        assert public(values, 4, symmetric=True).isnan().all()
        assert torch.equal(ours(values, 4, symmetric=True)[0], values)
    # A token of zeros, a padding's say, is a group of zeros as well.
    model = prepare_group_wise(network(), weight_bits=4)
    assert bool(torch.isfinite(model(torch.zeros(2, 8))).all())


def test_where_the_public_sign_gives_three_values_ours_gives_two():
    """Fault 4: one bit has no code for zero."""
    values = torch.tensor([-2.0, 0.0, 3.0])
    assert torch.sign(values).tolist() == [-1, 0, 1]
    assert binarize(values).tolist() == [-1, 1, 1]


def test_finished_it_computes_the_same_from_codes():
    dense = network()
    before = copy.deepcopy(dense.state_dict())
    model = prepare_group_wise(dense, weight_bits=3, group_size=2, overrides={"2": 5}).train()
    finished = finish_group_wise(model)
    assert torch.equal(finished.model(X), model.eval()(X))
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())
    assert [type(finished.model[i]) for i in (0, 2)] == [TokenWiseLayer] * 2
    assert isinstance(model[0], GroupWiseLayer) and not finished.model.training
    assert {n: q.bits for n, q in finished.layers.items()} == {"0": 3, "2": 5}
    assert torch.equal(finished.layers["0"].dequantize(), finished.model[0].weight)
    assert finished.layers["0"].bits_per_weight == 3 + 32 / 2  # a symmetric grid stores its steps alone
    plain = finish_group_wise(prepare_group_wise(dense, weight_bits=3, input_bits=None)).model
    assert [type(plain[i]) for i in (0, 2)] == [nn.Linear] * 2


def test_projections_of_attention_and_named_layers():
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    model = prepare_group_wise(nn.Sequential(attention), weight_bits=8, layers=["0.q_proj", "0.out_proj"])
    assert {n for n, m in model.named_modules() if isinstance(m, GroupWiseLayer)} == {"0.q_proj", "0.out_proj"}
    x = X.reshape(2, 10, 8)
    # Eight bits: close to the original, not equal to it.
    torch.testing.assert_close(model[0](x, x, x)[0], attention(x, x, x)[0], atol=0.02, rtol=0.05)


def test_bad_input(as_user):
    model = network()
    for options, told in (
        ({"weight_bits": 1}, "weight_bits"),
        ({"weight_bits": 9}, "weight_bits"),
        ({"input_bits": 1}, "input_bits"),
        ({"group_size": 3}, "group_size"),  # divides 6 and not 8
        ({"layers": ["1"]}, "is Tanh"),
        ({"layers": ["0"], "overrides": {"2": 4}}, "none of the layers"),
        ({"overrides": {"2": 1}}, "overrides"),
    ):
        with pytest.raises(ValueError, match=told):
            prepare_group_wise(model, **{"weight_bits": 4} | options)
    with pytest.raises(ValueError, match="for linear layers"):
        prepare_group_wise(nn.Sequential(nn.Conv2d(1, 1, 2)), weight_bits=4)
    with pytest.raises(ValueError, match="prepare_group_wise first"):
        finish_group_wise(model)
