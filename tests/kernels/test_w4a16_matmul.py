import pytest
import torch

from mlcomp.kernels.launch import INTERPRETED
from mlcomp.kernels.w4a16_matmul import w4a16_matmul
from mlcomp.quant import rtn
from mlcomp.quant.w4a16 import pack_w4
from mlcomp.quant.w4a16 import w4a16_matmul as reference

# Root mean square of the error over that of the result: one rounding of 2⁻¹¹ or 2⁻⁸ and a little for the sum.
BOUND = {torch.float16: 1e-3, torch.bfloat16: 5e-3}
DTYPES = [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.skipif(INTERPRETED, reason="needs a GPU"))]


def check(x, weight):
    y, want = w4a16_matmul(x, weight), reference(x.float(), weight)
    assert y.dtype == x.dtype and y.shape == want.shape
    assert (y.float() - want).norm() <= BOUND[x.dtype] * want.norm()
    # No worse than twice the product of the same precision on the dequantized weight (or its last bit).
    same = x @ weight.dequantize().to(x.dtype).T
    assert (y.float() - want).norm() <= 2 * (same.float() - want).norm() + 2**-8 * BOUND[x.dtype] * want.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 2, 17])
@pytest.mark.parametrize(
    ("out", "inp", "group_size"),
    [(67, 1024, 128), (5, 192, 64), (70, 512, 32), (19, 160, 16), (33, 401, None), (7, 96, 48)],
)
def test_equals_the_reference(random, tokens, out, inp, group_size, dtype):
    weight = pack_w4(rtn(random(out, inp), bits=4, group_size=group_size))
    check(random(tokens, inp, dtype=dtype, seed=1), weight)


def test_symmetric_per_tensor_and_long_rows(random):
    check(random(1, 5000, dtype=torch.float16), pack_w4(rtn(random(3, 5000), bits=4, symmetric=True)))
    check(random(3, 130, dtype=torch.float16), pack_w4(rtn(random(9, 130), bits=4, per_tensor=True)))


def test_whole_numbers_are_exact(device):
    # Steps 1 and small whole activations: every product and sum is exact, so nothing may be off.
    codes = torch.arange(40 * 512, device=device).reshape(40, 512) * 7 % 16 - 5.0
    codes[:, ::128], codes[:, 1::128] = -5, 10
    weight = pack_w4(rtn(codes, bits=4, group_size=128))
    assert (weight.step == 1).all() and torch.equal(weight.dequantize(), codes)
    for tokens in (1, 5):
        x = (torch.arange(tokens * 512, device=device).reshape(tokens, 512) % 3 - 1).half()
        assert torch.equal(w4a16_matmul(x, weight).float(), x.float() @ codes.T)


def test_non_contiguous_activations(random):
    weight = pack_w4(rtn(random(8, 128), bits=4))
    check(random(128, 3, dtype=torch.float16).T, weight)
    check(random(1, 256, dtype=torch.float16)[:, ::2], weight)


def test_bad_input(random, as_user):
    weight = pack_w4(rtn(random(8, 128), bits=4))
    with pytest.raises(ValueError, match=r"\(tokens, 128\)"):
        w4a16_matmul(random(1, 64, dtype=torch.float16), weight)
    with pytest.raises(ValueError, match="at least one token"):
        w4a16_matmul(random(0, 128, dtype=torch.float16), weight)
    with pytest.raises(TypeError, match=r"float16.*float32"):
        w4a16_matmul(random(1, 128), weight)
