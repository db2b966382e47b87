import pytest
import torch

from mlcomp.quant import rtn
from mlcomp.quant.w4a16 import pack_w4, w4a16_matmul


def weight(out, inp, seed=0):
    return torch.randn(out, inp, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("inp", "options"), [
    (384, {"group_size": 128}), (96, {"group_size": 16}), (96, {"group_size": 48}), (401, {}),
    (130, {"per_tensor": True}), (64, {"symmetric": True}),
])  # fmt: skip
def test_packing_keeps_the_weight(inp, options):
    quantized = rtn(weight(7, inp), bits=4, **options)
    packed = pack_w4(quantized)
    # Codes exactly; steps rounded to float16, relative 2⁻¹¹.
    assert torch.allclose(packed.dequantize(), quantized.dequantize(), rtol=2**-11, atol=0)
    assert packed.words.shape[1] * 8 == inp + -inp % (8 * packed.plane)


@pytest.mark.parametrize(("inp", "plane"), [(1024, 32), (256, 32), (640, 16), (14336, 32), (576, 16)])
def test_layout_word_by_word(inp, plane):
    quantized = rtn(weight(3, inp), bits=4)
    packed = pack_w4(quantized)
    assert packed.plane == plane  # the widest that pads least
    words = packed.words.long() & 0xFFFFFFFF
    for block, i, place in [(0, 0, 0), (0, plane - 1, 7), (packed.words.shape[1] // plane - 1, 4, 3)]:
        got = (words[:, block * plane + i] >> (4 * place)) & 15
        assert torch.equal(got, quantized.codes[:, (block * 8 + place) * plane + i].long())


def test_size_is_what_is_stored():
    packed = pack_w4(rtn(weight(8, 256), bits=4, group_size=64))
    assert packed.nbytes == 8 * 256 // 2 + 8 * 4 * 4


def test_product():
    packed = pack_w4(rtn(weight(5, 64), bits=4))
    x = weight(3, 64, seed=1)
    want = torch.stack([torch.stack([(row * w).sum() for w in packed.dequantize().double()]) for row in x.double()])
    assert torch.allclose(w4a16_matmul(x, packed).double(), want, rtol=0, atol=1e-5)  # 64 float32 terms of size 1
    assert w4a16_matmul(x.bfloat16(), packed).dtype == torch.bfloat16


def test_bad_input(as_user):
    with pytest.raises(ValueError, match="4 bits"):
        pack_w4(rtn(weight(2, 16), bits=3))
    with pytest.raises(ValueError, match="multiple of 16 columns"):
        pack_w4(rtn(weight(2, 48), bits=4, group_size=24))
    with pytest.raises(ValueError, match="rescale"):
        pack_w4(rtn(weight(2, 16) * 1e-6, bits=4))
    with pytest.raises(ValueError, match=r"\(tokens, 16\)"):
        w4a16_matmul(torch.zeros(1, 8), pack_w4(rtn(weight(2, 16), bits=4)))
