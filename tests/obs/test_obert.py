import pytest
import torch

from mlcomp.obs import block_fisher_inverse, obert, obert_saliency, woodfisher


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def least_loss(w, f, group):
    """Return the least ½δᵀFδ over all δ that remove the group, by least squares over the rest."""
    rest = [i for i in range(len(w)) if i not in group]
    root = torch.linalg.cholesky(f).T  # ½δᵀFδ = ½‖root·δ‖²
    fixed = -root[:, group] @ w[group]
    moved = torch.linalg.lstsq(root[:, rest], -fixed[:, None]).solution[:, 0]
    return float((fixed + root[:, rest] @ moved).square().sum() / 2)


@pytest.mark.parametrize(("n", "b", "group_size"), [(12, 6, 3), (12, 12, 4), (10, 4, 2), (11, 4, 4)])
def test_saliency_of_a_group_is_the_least_loss_of_removing_it(n, b, group_size):
    g, w = drawn(20, n), drawn(n, seed=1)
    inverse = block_fisher_inverse(g, damping=0.05, block_size=b)
    cost = obert_saliency(w, inverse, group_size=group_size)
    assert len(cost) == -(-n // group_size)
    for k, value in enumerate(cost.tolist()):
        start = k * group_size // b * b
        block = slice(start, min(n, start + b))
        f = 0.05 * torch.eye(block.stop - start, dtype=torch.float64) + g[:, block].T @ g[:, block] / 20
        group = [i - start for i in range(k * group_size, min(n, (k + 1) * group_size))]
        if len(group) < block.stop - start:
            assert value == pytest.approx(least_loss(w[block], f, group), rel=1e-8)
        else:  # nothing is left to move
            assert value == pytest.approx(float(w[block] @ f @ w[block] / 2), rel=1e-8)


def test_groups_of_one_are_woodfisher():
    g, w = drawn(20, 10), drawn(10, seed=1)
    for update in ("sum", "joint", "none"):
        options = {"sparsity": 0.5, "damping": 0.05, "update": update, "block_size": 5}
        torch.testing.assert_close(obert(w, g, **options), woodfisher(w, g, **options))
    inverse = block_fisher_inverse(g, damping=0.05, block_size=5)
    torch.testing.assert_close(obert_saliency(w, inverse, group_size=1), w.square() / inverse.diagonal() / 2)


def test_the_sum_over_groups_is_joint_within_each():
    g, w = drawn(20, 12), drawn(12, seed=1)
    inverse = torch.linalg.inv(0.05 * torch.eye(12, dtype=torch.float64) + g.T @ g / 20)
    cost = obert_saliency(w, block_fisher_inverse(g, damping=0.05), group_size=3)
    expected, gone = w.clone(), []
    for k in cost.argsort()[:2].tolist():
        q = list(range(3 * k, 3 * k + 3))
        expected -= inverse[:, q] @ torch.linalg.solve(inverse[q][:, q], w[q])
        gone += q
    expected[gone] = 0
    result = obert(w, g, sparsity=0.5, damping=0.05, block_size=12, group_size=3)
    torch.testing.assert_close(result, expected)
    joint = obert(w, g, sparsity=0.5, damping=0.05, block_size=12, group_size=3, update="joint")
    solved = torch.linalg.solve(inverse[gone][:, gone], w[gone])
    wanted = (w - inverse[:, gone] @ solved).index_fill(0, torch.tensor(gone), 0)
    torch.testing.assert_close(joint, wanted)


def test_groups_go_whole_and_those_with_a_bias_stay():
    g, w = drawn(20, 24), drawn(24, seed=1)
    prunable = torch.ones(24, dtype=torch.bool)
    prunable[5] = False
    w[8:12] = 0  # a group that is gone already
    w[12] = 0  # and one weight of another
    result = obert(w, g, sparsity=0.4, damping=0.05, block_size=8, group_size=4, prunable=prunable)
    zero = (result == 0).view(6, 4).all(1)
    assert int(zero.sum()) == 2 and zero[2] and not zero[1]
    assert result[12] == 0
    nothing = obert(w, g, sparsity=0.0, damping=0.05, block_size=8, group_size=4)
    torch.testing.assert_close(nothing, w)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 3}, "group_size"),
        ({"group_size": 0}, "group_size"),
        ({"block_size": 2.5}, "block_size"),
        ({"update": "one"}, "update"),
        ({"weights": torch.ones(3)}, "gradients"),
        ({"damping": 0.0}, "damping"),
    ],
)
def test_bad_input_is_a_clear_error(as_user, change, message):
    good = {"weights": drawn(8), "gradients": drawn(4, 8), "sparsity": 0.5, "damping": 0.1, "block_size": 4}
    with pytest.raises(ValueError, match=message):
        obert(**good | change)
    inverse = block_fisher_inverse(drawn(4, 8), damping=0.1, block_size=4)
    with pytest.raises(ValueError, match="8 entries"):
        obert_saliency(drawn(7), inverse, group_size=2)
