import pytest
import torch

from mlcomp.formats import pack
from mlcomp.quant import VectorQuantized, product_quantization, residual_quantization, tree_quantization
from mlcomp.quant import vector_quantization as plain

WEIGHT = torch.randn(12, 24, generator=torch.Generator().manual_seed(0))
METHODS = {
    "plain": lambda w, **o: plain(w, **o),
    "product": lambda w, **o: product_quantization(w, parts=2, **o),
    "residual": lambda w, **o: residual_quantization(w, stages=2, **o),
    "tree": lambda w, **o: tree_quantization(w, branching=2, **o),
}
EVERY = pytest.mark.parametrize("name", METHODS)


def quantize(name, weight=WEIGHT, **options):
    options = {"dim": 4, "entries": 8, "generator": torch.Generator().manual_seed(0)} | options
    return METHODS[name](weight, **options)


@pytest.mark.parametrize(
    ("combine", "expected"), [("sum", [11, 22, 33, 44]), ("concatenate", [1, 2, 3, 4, 10, 20, 30, 40])]
)
def test_decoding_by_hand(combine, expected):
    books = torch.tensor([[[0.0, 0, 0, 0], [1, 2, 3, 4]], [[10, 20, 30, 40], [0, 0, 0, 0]]])
    codes = torch.tensor([[1, 0], [0, 1]], dtype=torch.int32)
    q = VectorQuantized(codes, books, (2, len(expected)), combine)
    assert q.dequantize().tolist() == [expected, [0.0] * len(expected)]


@EVERY
def test_size_is_that_of_the_packed_parts(name):
    q = quantize(name, entries=8)
    assert q.nbytes == pack(q.codes, 3).nbytes + q.codebooks.nbytes
    assert q.bits_per_weight == q.nbytes * 8 / WEIGHT.numel()
    assert int(q.codes.min()) >= 0 and int(q.codes.max()) < q.codebooks.shape[1]
    assert quantize("plain", entries=1).nbytes == 4 * 4  # one entry: codes of no bits
    assert quantize("plain", entries=9).nbytes == 72 * 4 // 8 + 9 * 4 * 4  # nine need four bits


@EVERY
def test_vectors_are_runs_of_inputs(name):
    # Rows that repeat one of eight runs are exact with eight entries, and only if the cut is the right one. (Halves
    # of halves of halves, so that the tree, which splits by halves, can find them.)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    runs = torch.cat([signs * torch.tensor([100.0, 10.0, 1.0]), torch.arange(8.0)[:, None] / 10], dim=1)
    weight = runs[torch.arange(48) % 8].reshape(8, 24)
    assert torch.allclose(quantize(name, weight).dequantize(), weight, atol=1e-6)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_purity_and_seed(name, dtype):
    weight = WEIGHT.to(dtype)
    before = weight.clone()
    q = quantize(name, weight)
    assert torch.equal(weight, before)
    assert q.dequantize().dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    again = quantize(name, weight)
    assert torch.equal(q.codes, again.codes) and torch.equal(q.codebooks, again.codebooks)


@EVERY
def test_zero_and_constant_weights_are_exact(name):
    for value in (0.0, 2.5):
        weight = torch.full((6, 8), value)
        assert torch.equal(quantize(name, weight).dequantize(), weight)


@EVERY
def test_bad_input(name, as_user):
    for dim in (5, 0, None, 2.0):
        with pytest.raises(ValueError, match=r"divide(s)? the"):
            quantize(name, dim=dim)
    with pytest.raises(ValueError, match="entries"):
        quantize(name, entries=128)  # of 72 vectors
    with pytest.raises(ValueError, match="entries"):
        quantize(name, entries=0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantize(name, WEIGHT * float("inf"))
    with pytest.raises(ValueError, match="non-empty matrix"):
        quantize(name, torch.ones(8))
