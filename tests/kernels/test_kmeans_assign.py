import pytest
import torch

from mlcomp.kernels.kmeans_assign import kmeans_assign
from mlcomp.quant.vector.kmeans import kmeans_assign as reference

# The kernel means some products to overflow to -inf; NumPy, which the interpreter runs on, remarks on it.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")


def check(points, codebook):
    got, want = kmeans_assign(points, codebook), reference(points, codebook)
    assert got.dtype == torch.int32 and got.shape == want.shape
    assert 0 <= got.min() and got.max() < len(codebook)
    x, c = points.double(), codebook.double()
    score = c.square().sum(1) / 2 - x @ c.T
    mine, best = score.gather(1, got.long()[:, None])[:, 0], score.amin(1)
    # Three tf32 products keep about 21 bits.
    assert (mine - best <= 1e-5 * (x.norm(dim=1) * c.norm(dim=1).max() + c.norm(dim=1).max() ** 2)).all()
    # Where the nearest entry is nearer than that by far, the index is the same.
    second = score.topk(2, dim=1, largest=False).values
    clear = second[:, 1] - second[:, 0] > 1e-3
    assert torch.equal(got[clear], want[clear]) and clear.float().mean() > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("n", "k", "d"), [(2, 2, 1), (101, 17, 3), (300, 256, 8), (67, 300, 16), (70, 5, 33)])
def test_equals_the_reference(random, n, k, d, dtype):
    check(random(n, d, dtype=dtype), random(k, d, seed=1))


def test_whole_numbers_and_ties(device):
    # Small whole numbers are exact in tf32, so equal distances are exactly equal: the lowest index wins.
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0)).to(device)
    points = torch.cartesian_prod(torch.arange(9.0), torch.arange(9.0)).to(device) / 2
    assert torch.equal(kmeans_assign(points, grid), reference(points, grid))
    for entries in (40, 600):  # one block of entries, and several
        assert kmeans_assign(points, torch.ones(entries, 2, device=device)).tolist() == [0] * 81


def test_non_contiguous(random):
    check(random(4, 90).T, random(20, 8)[:, ::2])


def test_bad_input(random, as_user):
    with pytest.raises(ValueError, match=r"\(entries, 4\)"):
        kmeans_assign(random(5, 4), random(3, 2))
    with pytest.raises(ValueError, match="from 1 to 128"):
        kmeans_assign(random(2, 129), random(2, 129))
    with pytest.raises(TypeError, match="float64"):
        kmeans_assign(random(2, 2).double(), random(2, 2))
