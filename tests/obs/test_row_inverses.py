import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mlcomp.data import make_layer
from mlcomp.obs import exact_obs, layer_hessian, obq
from mlcomp.obs.row_inverses import BLOCK, RowInverses, rows_per_batch
from mlcomp.obs.row_removal import block_scores


def small(inp, rows=3, seed=0):
    weight, x, _ = make_layer(rows, inp, 3 * inp, seed=seed)
    return weight.double(), layer_hessian(x.double())


@pytest.mark.parametrize("inp", [1, 5, 2 * BLOCK + 7])
@pytest.mark.parametrize("compact_every", [None, 10])
def test_vectors_are_the_lemma_in_any_order_of_each_row(inp, compact_every):
    _, hessian = small(inp)
    inverse = torch.linalg.inv(hessian)
    inverses = RowInverses(inverse, hessian.diagonal(), 4)
    inverses.reset(3)  # fewer rows than there is room for, as in a last batch
    g = torch.Generator().manual_seed(0)
    orders = torch.stack([torch.randperm(inp, generator=g) for _ in range(3)])
    literal = [inverse.clone() for _ in range(3)]
    for step in range(inp):
        column = orders[:, step]
        position = (inverses.index == column[:, None]).int().argmax(1)
        vector, root = inverses.eliminate(position)
        for r in range(3):
            p = int(column[r])
            expected = literal[r][:, p] / literal[r][p, p].sqrt()
            torch.testing.assert_close(vector[r], expected[inverses.index[r]], rtol=1e-7, atol=1e-12)
            torch.testing.assert_close(root[r, 0] ** 2, literal[r][p, p], rtol=1e-9, atol=0)
            literal[r] = literal[r] - torch.outer(expected, expected)
        if compact_every and step % compact_every == compact_every - 1:
            gone = (inverses.index[:, :, None] == orders[:, None, : step + 1]).any(2)
            inverses.compact((~gone).nonzero()[:, 1].view(3, inp - step - 1))


def test_all_vectors_are_a_cholesky_factor():
    _, hessian = small(50)
    inverse = torch.linalg.inv(hessian)
    inverses = RowInverses(inverse, hessian.diagonal(), 1)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    vectors = torch.cat([inverses.eliminate(p[None])[0].clone() for p in order])
    torch.testing.assert_close(vectors.T @ vectors, inverse)
    factor = torch.linalg.cholesky(inverse[order][:, order], upper=True)
    torch.testing.assert_close(vectors[:, order], factor, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("c", [1, 2, 5])
def test_block_scores_are_solves(c):
    g = torch.Generator().manual_seed(0)
    root = torch.randn(3, 4, c, c, generator=g, dtype=torch.float64)
    blocks = root @ root.mT + torch.eye(c)
    weight = torch.randn(3, 4, c, generator=g, dtype=torch.float64)
    expected = (weight[:, :, None] @ torch.linalg.solve(blocks, weight[..., None]))[:, :, 0, 0]
    torch.testing.assert_close(block_scores(blocks.permute(2, 3, 0, 1), weight), expected)


class LargestAllocation(TorchDispatchMode):
    """Remembers the largest storage that any operation returned."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize(
    "method",
    [
        lambda w, h, **kw: exact_obs(w, h, sparsity=0.5, **kw),
        lambda w, h, **kw: exact_obs(w, h, pattern=(2, 4), **kw),
        lambda w, h, **kw: exact_obs(w, h, sparsity=0.5, block_size=4, scope="row", **kw),
        lambda w, h, **kw: obq(w, h, bits=4, **kw),
    ],
)
def test_memory_is_bounded_by_the_argument_and_not_by_the_rows(method):
    weight, hessian = small(40, rows=30)
    whole = 8 * 30 * 40 * 40
    bound = 5 * 8 * 40 * (2 * 40 + BLOCK + 24 + 16)
    with LargestAllocation() as free:
        method(weight, hessian)
    with LargestAllocation() as bounded:
        method(weight, hessian, max_bytes=bound)
    assert free.largest >= whole
    assert bounded.largest <= bound / 2 < whole / 2  # two matrices a row and small change share the bound


def test_rows_per_batch():
    each = 8 * 10 * (20 + BLOCK + 24)
    assert rows_per_batch(10, 100, each) == 1
    assert rows_per_batch(10, 100, 7 * each + 1) == 7
    assert rows_per_batch(10, 3, 7 * each) == 3
    with pytest.raises(ValueError, match=str(each)):
        rows_per_batch(10, 100, each - 1)
