import math

import pytest
import torch
from scipy import integrate

from mlcomp.prune import deterministic_gates, expected_gate, hard_concrete, probability_above

ALPHAS = torch.tensor([-4.0, -1.0, 0.0, 0.7, 3.0, 6.0], dtype=torch.float64)


def literal(u: float, log_alpha: float, tau: float) -> float:
    """Eqs. (10) to (12) of Louizos et al. for one gate, with Python's numbers."""
    s = 1 / (1 + math.exp(-((math.log(u) - math.log(1 - u) + log_alpha) / tau)))
    stretched = s * (1.1 - -0.1) + -0.1
    return min(1.0, max(0.0, stretched))


@pytest.mark.parametrize("tau", [1 / 3, 2 / 3, 2.0])
def test_draws_are_those_of_the_paper(tau):
    got = hard_concrete(ALPHAS, generator=torch.Generator().manual_seed(5), temperature=tau)
    uniform = torch.rand(6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    want = [literal(u, a, tau) for u, a in zip(uniform.tolist(), ALPHAS.tolist(), strict=True)]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("tau", [1 / 3, 2 / 3, 2.0])
def test_probabilities_and_mean_are_integrals_over_the_noise(tau):
    """z grows with u, so P(z > v) is 1 minus the u at which it passes v: found by bisection."""
    for alpha in ALPHAS:
        for value in (0.0, 0.25, 0.9):
            low, high = 1e-15, 1 - 1e-15
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (low, middle) if literal(middle, float(alpha), tau) > value else (middle, high)
            got = float(probability_above(alpha, value=value, temperature=tau))
            assert got == pytest.approx(1 - high, abs=1e-12)
        kinks = [1 / (1 + math.exp(float(alpha) + sign * tau * math.log(11))) for sign in (1, -1)]
        mean, _ = integrate.quad(literal, 0, 1, (float(alpha), tau), points=kinks, epsabs=1e-12, limit=400)
        assert float(expected_gate(alpha, temperature=tau)) == pytest.approx(mean, abs=1e-10)


def test_at_log_alpha_zero_five_gates_in_six_are_open():
    """σ(τ ln 11) with τ = 2/3 is 11^(2/3)/(1 + 11^(2/3))."""
    got = probability_above(torch.zeros(1, dtype=torch.float64))
    assert float(got) == pytest.approx(11 ** (2 / 3) / (1 + 11 ** (2 / 3)), abs=1e-15)
    assert round(float(got), 2) == 0.83


def test_draws_agree_with_the_probabilities():
    """40 000 draws a gate of one seed: within four standard deviations."""
    n = 40_000
    z = hard_concrete(ALPHAS.expand(n, 6), generator=torch.Generator().manual_seed(0))
    for j, alpha in enumerate(ALPHAS):
        p, one = float(probability_above(alpha)), float(probability_above(alpha, value=1 - 1e-12))
        assert abs(float((z[:, j] > 0).double().mean()) - p) < 4 * math.sqrt(p * (1 - p) / n)
        assert abs(float((z[:, j] == 1).double().mean()) - one) < 4 * math.sqrt(one * (1 - one) / n)
        assert abs(float(z[:, j].mean() - expected_gate(alpha))) < 4 * 0.5 / math.sqrt(n)


def test_gradients_are_finite_differences():
    step = 1e-6
    for function in (
        lambda a: hard_concrete(a, generator=torch.Generator().manual_seed(3)),
        lambda a: probability_above(a, value=0.3),
        expected_gate,
    ):
        alpha = torch.linspace(-3, 3, 41, dtype=torch.float64).requires_grad_()
        function(alpha).sum().backward()
        with torch.no_grad():
            want = (function(alpha + step) - function(alpha - step)) / (2 * step)
        torch.testing.assert_close(alpha.grad, want, rtol=0, atol=1e-8)  # step² and rounding over it
    alpha = torch.tensor([50.0, -50.0]).requires_grad_()
    hard_concrete(alpha).sum().backward()
    assert alpha.grad.tolist() == [0.0, 0.0]


def test_no_generator_draws_from_the_global_one():
    torch.manual_seed(5)
    first = hard_concrete(ALPHAS)
    assert not torch.equal(first, hard_concrete(ALPHAS))
    torch.manual_seed(5)
    assert torch.equal(first, hard_concrete(ALPHAS))


def test_deterministic_gates_have_as_many_zeros_as_expected():
    g = torch.Generator().manual_seed(0)
    alpha = 3 * torch.randn(50, 9, generator=g, dtype=torch.float64)
    got = deterministic_gates(alpha)
    for row, gates in zip(alpha.tolist(), got.tolist(), strict=True):
        expected = sum(1 - 1 / (1 + math.exp(-(a + 2 / 3 * math.log(11)))) for a in row)
        zeros = math.floor(expected + 0.5)
        order = sorted(range(9), key=row.__getitem__)
        assert [gates[i] for i in order[:zeros]] == [0.0] * zeros
        for i in order[zeros:]:
            assert gates[i] == pytest.approx(1 / (1 + math.exp(-0.8 * row[i] / (2 / 3))), rel=1e-12)
    assert deterministic_gates(torch.zeros(6)).tolist() == [0.0] + 5 * [0.5]  # ties: the first; 6·0.168 is one
    threshold = -2 / 3 * math.log(11)  # there a gate is open with probability 1/2
    one = torch.tensor([[threshold - 1e-9], [threshold + 1e-9]], dtype=torch.float64)
    assert (deterministic_gates(one) > 0).tolist() == [[False], [True]]
    assert deterministic_gates(torch.zeros(3).half()).dtype == torch.float16


def test_bad_input(as_user):
    for function in (hard_concrete, probability_above, expected_gate, deterministic_gates):
        with pytest.raises(ValueError, match="temperature must be positive"):
            function(ALPHAS, temperature=0.0)
        with pytest.raises(ValueError, match="log_alpha holds 1 NaN"):
            function(torch.tensor([1.0, math.nan]))
        with pytest.raises(TypeError, match="log_alpha must be a torch"):
            function([1.0])
    with pytest.raises(ValueError, match=r"value must lie in \[0, 1\)"):
        probability_above(ALPHAS, value=1.0)
    with pytest.raises(ValueError, match="without dimension"):
        deterministic_gates(torch.tensor(1.0))
