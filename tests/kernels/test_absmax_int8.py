import pytest
import torch

from mlcomp.formats import absmax_int8 as reference
from mlcomp.kernels.absmax_int8 import absmax_int8


def equal(x):
    # On a GPU torch divides by the constant 127 through its reciprocal, an ulp off; on a CPU the quotient is exact.
    for options in ({"dim": -1}, {}):
        got, want = absmax_int8(x, **options), reference(x.cpu(), **options)
        assert torch.equal(got.codes.cpu(), want.codes) and got.codes.dtype == torch.int8
        assert torch.equal(got.scale.cpu(), want.scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (41, 401), (2, 3, 1024), (5, 4099), (2, 40009)])
def test_equals_the_reference(random, shape, dtype):
    equal(random(*shape, dtype=dtype))


def test_quotients_at_the_ties(device):
    # (k + ½)·scale for every k, and its float neighbours: one wrong rounding of the quotient changes a code.
    for top in (127.0, 3.7, 1e-20, 7e25):
        scale = torch.tensor(top) / 127
        ties = (torch.arange(-127, 127) + 0.5) * scale
        down, up = (torch.nextafter(ties, torch.tensor(v)) for v in (-torch.inf, torch.inf))
        equal(torch.cat([ties, down, up, torch.tensor([top])]).to(device))


def test_two_corrections_of_a_reciprocal_give_the_quotient():
    """What the GPU computes, with the fused multiply-add made of float64, against the division."""

    def fma(a, b, c):
        return (a.double() * b.double() + c.double()).float()  # the product is exact in float64

    generator = torch.Generator().manual_seed(0)
    scale = torch.rand(2000, 1, generator=generator) + 0.01
    ties = (torch.arange(-127, 127) + 0.5) * scale
    x = torch.cat([torch.nextafter(ties, ties - 1), ties, torch.nextafter(ties, ties + 1)], 1)
    x = torch.cat([x, x.bfloat16().float()], 1)
    inverse = 1 / scale
    quotient = x * inverse
    for _ in range(2):
        quotient = fma(fma(quotient, -scale, x), inverse, quotient)
    assert torch.equal(quotient, x / scale)


def test_non_contiguous_rows(random):
    equal(random(33, 17).T)
    equal(random(8, 30)[::2, ::3])


def test_zero_rows_and_extremes(device):
    tiny = 1e-45
    x = torch.tensor([[0, 0, 0], [tiny, 0, -tiny], [3e38, -3e38, 1], [1e-39, -3e-40, 0]], device=device)
    equal(x)


def test_a_row_with_nan_or_infinity_decodes_to_nan_and_leaves_the_others(random):
    x = random(4, 37)
    x[1, 5], x[2, 36] = float("nan"), float("-inf")
    codes, scale = absmax_int8(x, -1)
    assert scale[1].isinf() and scale[2].isinf()
    assert (codes * scale)[1:3].isnan().all()
    want = reference(x[[0, 3]].cpu(), -1)
    assert torch.equal(codes[[0, 3]].cpu(), want.codes) and torch.equal(scale[[0, 3]].cpu(), want.scale)


def test_bad_input(random, as_user, device):
    with pytest.raises(ValueError, match="dim must be -1"):
        absmax_int8(random(2, 3), 0)
    with pytest.raises(ValueError, match="at least one entry"):
        absmax_int8(random(0, 3), -1)
    with pytest.raises(TypeError, match=r"float64"):
        absmax_int8(random(2, 3).double(), -1)
    with pytest.raises(TypeError, match=r"Tensor, got list"):
        absmax_int8([1.0], -1)
    other = torch.device("cpu" if device.type == "cuda" else "meta")
    with pytest.raises(ValueError, match=r"on a GPU|on the CPU"):
        absmax_int8(torch.empty(2, 3, device=other), -1)
