import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.data import make_layer
from mlcomp.metrics import hessian_error, relative_error
from mlcomp.obs import layer_hessian
from mlcomp.quant import bitsplit, rtn
from mlcomp.quant.post_training.bitsplit import split_bits
from tests.examples import examples


@given(st.integers(2, 8), st.integers(0, 2**31))
def test_planes_are_ternary_and_stitch_back(bits, seed):
    top = 2 ** (bits - 1) - 1
    level = torch.randint(-top, top + 1, (3, 5), generator=torch.Generator().manual_seed(seed)).float()
    planes = split_bits(level, bits)
    assert len(planes) == bits - 1 and all(p.abs().max() <= 1 for p in planes)
    assert torch.equal(sum(2**m * p for m, p in enumerate(planes)), level)


@examples(40)
@given(st.integers(2, 5), st.integers(0, 2**31), st.integers(2, 8), st.integers(1, 12))
@pytest.mark.slow
def test_no_row_gets_worse_with_more_sweeps(bits, seed, inp, samples):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, inp, generator=g, dtype=torch.float64)
    h = layer_hessian(torch.randn(inp, samples, generator=g, dtype=torch.float64))
    errors = []
    for sweeps in range(5):
        delta = bitsplit(weight, h, bits=bits, sweeps=sweeps).dequantize() - weight
        errors.append(((delta @ h) * delta).sum(1))
    scale = ((weight @ h) * weight).sum(1)
    for earlier, later in itertools.pairwise(errors):
        assert (later <= earlier + 1e-12 * scale).all()


def test_end_is_optimal_in_the_step_and_in_every_digit():
    """No single change of a plane, and no other step, improves the result: checked by trying them all."""
    weight, x, _ = make_layer(4, 8, 40, seed=0)
    weight, h = weight.double(), layer_hessian(x.double())
    bits, top = 4, 7
    q = bitsplit(weight, h, bits=bits, sweeps=200)

    def errors(level: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        delta = step * level - weight
        return ((delta @ h) * delta).sum(1)

    level = q.codes.double() - 8
    here = errors(level, q.step)
    for factor in (0.999, 1.001):
        assert (errors(level, q.step * factor) > here).all()
    # The lowest digit of an even level is 0, whatever the other planes, so a move by ±1 was open to it.
    for j in range(8):
        for move in (-1, 1):
            even = (level[:, j] % 2 == 0) & (level[:, j].abs() < top)
            moved = level.clone()
            moved[:, j] += move
            assert (errors(moved, q.step)[even] >= here[even] - 1e-12).all()


def test_close_to_the_best_of_all_codes_and_steps():
    ratios = []
    for seed in range(8):
        weight, x, _ = make_layer(1, 6, 60, seed=seed)
        weight, h = weight.double(), layer_hessian(x.double())
        # All 3^6 ternary codes, each with its best step: 2 bits by brute force.
        level = torch.tensor(list(itertools.product((-1, 0, 1), repeat=6)), dtype=torch.float64)[: 3**6 // 2]
        energy = ((level @ h) * level).sum(1)
        overlap = (level @ h @ weight.T)[:, 0]
        best = 1 - float((overlap**2 / energy).max() / ((weight @ h) * weight).sum())
        ours = hessian_error(weight, bitsplit(weight, h, bits=2).dequantize(), h)
        assert ours >= best - 1e-12
        ratios.append(ours / best)
    # Coordinate descent stops in a local minimum: exact on half of these, and never far off.
    assert sorted(ratios)[3] < 1.05 and max(ratios) < 2


def test_codes_scales_and_dead_inputs():
    weight, x, _ = make_layer(6, 16, 8, seed=0)  # fewer samples than inputs, too
    x[5] = 0
    weight[:, 5] = 100
    weight[2] = 0
    h = layer_hessian(x)
    before = weight.clone()
    for bits in (2, 3, 8):
        q = bitsplit(weight, h, bits=bits)
        assert q.symmetric and int(q.codes.min()) >= 1 and int(q.codes.max()) < 2**bits
        assert (q.dequantize()[:, 5] == 0).all() and (q.dequantize()[2] == 0).all()
        assert (q.step > 0).all() and torch.isfinite(q.step).all()
    assert torch.equal(weight, before)
    assert (bitsplit(weight, h * 0, bits=3).dequantize() == 0).all()
    assert bitsplit(weight.bfloat16(), h, bits=3).step.dtype == torch.float32


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_far_better_than_rounding_to_nearest(bits):
    weight, x, held_out = make_layer(64, 64, 512, seed=0)
    split = bitsplit(weight, layer_hessian(x), bits=bits).dequantize()
    nearest = rtn(weight, bits=bits, symmetric=True, clip="mse").dequantize()
    assert relative_error(weight, split, x) < 0.7 * relative_error(weight, nearest, x)
    assert relative_error(weight, split, held_out) < 0.8 * relative_error(weight, nearest, held_out)


def test_bad_input(as_user):
    weight, h = torch.ones(2, 4), torch.eye(4)
    for bits in (0, 1, 9):
        with pytest.raises(ValueError, match="bits must be"):
            bitsplit(weight, h, bits=bits)
    with pytest.raises(ValueError, match="sweeps"):
        bitsplit(weight, h, bits=4, sweeps=-1)
    with pytest.raises(ValueError, match="hessian must be"):
        bitsplit(weight, torch.eye(5), bits=4)
    with pytest.raises(ValueError, match="weight holds"):
        bitsplit(weight / 0, h, bits=4)
