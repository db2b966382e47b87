import pytest
import torch

from mlcomp.obs import block_fisher_inverse, fisher_inverse, woodfisher


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fisher(g, damping):
    return damping * torch.eye(g.shape[1], dtype=torch.float64) + g.T @ g / len(g)


@pytest.mark.parametrize(("samples", "n", "b"), [(30, 12, 4), (5, 12, 5), (40, 7, 7), (3, 5, 1), (6, 5, 8)])
def test_blocks_are_the_direct_inverses(samples, n, b):
    g = drawn(samples, n)
    inverse = block_fisher_inverse(g, damping=0.05, block_size=b)
    expected = torch.zeros(n, n, dtype=torch.float64)
    for start in range(0, n, b):
        part = slice(start, min(n, start + b))
        expected[part, part] = torch.linalg.inv(fisher(g[:, part], 0.05))
    torch.testing.assert_close(inverse.dense(), expected)
    torch.testing.assert_close(inverse.diagonal(), expected.diagonal())
    x = drawn(n, seed=1)
    torch.testing.assert_close(inverse.product(x), expected @ x)


def test_one_block_is_the_recursion_of_hassibi_and_stork():
    g = drawn(20, 9)
    torch.testing.assert_close(block_fisher_inverse(g, damping=0.1).dense(), fisher_inverse(g, damping=0.1))


def test_the_least_damping_that_is_accepted_still_leaves_an_inverse():
    g = drawn(400, 20)
    damping = 1.01e-12 * float(g.square().sum(1).mean())
    inverse = block_fisher_inverse(g, damping=damping)
    assert (inverse.diagonal() > 0).all()
    few = drawn(4, 20)  # rank 4: the differences are largest here
    inverse = block_fisher_inverse(few, damping=1.01e-12 * float(few.square().sum(1).mean()))
    assert (inverse.diagonal() > 0).all()
    with pytest.raises(ValueError, match="rounding"):
        block_fisher_inverse(g, damping=damping / 2)


def constrained(w, f, removed):
    """Return the weights with the least ½δᵀFδ that are zero where ``removed``, from the KKT system."""
    n, q = len(w), int(removed.sum())
    rows = torch.eye(n, dtype=torch.float64)[removed]
    system = torch.cat([torch.cat([f, rows.T], 1), torch.cat([rows, torch.zeros(q, q, dtype=torch.float64)], 1)])
    right = torch.cat([torch.zeros(n, dtype=torch.float64), -w[removed]])
    return w + torch.linalg.solve(system, right)[:n]


@pytest.mark.parametrize("b", [None, 5])
def test_updates_are_those_of_their_definitions(b):
    # Columns of very different size, so that the ranking is not that of magnitude.
    g, w, damping = drawn(15, 10) * torch.logspace(-1, 1, 10).double(), drawn(10, seed=2), 0.02
    f = fisher(g, damping)
    if b:
        f = torch.block_diag(*[f[k : k + b, k : k + b] for k in range(0, 10, b)])
    inverse = torch.linalg.inv(f)
    options = {"sparsity": 0.4, "damping": damping, "block_size": b}
    saliency = w.square() / (2 * inverse.diagonal())
    removed = torch.zeros(10, dtype=torch.bool)
    removed[saliency.argsort()[:4]] = True
    none = woodfisher(w, g, update="none", **options)
    torch.testing.assert_close(none, w.masked_fill(removed, 0))
    joint = woodfisher(w, g, update="joint", **options)
    torch.testing.assert_close(joint, constrained(w, f, removed), rtol=1e-9, atol=1e-9)
    summed = w.clone()
    for q in removed.nonzero().flatten().tolist():
        summed -= w[q] / inverse[q, q] * inverse[:, q]
    torch.testing.assert_close(woodfisher(w, g, **options), summed.masked_fill(removed, 0))

    def loss(x):
        return float((x - w) @ f @ (x - w) / 2)

    assert loss(joint) < min(loss(none), loss(summed.masked_fill(removed, 0)))


def test_one_removal_is_optimal_brain_surgeons_and_both_updates_agree():
    g, w = drawn(15, 8), drawn(8, seed=3)
    inverse = torch.linalg.inv(fisher(g, 0.1))
    q = int((w.square() / inverse.diagonal()).argmin())
    expected = w - w[q] / inverse[q, q] * inverse[:, q]
    for update in ("sum", "joint"):
        result = woodfisher(w, g, sparsity=1 / 8, damping=0.1, update=update)
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-12)
        assert result[q] == 0


def test_biases_stay_removed_weights_do_not_come_back_and_large_damping_is_magnitude():
    g, w = drawn(20, 12), drawn(12, seed=4)
    prunable = torch.arange(12) % 3 > 0  # eight of them
    w[[1, 2, 3]] = 0  # 3 is not prunable: a bias that happens to be zero may move
    for update in ("sum", "joint"):
        result = woodfisher(w, g, sparsity=0.5, damping=0.01, prunable=prunable, update=update)
        assert int((result[prunable] == 0).sum()) == 4
        assert result[1] == 0 and result[2] == 0 and result[3] != 0
        # The gradients of what was removed before are not looked at.
        other = g.clone()
        other[:, [1, 2]] = 100 * drawn(20, 2, seed=9)
        torch.testing.assert_close(
            result, woodfisher(w, other, sparsity=0.5, damping=0.01, prunable=prunable, update=update)
        )
    already = woodfisher(w, g, sparsity=0.0, damping=0.01, prunable=prunable)
    torch.testing.assert_close(already, w)
    heavy = woodfisher(w, g, sparsity=0.5, damping=1e6, prunable=prunable)
    kept = w.abs().masked_fill(~prunable, 9).sort().values[4:]
    torch.testing.assert_close(heavy.abs().masked_fill(~prunable, 9).sort().values[4:], kept, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": torch.ones(3)}, "gradients"),
        ({"gradients": torch.full((4, 6), torch.nan)}, "NaN"),
        ({"sparsity": 1.5}, "sparsity"),
        ({"damping": 0.0}, "damping"),
        ({"damping": 1e-20}, "rounding"),
        ({"block_size": 0}, "block_size"),
        ({"update": "both"}, "update"),
        ({"prunable": torch.ones(6)}, "prunable"),
    ],
)
def test_bad_input_is_a_clear_error(as_user, change, message):
    good = {"weights": drawn(6), "gradients": drawn(4, 6), "sparsity": 0.5, "damping": 0.1}
    with pytest.raises(ValueError, match=message):
        woodfisher(**good | change)
