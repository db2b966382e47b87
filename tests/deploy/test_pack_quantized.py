"""The library compressed-tensors unpacks what is packed here, and the weight is the same, bit for bit."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.deploy.pack_quantized import cannot_be_packed, layer_scheme, pack_layer, pack_words
from mlcomp.obs import obq
from mlcomp.quant import Quantized, adaquant, adaround, bitsplit, gptq, ldlq, lloyd_max, rtn, table_quantize

pytest.importorskip("compressed_tensors", reason="needs the extra deploy")
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor, pack_to_int32
from compressed_tensors.quantization import QuantizationScheme


def decoded(result: Quantized, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    scheme = QuantizationScheme(targets=["Linear"], weights=layer_scheme(result))
    return PackedQuantizationCompressor.decompress(pack_layer(result, dtype), scheme)["weight"]


@given(st.data())
def test_the_library_decodes_the_same_weight(data):
    out, groups, size = (data.draw(st.integers(1, n)) for n in (40, 4, 20))
    bits, symmetric = data.draw(st.integers(1, 8)), data.draw(st.booleans())
    dtype = data.draw(st.sampled_from((torch.float32, torch.float16, torch.bfloat16)))
    weight = torch.randn(out, groups * size, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    result = rtn(weight, bits=bits, group_size=size, symmetric=symmetric, scale_dtype=dtype)
    # The products of codes of 9 bits and steps of 11 are exact in float32, so both round once.
    assert torch.equal(decoded(result, dtype), result.dequantize().to(dtype))
    sizes = {name: tensor.numel() for name, tensor in pack_layer(result, dtype).items()}
    assert sizes["weight_packed"] == out * -(-groups * size * bits // 32)
    assert sizes.get("weight_zero_point") == (None if symmetric else -(-out * bits // 32) * groups)


@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 70))
def test_words_are_those_of_the_library(bits, rows, columns):
    codes = torch.randint(2**bits, (rows, columns), dtype=torch.uint8)
    signed = (codes.int() - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(pack_words(codes, bits), pack_to_int32(signed, bits))


def test_a_word_by_hand():
    codes = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 15]])
    assert pack_words(codes, 4).tolist() == [[0x87654321 - 2**32, 0xF]]


W = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
X = torch.randn(16, 60, generator=torch.Generator().manual_seed(1))
QUANTIZERS = {
    "gptq": partial(gptq, bits=4, group_size=4),
    "gptq by activation": partial(gptq, bits=4, group_size=4, order="activation", static_groups=True),
    "gptq by activation, a row": partial(gptq, bits=3, order="activation"),
    "obq": partial(obq, bits=4, group_size=8),
    "ldlq": partial(ldlq, bits=2),
    "adaround": partial(adaround, bits=4, steps=3),
    "adaquant": partial(adaquant, bits=4, steps=3),
    "bitsplit": partial(bitsplit, bits=4),
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_results_of_every_uniform_quantizer_are_packed(name):
    result = QUANTIZERS[name](W, 2 * X @ X.T)
    assert cannot_be_packed(result) is None
    assert torch.equal(decoded(result), result.dequantize())


def test_one_grid_for_the_tensor_is_written_for_each_row():
    row = rtn(W.reshape(1, -1), bits=4)
    result = Quantized(row.codes.reshape(8, 16), row.step, row.zero, 4, False)
    assert torch.equal(decoded(result), result.dequantize()) and layer_scheme(result)["strategy"] == "channel"


def test_a_group_index_of_consecutive_columns_is_none():
    plain = rtn(W, bits=4, group_size=4)
    index = torch.arange(16) // 4
    told = Quantized(plain.codes, plain.step, plain.zero, 4, False, index)
    assert cannot_be_packed(told) is None and torch.equal(decoded(told), plain.dequantize())
    scattered = Quantized(plain.codes, plain.step, plain.zero, 4, False, index.flip(0))
    assert "weight_g_idx" in cannot_be_packed(scattered)
    by_activation = gptq(W, 2 * X @ X.T, bits=4, group_size=4, order="activation")
    assert "static_groups=True" in cannot_be_packed(by_activation)


def test_a_zero_code_that_is_not_the_middle_is_written_whatever_the_result_says():
    plain = rtn(W + 1, bits=4)
    wrong = Quantized(plain.codes, plain.step, plain.zero, 4, True)
    assert torch.equal(decoded(wrong), plain.dequantize())


def test_what_the_format_cannot_hold_is_told():
    table = table_quantize(W, lloyd_max("gaussian", 16))
    assert "TableQuantized is no uniform grid" in cannot_be_packed(table)
    plain = rtn(W, bits=4)
    for zero in (plain.zero + 0.5, plain.zero + 16, plain.zero - 16):
        broken = Quantized(plain.codes, plain.step, zero, 4, False)
        assert "whole numbers from 0 to 15" in cannot_be_packed(broken)
    with pytest.raises(ValueError, match="codes must lie in 0 … 7"):
        pack_layer(Quantized(plain.codes, plain.step, plain.zero.clamp(max=7), 3, False), torch.float32)
    with pytest.raises(ValueError, match="float16 ends at"):
        pack_layer(Quantized(plain.codes, plain.step * 1e6, plain.zero, 4, False), torch.float16)
