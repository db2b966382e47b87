import pytest
import torch

from mlcomp.kernels.launch import INTERPRETED
from mlcomp.kernels.nf4_matmul import nf4_matmul
from mlcomp.quant import data_type_levels, double_quantize, pack_nf4
from mlcomp.quant import nf4_matmul as reference

# Root mean square of the error over that of the result: the rounding of level and result, and a little for the sum.
BOUND = {torch.float16: 1e-3, torch.bfloat16: 5e-3}
DTYPES = [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.skipif(INTERPRETED, reason="needs a GPU"))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 17])
@pytest.mark.parametrize(
    ("out", "inp", "options"),
    [
        (67, 1024, {}),
        (5, 192, {}),
        (70, 256, {"block_size": 128, "scale_type": "int"}),
        (19, 160, {"block_size": 32, "scale_block": 3}),
        (3, 64, {"data_type": "float"}),
    ],
)
def test_equals_the_reference(random, tokens, out, inp, options, dtype):
    weight = pack_nf4(double_quantize(random(out, inp), **options))
    x = random(tokens, inp, dtype=dtype, seed=1)
    y, want = nf4_matmul(x, weight), reference(x.float(), weight)
    assert y.dtype == dtype and y.shape == want.shape
    assert (y.float() - want).norm() <= BOUND[dtype] * want.norm()


def test_every_level_meets_its_column(device):
    # Weights that are levels times one scale; a row of x picks one column, so each product shows one weight.
    levels = data_type_levels("nf4", 4).to(device)
    w = levels[torch.arange(4 * 64, device=device).reshape(4, 64) % 16]
    weight = pack_nf4(double_quantize(w))
    y = nf4_matmul(torch.eye(64, device=device).half(), weight)
    torch.testing.assert_close(y.T.float(), weight.dequantize(), atol=1e-3, rtol=1e-3)


def test_strided_activations_and_no_token(random):
    weight = pack_nf4(double_quantize(random(8, 128)))
    x = random(128, 3, dtype=torch.float16).T
    torch.testing.assert_close(nf4_matmul(x, weight), nf4_matmul(x.contiguous(), weight))
    assert nf4_matmul(x[:0], weight).shape == (0, 8)


def test_bad_input(random, as_user):
    weight = pack_nf4(double_quantize(random(8, 128)))
    with pytest.raises(ValueError, match=r"\(tokens, 128\)"):
        nf4_matmul(random(1, 64, dtype=torch.float16), weight)
    with pytest.raises(TypeError, match=r"float16.*float32"):
        nf4_matmul(random(1, 128), weight)
    with pytest.raises(ValueError, match="32 columns or a multiple, got 16"):
        nf4_matmul(random(1, 128, dtype=torch.float16), pack_nf4(double_quantize(random(8, 128), block_size=16)))
