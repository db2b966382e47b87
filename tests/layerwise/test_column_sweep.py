import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.data import make_layer
from mlcomp.layerwise import ColumnSweep, column_order, inverse_factor, layer_hessian, output_loss
from mlcomp.layerwise.column_sweep import GPU_PANEL, PANEL, inverse_root


@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 13), st.integers(0, 2**31))
def test_later_columns_are_the_least_squares_answer_to_the_earlier_ones(out, inp, block_size, seed):
    """The best values of the columns after i, with those before fixed, solve a normal equation."""
    weight, inputs, _ = make_layer(out, inp, 3 * inp, seed=seed % 1000)
    weight, hessian = weight.double(), layer_hessian(inputs.double())
    factor, dead = inverse_factor(hessian, torch.arange(inp), damp=0.0)
    assert not dead.any()
    before, result, seen = weight.clone(), [], []
    sweep = ColumnSweep(weight.T, factor, block_size=block_size)
    for i in range(inp):
        seen.append(sweep.now(i, inp))
        result.append((seen[i][0] * 2).round() / 2)
        sweep.fix(sweep.now(i, i + 1)[0], result[i])
    assert torch.equal(weight, before)
    result = torch.stack(result)
    for i in range(1, inp):
        fixed = result[:i].T - weight[:, :i]
        best = weight[:, i:] - fixed @ hessian[:i, i:] @ torch.linalg.inv(hessian[i:, i:])
        # Solving twice in float64: the condition number of these H is below 1e6.
        torch.testing.assert_close(seen[i].T, best, rtol=1e-7, atol=1e-7)


def test_the_loss_is_the_sum_of_half_squares():
    """Each step adds e²/2 to ½ δHδᵀ, the promise of the docstring."""
    weight, inputs, _ = make_layer(3, 10, 40)
    weight, hessian = weight.double(), layer_hessian(inputs.double())
    factor, _ = inverse_factor(hessian, torch.arange(10), damp=0.0)
    errors, result = [], []
    sweep = ColumnSweep(weight.T, factor, block_size=4)
    for i in range(10):
        w = sweep.now(i, i + 1)[0]
        result.append(w.round())
        errors.append((w - result[i]) / factor[i, i])
        sweep.fix(w, result[i])
    result = torch.stack(result)
    torch.testing.assert_close(output_loss(result.T - weight, hessian) / 2, torch.stack(errors).square().sum(0) / 2)


def test_orders_keep_ties_in_place():
    hessian = torch.diag(torch.tensor([2.0, 5.0, 1.0, 2.0]))
    assert column_order(hessian, "natural").tolist() == [0, 1, 2, 3]
    assert column_order(hessian, "activation").tolist() == [1, 0, 3, 2]
    assert column_order(hessian, "ascending").tolist() == [2, 0, 3, 1]


def test_a_weight_of_another_dtype_and_layout_is_worked_on_in_float64():
    weight, inputs, _ = make_layer(3, 10, 40)
    factor, _ = inverse_factor(layer_hessian(inputs.double()), torch.arange(10), damp=0.0)
    one, other = (ColumnSweep(w, factor, block_size=4) for w in (weight.T, weight.T.double().contiguous()))
    for _ in range(10):
        w = one.column()
        assert w.is_contiguous() and torch.equal(w, other.column())
        one.fix(w, w.round())
        other.fix(w, w.round())


def test_columns_are_fixed_in_the_order_that_is_asked_for():
    weight, inputs, _ = make_layer(3, 200, 800)
    hessian = layer_hessian(inputs.double())
    columns = column_order(hessian, "activation")
    factor, _ = inverse_factor(hessian, columns, damp=0.01)
    one = ColumnSweep(weight.T, factor, block_size=32, columns=columns)
    other = ColumnSweep(weight.T[columns], factor, block_size=32)
    for i in range(200):
        assert torch.equal(one.column(), other.column())
        if i == 0:
            assert torch.equal(one.column(), weight[:, columns[0]].double())
        for sweep in (one, other):
            sweep.fix(sweep.column(), sweep.column().round())


def test_columns_beyond_a_part_of_a_block_know_of_all_errors():
    """Parts are of 16 columns: those after a part, and after a block, are asked for in the middle of it."""
    weight, inputs, _ = make_layer(3, 50, 200)
    weight, hessian = weight.double(), layer_hessian(inputs.double())
    factor, _ = inverse_factor(hessian, torch.arange(50), damp=0.0)
    one, other = (ColumnSweep(weight.T, factor, block_size=size) for size in (40, 1))
    for _ in range(50):
        i = one._next
        torch.testing.assert_close(one.now(i, 50), other.now(i, 50))
        for sweep in (one, other):
            sweep.fix(sweep.column(), sweep.column().round())


@pytest.mark.parametrize("panel", [PANEL, 1, GPU_PANEL])
@pytest.mark.parametrize("n", [1, 5, PANEL, PANEL + 1, 3 * PANEL - 2])
def test_the_root_of_the_inverse_is_numpys(n, panel):
    """Row by row of panels, and as LAPACK finds it: a Cholesky factor with a positive diagonal is the only one."""
    _, inputs, _ = make_layer(1, n, 3 * n)
    hessian = layer_hessian(inputs.double())
    found = inverse_root(hessian.clone(), panel)
    expected = np.linalg.cholesky(np.linalg.inv(hessian.numpy()), upper=True)
    assert torch.equal(found, found.triu())
    # Inverting and factoring in float64: the condition number of these H is below 1e6.
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("bad", [0, PANEL, 2 * PANEL])
def test_a_matrix_that_is_not_positive_definite_has_no_root(bad):
    matrix = torch.eye(2 * PANEL + 1, dtype=torch.float64)
    matrix[bad, bad] = -1
    assert inverse_root(matrix.clone(), PANEL) is None and inverse_root(matrix, GPU_PANEL) is None


def test_columns_in_another_order_have_the_factor_of_the_reordered_hessian():
    _, inputs, _ = make_layer(1, 2 * PANEL + 5, 6 * PANEL)
    hessian = layer_hessian(inputs.double())
    columns = column_order(hessian, "activation")
    factor, _ = inverse_factor(hessian, columns, damp=0.0)
    expected = np.linalg.inv(hessian.numpy())[columns][:, columns]
    torch.testing.assert_close(factor.T @ factor, torch.from_numpy(expected), rtol=1e-7, atol=1e-9)


def test_inputs_of_very_different_scales_are_regular_in_any_order():
    # Their own products of H and its inverse are 1; those of one input with another would count as singular.
    hessian = torch.diag(torch.tensor([1.0, 1e-12, 1e12]))
    columns = column_order(hessian, "activation")
    assert columns.tolist() == [2, 0, 1]
    factor, _ = inverse_factor(hessian, columns, damp=0.0)
    torch.testing.assert_close(factor.diagonal(), hessian.diagonal()[columns].double().rsqrt())
