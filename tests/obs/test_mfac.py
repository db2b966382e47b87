import pytest
import torch

from mlcomp.obs import DynamicMFAC, fisher_inverse, joint_step, mfac, mfac_inverse, woodfisher


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_product(g, damping, x):
    """Return F⁻¹x by the identity of Woodbury, which shares nothing with the recursion."""
    m = len(g)
    system = m * damping * torch.eye(m, dtype=torch.float64) + g @ g.T
    return (x - g.T @ torch.linalg.solve(system, g @ x)) / damping


@pytest.mark.parametrize(("m", "d"), [(1, 6), (7, 20), (30, 11)])
def test_static_form_equals_the_dense_inverse(m, d):
    g, x = drawn(m, d), drawn(d, seed=1)
    inverse = mfac_inverse(g, damping=0.02)
    dense = fisher_inverse(g, damping=0.02)
    torch.testing.assert_close(inverse.product(x), exact_product(g, 0.02, x))
    torch.testing.assert_close(inverse.product(x), dense @ x)
    torch.testing.assert_close(inverse.diagonal(), dense.diagonal())
    some = torch.tensor([4, 0, 3])
    torch.testing.assert_close(inverse.block(some), dense[some][:, some])


def test_denominators_are_the_pivots_of_the_small_system():
    # LDLᵀ of mI + GGᵀ/λ has the recursion's denominators on its diagonal: why the two forms of M-FAC are one.
    g = drawn(8, 20)
    factor = torch.linalg.cholesky(8 * torch.eye(8, dtype=torch.float64) + g @ g.T / 0.3)
    torch.testing.assert_close(mfac_inverse(g, damping=0.3).denominators, factor.diagonal().square())


@pytest.mark.parametrize("update", ["sum", "joint", "none"])
def test_pruning_equals_woodfishers_with_one_block(update):
    g, w = drawn(15, 24), drawn(24, seed=2)
    w[5] = 0
    prunable = torch.arange(24) != 7
    options = {"sparsity": 0.5, "damping": 0.02, "update": update, "prunable": prunable}
    torch.testing.assert_close(mfac(w, g, **options), woodfisher(w, g, **options), rtol=1e-9, atol=1e-9)
    assert mfac(w.float(), g.float(), **options).dtype == torch.float32


def test_joint_step_is_the_ridge_regression():
    g, w = drawn(12, 9), drawn(9, seed=3)
    removed = torch.tensor([0, 1, 0, 0, 1, 1, 0, 0, 0]).bool()
    step = joint_step(w, g, removed, damping=0.1)
    f = 0.1 * torch.eye(9, dtype=torch.float64) + g.T @ g / 12
    rest = -torch.linalg.solve(f[~removed][:, ~removed], f[~removed][:, removed] @ -w[removed])
    torch.testing.assert_close(step[~removed], rest)
    assert torch.equal(step[removed], -w[removed])
    assert not joint_step(w, g, torch.zeros(9, dtype=torch.bool), damping=0.1).any()


def test_single_precision_is_as_good_as_documented():
    g, x = drawn(60, 40), drawn(40, seed=1)
    exact = exact_product(g, 1e-3, x)
    single = mfac_inverse(g, damping=1e-3, dtype=torch.float32)
    assert single.vectors.dtype == torch.float32
    error = float((single.product(x).double() - exact).norm() / exact.norm())
    assert error < 1e-7 * 40 / 1e-3


def test_the_window_is_the_static_form_of_what_is_in_it():
    g, x = drawn(11, 6), drawn(6, seed=1)
    window = DynamicMFAC(6, 4, damping=0.05)
    torch.testing.assert_close(window.product(x), x / 0.05)
    for i, row in enumerate(g):
        window.add(row)
        inside = g[max(0, i - 3) : i + 1]
        # Before the window is full, m is the number of gradients that came.
        torch.testing.assert_close(window.product(x), exact_product(inside, 0.05, x))
        torch.testing.assert_close(window.product(x), mfac_inverse(inside, damping=0.05).product(x))


def test_what_is_given_stays_as_it_is():
    g, w = drawn(5, 8), drawn(8)
    before = g.clone(), w.clone()
    mfac_inverse(g, damping=0.1).product(w)
    window = DynamicMFAC(8, 3, damping=0.1)
    for row in g:
        window.add(row)
    window.product(w)
    assert torch.equal(g, before[0]) and torch.equal(w, before[1])


def test_bad_input_is_a_clear_error(as_user):
    g, w = drawn(4, 6), drawn(6)
    for bad, message in (({"damping": -1.0}, "damping"), ({"damping": 1e-20}, "rounding")):
        with pytest.raises(ValueError, match=message):
            mfac_inverse(g, **bad)
        with pytest.raises(ValueError, match=message):
            joint_step(w, g, w > 0, **bad)
    with pytest.raises(TypeError, match="dtype"):
        mfac_inverse(g, damping=0.1, dtype=torch.float16)
    with pytest.raises(ValueError, match="update"):
        mfac(w, g, sparsity=0.5, damping=0.1, update="all")
    with pytest.raises(ValueError, match="removed"):
        joint_step(w, g, torch.ones(5, dtype=torch.bool), damping=0.1)
    for size, window in ((0, 3), (3, 0), (3.0, 3)):
        with pytest.raises(ValueError, match="whole number"):
            DynamicMFAC(size, window, damping=0.1)
    window = DynamicMFAC(6, 3, damping=0.1)
    with pytest.raises(ValueError, match="6 entries"):
        window.add(drawn(5))
    with pytest.raises(ValueError, match="NaN"):
        window.add(w * torch.nan)
    with pytest.raises(ValueError, match="6 entries"):
        window.product(drawn(5))
