import numpy as np
import pytest
import torch
from sklearn import linear_model
from sklearn.datasets import load_diabetes

from mlcomp.prune.classical import lasso, lasso_path


@pytest.fixture(scope="module")
def diabetes():
    x, y = load_diabetes(return_X_y=True)
    return torch.as_tensor(x - x.mean(0)), torch.as_tensor(y - y.mean())


def objective(x, y, beta, penalty):
    return float((y - x @ beta).square().sum() + penalty * beta.abs().sum())


@pytest.mark.parametrize("alpha", [1.5, 1.0, 0.3, 0.05])
def test_equals_scikit_learns(diabetes, alpha):
    x, y = diabetes
    fit = lasso(x, y, penalty=2 * len(y) * alpha, tolerance=1e-13)
    theirs = linear_model.Lasso(alpha=alpha, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(x, y)
    # Coefficients of order 100; a gap of 1e-13·‖y‖² leaves them about 1e-7 of it.
    np.testing.assert_allclose(fit.coefficients, theirs.coef_, atol=1e-6)
    assert ((fit.coefficients == 0).numpy() == (theirs.coef_ == 0)).all()


@pytest.mark.parametrize("penalty", [0.0, 0.1, 5.0, 40.0])
def test_the_kkt_conditions_hold(penalty):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 6, generator=g).double(), torch.randn(30, generator=g).double()
    fit = lasso(x, y, penalty=penalty, tolerance=1e-14)
    slope = 2 * x.T @ (y - x @ fit.coefficients)  # the negative gradient of the squares
    inside = fit.coefficients != 0
    # The gap is quadratic in the violation, so 1e-14 of it allows 1e-7 here.
    torch.testing.assert_close(slope[inside], penalty * fit.coefficients[inside].sign(), rtol=0, atol=1e-5)
    assert (slope[~inside].abs() <= penalty + 1e-5).all()


def test_the_gap_bounds_the_distance_to_the_least_objective(diabetes):
    x, y = diabetes
    best = lasso(x, y, penalty=100.0, tolerance=1e-14)
    least = objective(x, y, best.coefficients, 100.0)
    for sweeps in (1, 3, 10):
        early = lasso(x, y, penalty=100.0, max_sweeps=sweeps)
        assert early.sweeps == sweeps
        above = objective(x, y, early.coefficients, 100.0) - least
        assert 0 <= above <= early.gap * (1 + 1e-9) + best.gap


def test_orthonormal_features_are_soft_thresholded():
    g = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(20, 5, generator=g, dtype=torch.float64))
    y = torch.randn(20, generator=g, dtype=torch.float64)
    z = q.T @ y
    expected = z.sign() * (z.abs() - 0.3).clamp(min=0)
    torch.testing.assert_close(lasso(q, y, penalty=0.6).coefficients, expected)


def test_the_largest_penalty_and_one_just_below(diabetes):
    x, y = diabetes
    largest = 2 * float((x.T @ y).abs().max())
    assert largest == pytest.approx(1898.87, abs=0.01)  # 2·442·2.1480
    assert not lasso(x, y, penalty=largest).coefficients.any()
    assert int(lasso(x, y, penalty=0.999 * largest, tolerance=1e-12).coefficients.count_nonzero()) == 1


def test_path_and_order_of_entry(diabetes):
    x, y = diabetes
    path = lasso_path(x, y, steps=40, smallest=0.005, tolerance=1e-7)
    names = load_diabetes().feature_names
    assert [names[j] for j in path.order][:5] == ["bmi", "s5", "bp", "s3", "sex"]
    _, active, _ = linear_model.lars_path(x.numpy(), y.numpy(), method="lasso")
    # s3 leaves the exact path again and comes back, so its place in lars's list is the last one.
    lars = [j for j in active if names[j] != "s3"]
    ours = [j for j in path.order if names[j] != "s3"]
    assert ours == lars[: len(ours)] and len(ours) >= 6
    assert (path.penalties.diff() < 0).all() and not path.coefficients[0].any()
    alone = lasso(x, y, penalty=float(path.penalties[20]), tolerance=1e-7)
    torch.testing.assert_close(path.coefficients[20], alone.coefficients, rtol=0, atol=0.5)  # of about 500


def test_dead_features_keep_zero_and_a_start_changes_nothing():
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(12, 4, generator=g), torch.randn(12, generator=g)
    x[:, 2] = 0
    fit = lasso(x, y, penalty=0.5, tolerance=1e-14)
    again = lasso(x, y, penalty=0.5, start=torch.ones(4), tolerance=1e-14)
    assert fit.coefficients[2] == 0
    torch.testing.assert_close(fit.coefficients, again.coefficients, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"penalty": -1.0}, "penalty"),
        ({"targets": torch.ones(3)}, "same samples"),
        ({"features": torch.full((4, 2), torch.nan)}, "NaN"),
        ({"start": torch.ones(3)}, "start"),
        ({"tolerance": 2.0}, "tolerance"),
        ({"max_sweeps": 0}, "max_sweeps"),
    ],
)
def test_bad_input_is_a_clear_error(as_user, change, message):
    good = {"features": torch.randn(4, 2), "targets": torch.randn(4), "penalty": 1.0}
    with pytest.raises(ValueError, match=message):
        lasso(**good | change)
    with pytest.raises(ValueError, match="correlated"):
        lasso_path(torch.ones(4, 2), torch.zeros(4))
