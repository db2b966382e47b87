import importlib
import itertools

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mlcomp.data import make_layer
from mlcomp.metrics import hessian_error
from mlcomp.obs import gptq, layer_hessian, obq
from mlcomp.quant import best_quantized, integer_least_squares, rtn
from tests.examples import examples


def problem(inp, seed, samples=None):
    """Return an H with strong correlations and a target that leaves the box now and then."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(inp, samples or 2 * inp, generator=g, dtype=torch.float64)
    x += 2 * torch.randn(1, x.shape[1], generator=g, dtype=torch.float64)  # one strong common direction
    return 2 * x @ x.T, torch.randn(inp, generator=g, dtype=torch.float64)


def all_errors(hessian, target, levels):
    codes = torch.tensor(list(itertools.product(range(levels), repeat=len(target))), dtype=torch.float64)
    delta = codes - target
    return codes, ((delta @ hessian) * delta).sum(1) / 2


@examples(60)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([(1, 16), (2, 16), (4, 5), (6, 4), (7, 3), (11, 2)]))
@example(seed=999999, size=(11, 2))  # sums of codes and targets that float arithmetic leaves at 0.9999…
def test_the_codes_are_the_best_of_all(seed, size):
    inp, levels = size
    hessian, offset = problem(inp, seed)
    target = (levels - 1) / 2 + levels / 2 * offset
    codes, errors = all_errors(hessian, target, levels)
    found = integer_least_squares(hessian, target, levels=levels)
    assert found.proved
    # Rounding of sums of about the size of tᵀHt; ties may be broken either way.
    assert found.error == pytest.approx(float(errors.min()), rel=1e-9)
    at = int((codes == found.codes).all(1).nonzero())
    assert float(errors[at]) == pytest.approx(found.error, rel=1e-9)


def test_forty_problems_in_which_the_first_dive_is_often_wrong(monkeypatch):
    # Blocks of one: plain depth-first search, where each bound matters.
    monkeypatch.setattr(importlib.import_module("mlcomp.compare.integer_least_squares"), "_BLOCK", 1)
    improved = 0
    for seed in range(40):
        hessian, offset = problem(7, seed, samples=8)
        target = 1.0 + 1.2 * offset
        least = float(all_errors(hessian, target, 3)[1].min())
        assert integer_least_squares(hessian, target, levels=3).error == pytest.approx(least, rel=1e-9)
        improved += integer_least_squares(hessian, target, levels=3, max_nodes=1).error > least * (1 + 1e-9)
    assert improved > 8


def test_a_tiny_block_and_a_large_one_find_the_same(monkeypatch):
    hessian, offset = problem(12, 3)
    target = 3.5 + 4 * offset
    expected = integer_least_squares(hessian, target, levels=8)
    for block in (1, 7, 4096):
        monkeypatch.setattr(importlib.import_module("mlcomp.compare.integer_least_squares"), "_BLOCK", block)
        assert torch.equal(integer_least_squares(hessian, target, levels=8).codes, expected.codes)


def test_an_independent_weight_is_rounded():
    target = torch.tensor([-3.0, 0.4, 1.6, 9.0], dtype=torch.float64)
    found = integer_least_squares(torch.diag(torch.tensor([1.0, 5.0, 0.0, 2.0])), target, levels=4)
    assert found.codes.tolist() == [0, 0, 2, 3]
    assert found.error == pytest.approx((9 + 5 * 0.16 + 2 * 36) / 2)


def test_stopped_early_it_says_so_and_is_no_worse_than_greedy_rounding():
    weight, x, _ = make_layer(1, 40, 100, seed=0)
    hessian = layer_hessian(x.double())
    target = weight[0].double() * 16 + 4
    stopped = integer_least_squares(hessian, target, levels=8, max_nodes=1)
    whole = integer_least_squares(hessian, target, levels=8)
    assert whole.proved and not stopped.proved
    assert whole.error <= stopped.error
    assert 0 <= int(stopped.codes.min()) and int(stopped.codes.max()) < 8


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("clip", ["minmax", "mse"])
def test_no_quantizer_on_the_same_grid_is_better(bits, clip):
    weight, x, _ = make_layer(6, 20, 80, seed=bits)
    hessian = layer_hessian(x)
    best = best_quantized(weight, hessian, bits=bits, clip=clip)
    plain = rtn(weight, bits=bits, clip=clip)
    assert torch.equal(best.step, plain.step) and torch.equal(best.zero, plain.zero)
    least = hessian_error(weight, best.dequantize(), hessian)
    for rival in (plain, gptq(weight, hessian, bits=bits, clip=clip, damp=0.0, order="activation")):
        assert least <= hessian_error(weight, rival.dequantize(), hessian) * (1 + 1e-9)
    if clip == "minmax":
        assert least <= hessian_error(weight, obq(weight, hessian, bits=bits).dequantize(), hessian) * (1 + 1e-6)
    assert least < 0.9 * hessian_error(weight, plain.dequantize(), hessian)


def test_dead_inputs_and_purity():
    weight, x, _ = make_layer(3, 10, 60, seed=1)
    x[4] = 0
    weight[:, 4] *= 50
    hessian = layer_hessian(x)
    before = weight.clone(), hessian.clone()
    q = best_quantized(weight, hessian, bits=3)
    assert torch.equal(weight, before[0]) and torch.equal(hessian, before[1])
    assert (q.dequantize()[:, 4] == 0).all()
    live = [j for j in range(10) if j != 4]
    alone = best_quantized(weight[:, live], hessian[live][:, live], bits=3)
    assert torch.equal(q.codes[:, live], alone.codes)
    nothing = integer_least_squares(torch.zeros(2, 2), torch.tensor([0.4, 5.0]), levels=4)
    assert nothing.codes.tolist() == [0, 3] and nothing.error == 0 and nothing.proved


def test_bad_input(as_user):
    hessian, target = torch.eye(3), torch.zeros(3)
    for levels in (1, 257, 4.0, True):
        with pytest.raises(ValueError, match="levels must be"):
            integer_least_squares(hessian, target, levels=levels)
    for nodes in (0, 1.5, True):
        with pytest.raises(ValueError, match="max_nodes"):
            integer_least_squares(hessian, target, levels=4, max_nodes=nodes)
    with pytest.raises(ValueError, match="to match a weight with 3 inputs"):
        integer_least_squares(torch.eye(2), target, levels=4)
    with pytest.raises(ValueError, match="target must be a vector"):
        integer_least_squares(hessian, torch.zeros(1, 3), levels=4)
    with pytest.raises(ValueError, match="NaN"):
        integer_least_squares(hessian, torch.tensor([0.0, float("nan"), 1.0]), levels=4)
    with pytest.raises(ValueError, match="singular"):
        integer_least_squares(torch.ones(3, 3), target, levels=4)
    with pytest.raises(ValueError, match="bits must be"):
        best_quantized(torch.ones(1, 3), hessian, bits=0)
    weight, x, _ = make_layer(1, 64, 80, seed=0)
    with pytest.raises(RuntimeError, match="max_nodes=1 partial"):
        best_quantized(weight, layer_hessian(x), bits=4, max_nodes=1)
