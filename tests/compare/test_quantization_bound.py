import importlib
import itertools
import sys

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mlcomp.compare.quantization_bound import _minors
from mlcomp.data import make_layer
from mlcomp.obs import layer_hessian
from mlcomp.quant import certify, integer_least_squares, quantization_bound
from tests.examples import examples

MODULE = importlib.import_module("mlcomp.compare.quantization_bound")


def problem(inp, seed, levels, samples=None):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(inp, samples or 2 * inp, generator=g, dtype=torch.float64)
    x += torch.randn(1, x.shape[1], generator=g, dtype=torch.float64)
    target = (levels - 1) / 2 + levels / 2 * torch.randn(inp, generator=g, dtype=torch.float64)
    return 2 * x @ x.T, target


@examples(25)
@given(seed=st.integers(0, 10**6), inp=st.integers(1, 9), levels=st.sampled_from([2, 3, 4, 16]))
@example(seed=171509, inp=6, levels=4)  # a solver at its default tolerances loses 2e-6 and 1e-6 of 1 + the error here
@example(seed=4822, inp=5, levels=3)
@example(seed=380244, inp=7, levels=16)  # a tenth of the accuracy was lost to multipliers of 1e-11 on far gaps
@pytest.mark.slow
def test_it_is_below_the_best_codes_and_above_one_gap_without_more(seed, inp, levels):
    hessian, target = problem(inp, seed, levels)
    best = integer_least_squares(hessian, target, levels=levels)
    bound = quantization_bound(hessian, target, levels=levels)
    assert bound.value <= best.error * (1 + 1e-12)  # what float64 rounds of the best codes' own error
    one = quantization_bound(hessian, target, levels=levels, gaps=1)
    assert one.value <= best.error * (1 + 1e-12)
    # More multipliers cannot hurt; 1e-6 of the error is left to the solver, five times what 3000 problems needed.
    assert bound.value >= one.value - 1e-6 * (1 + best.error)


@examples(30)
@given(seed=st.integers(0, 10**6), scale=st.just(0.0) | st.floats(1e-30, 3))
def test_any_multipliers_certify_something_true(seed, scale):
    hessian, target = problem(4, seed, 4)
    g = torch.Generator().manual_seed(seed)
    between = scale * hessian.diagonal()[:, None] * torch.rand(4, 3, generator=g, dtype=torch.float64) / 6
    box = scale * torch.rand(4, generator=g, dtype=torch.float64)
    best = integer_least_squares(hessian, target, levels=4).error
    assert certify(hessian, target, between, box, levels=4) <= best * (1 + 1e-12)


def test_one_input_is_solved_exactly():
    # ½h(x − t)²: the best code of t = 1.3 is 1, that of 7.2 in {0 … 3} is 3.
    for t, best in ((1.3, 0.09), (7.2, 4.2**2), (-1.0, 1.0), (2.5, 0.25)):
        bound = quantization_bound(torch.tensor([[4.0]]), torch.tensor([t], dtype=torch.float64), levels=4)
        assert bound.value == pytest.approx(2 * best, rel=1e-6)


def test_independent_inputs_are_solved_exactly():
    diagonal = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
    target = torch.tensor([0.4, 5.0, 1.7], dtype=torch.float64)
    bound = quantization_bound(torch.diag(diagonal), target, levels=4)
    assert bound.value == pytest.approx((0.16 + 3 * 4 + 0.5 * 0.09) / 2, rel=1e-6)


def test_certificate_is_the_minimum_of_the_lagrangian():
    hessian, target = problem(5, 7, 4)
    between = 0.02 * hessian.diagonal()[:, None] * torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    box = 0.3 * hessian.diagonal()
    value = certify(hessian, target, between, box, levels=4)
    x = torch.zeros(5, dtype=torch.float64, requires_grad=True)

    def lagrangian(x):
        gaps = torch.stack([(x - k) * (x - k - 1) for k in range(3)], 1)
        delta = x - target
        return delta @ hessian @ delta / 2 - (between * gaps).sum() - (box * x * (3 - x)).sum()

    gradient = torch.autograd.functional.jacobian(lagrangian, x)
    curvature = torch.autograd.functional.hessian(lagrangian, x)
    assert torch.linalg.eigvalsh(curvature)[0] > 0
    least = lagrangian(torch.linalg.solve(curvature, -gradient))
    assert value == pytest.approx(float(least), rel=1e-10)


def test_no_multipliers_give_no_bound_and_too_large_ones_prove_nothing():
    hessian, target = problem(4, 0, 4)
    none = torch.zeros(4, 3), torch.zeros(4)
    # The minimum over all real x is 0; in exact arithmetic to the last bit, rounded down.
    assert certify(hessian, target, *none, levels=4) == 0
    assert certify(hessian, target, none[0] + 1e6, none[1], levels=4) == -float("inf")


def test_minors_are_determinants_of_whole_numbers():
    m = torch.randint(-5, 6, (6, 6), generator=torch.Generator().manual_seed(0))
    m = m @ m.T + 40 * torch.eye(6, dtype=torch.int64)
    expected = [round(float(torch.linalg.det(m[:k, :k].double()))) for k in range(1, 7)]
    assert _minors(m.tolist()) == expected


def test_fewer_samples_than_inputs():
    hessian, target = problem(8, 1, 4, samples=4)
    bound = quantization_bound(hessian, target, levels=4)
    best = integer_least_squares(hessian + 1e-9 * torch.eye(8), target, levels=4)
    # Nothing better than 0 can be proved here. The float64 H may have eigenvalues of −1e-15 of its scale, so some box
    # is needed: 1e-12 or 1e-11 of the scale on each of 8 inputs, times |x(3 − x)| < 30 at the targets drawn.
    assert -1e-11 * 8 * 30 * float(hessian.max()) <= bound.value <= best.error


def test_it_proves_most_of_the_error_of_a_correlated_layer():
    weight, x, _ = make_layer(1, 24, 200, seed=0)
    hessian = layer_hessian(x)
    target = weight[0].double() * 7.3 + 3.6
    best = integer_least_squares(hessian, target, levels=8)
    bound = quantization_bound(hessian, target, levels=8)
    assert 0.7 * best.error < bound.value <= best.error * (1 + 1e-12)


def test_scale_and_dead_inputs():
    hessian, target = problem(6, 2, 4)
    value = quantization_bound(hessian, target, levels=4).value
    assert quantization_bound(hessian * 1e-12, target, levels=4).value == pytest.approx(value * 1e-12, rel=1e-4)
    hessian[2], hessian[:, 2] = 0, 0
    live = [0, 1, 3, 4, 5]
    alone = quantization_bound(hessian[live][:, live], target[live], levels=4).value
    assert quantization_bound(hessian, target, levels=4).value == pytest.approx(alone, rel=1e-4)
    assert quantization_bound(torch.zeros(2, 2), torch.tensor([0.3, 1.2]), levels=4).value == pytest.approx(
        0, abs=1e-6
    )


def test_an_indefinite_hessian_is_bounded_too():
    hessian = torch.tensor([[1.0, 5.0], [5.0, 1.0]])
    target = torch.tensor([1.2, 1.9], dtype=torch.float64)
    codes = torch.tensor(list(itertools.product(range(4), repeat=2))).double() - target
    least = float((codes @ hessian.double() * codes).sum(1).min() / 2)
    assert least < 0
    assert quantization_bound(hessian, target, levels=4).value <= least


@pytest.mark.parametrize("answer", [float("nan"), 1e9])
def test_a_solver_that_breaks_down_is_an_error_not_a_bound(monkeypatch, as_user, answer):
    hessian, target = problem(3, 0, 4)
    monkeypatch.setattr(MODULE, "_solve", lambda h, t, columns, levels: (columns * 0 + answer, t * 0))
    with pytest.raises(RuntimeError, match="solver"):
        quantization_bound(hessian, target, levels=4)


@pytest.mark.parametrize("noise", [1e-8, 1e-5, 1e-3])
def test_a_sloppy_solver_costs_tightness_never_truth(monkeypatch, noise):
    hessian, target = problem(6, 1, 4)
    best = integer_least_squares(hessian, target, levels=4).error
    solve = MODULE._solve
    sign = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).numpy()

    def sloppy(h, t, columns, levels):
        between, box = solve(h, t, columns, levels)
        return between + noise * sign, box + noise * sign[:, 0]

    monkeypatch.setattr(MODULE, "_solve", sloppy)
    try:
        assert quantization_bound(hessian, target, levels=4).value <= best * (1 + 1e-12)
    except RuntimeError as error:
        assert noise == 1e-3 and "no proof" in str(error)


def test_bad_input(as_user, monkeypatch):
    hessian, target = torch.eye(3), torch.zeros(3)
    for levels in (1, 300, 2.0):
        with pytest.raises(ValueError, match="levels must be"):
            quantization_bound(hessian, target, levels=levels)
    for gaps in (0, 4, 1.0, True):
        with pytest.raises(ValueError, match="gaps must be"):
            quantization_bound(hessian, target, levels=4, gaps=gaps)
    with pytest.raises(ValueError, match="target must be a vector"):
        quantization_bound(hessian, torch.zeros(3, 1), levels=4)
    with pytest.raises(ValueError, match="symmetric"):
        quantization_bound(torch.ones(3, 3).triu(), target, levels=4)
    with pytest.raises(ValueError, match="negative multipliers"):
        certify(hessian, target, -torch.ones(3, 3), torch.zeros(3), levels=4)
    with pytest.raises(ValueError, match="between must be"):
        certify(hessian, target, torch.zeros(3, 2), torch.zeros(3), levels=4)
    monkeypatch.setitem(sys.modules, "clarabel", None)
    with pytest.raises(ImportError, match=r"needs clarabel.*\[notebooks\]"):
        quantization_bound(hessian, target, levels=4)
