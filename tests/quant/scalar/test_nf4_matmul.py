"""The packed weight is the quantized one, bit for bit, and its product the dense one."""

import pytest
import torch

from mlcomp.quant import double_quantize, nf4_matmul, pack_nf4


@pytest.mark.parametrize(
    "options", [{}, {"block_size": 32, "scale_block": 16, "scale_type": "int"}, {"data_type": "float"}]
)
def test_the_packed_weight_is_the_same_to_the_bit(options):
    w = torch.randn(5, 192)
    quantized = double_quantize(w, **options)
    packed = pack_nf4(quantized)
    assert torch.equal(packed.dequantize(), quantized.dequantize())
    assert packed.nbytes == quantized.nbytes
    assert int(packed.codes[2, 3]) == 16 * int(quantized.codes[2, 6]) + int(quantized.codes[2, 7])
    x = torch.randn(3, 192, dtype=torch.float64)
    torch.testing.assert_close(nf4_matmul(x, packed), x @ quantized.dequantize().double().T)
    assert nf4_matmul(x.half(), packed).dtype == torch.float16


def test_what_does_not_fit_is_refused(as_user):
    with pytest.raises(ValueError, match="whole blocks of 64"):
        pack_nf4(double_quantize(torch.randn(4, 96)))
    with pytest.raises(TypeError, match="double_quantize"):
        pack_nf4(torch.randn(4, 64))
    packed = pack_nf4(double_quantize(torch.randn(4, 64)))
    with pytest.raises(ValueError, match=r"\(tokens, 64\)"):
        nf4_matmul(torch.randn(2, 32), packed)
    with pytest.raises(TypeError, match="pack_nf4"):
        nf4_matmul(torch.randn(2, 64), torch.randn(4, 64))
