import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.data import make_layer
from mlcomp.formats import CSR, Bitmask, Stored, TwoFour, restore, store, stored_nbytes
from mlcomp.formats.packing import pack_planes, packed_nbytes, unpack_planes
from mlcomp.formats.stored import KINDS
from mlcomp.layerwise import layer_hessian
from mlcomp.prune import magnitude
from mlcomp.quant import (
    Quantized,
    aqlm,
    blockwise,
    double_quantize,
    gobo,
    gptq,
    nf4_codebook,
    onebit_decompose,
    pack_w4,
    product_quantization,
    quantize_mixed,
    quip,
    quip_sharp,
    residual_quantization,
    rtn,
    spqr,
    table_quantize,
    tree_quantization,
    vector_quantization,
)
from mlcomp.quant.quantized import Quantized as Codes

OUT, INP = 24, 32


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def results() -> dict[str, object]:
    """One result of each quantizer, in its variants."""
    weight, inputs, _ = make_layer(OUT, INP, 96, seed=0)
    hessian = layer_hessian(inputs)
    wide = weight.double()
    vector = {"dim": 4, "generator": seeded()}
    mixed = torch.randint(1, 17, (OUT * INP // 8,), generator=seeded()).to(torch.uint8)
    book = nf4_codebook()
    return {
        "rtn": rtn(weight, bits=4),
        "rtn_groups": rtn(weight, bits=3, group_size=8, scale_dtype=torch.float16),
        "rtn_symmetric": rtn(weight, bits=5, group_size=16, symmetric=True),
        "rtn_tensor": rtn(weight, bits=2, per_tensor=True),
        "rtn_float64": rtn(wide, bits=8, group_size=4),
        "gptq_act_order": gptq(weight, hessian, bits=4, group_size=8, order="activation"),
        "packed_w4": pack_w4(rtn(weight, bits=4, group_size=16)),
        "blockwise_int": blockwise(weight, bits=3, block_size=16),
        "blockwise_float": blockwise(weight, bits=5, block_size=40, data_type="float"),
        "blockwise_nf4": blockwise(weight, bits=4, block_size=None, data_type="nf4"),
        "blockwise_quantile": blockwise(weight, bits=4, block_size=32, data_type="quantile"),
        "double_quantized": double_quantize(weight, block_size=16, scale_block=3),
        "double_quantized_int": double_quantize(weight, block_size=8, data_type="float", scale_type="int"),
        "double_quantized_across": double_quantize(weight[:3, :7], block_size=4, scale_block=2),
        "gobo": gobo(weight, bits=3),
        "gobo_float64": gobo(wide, bits=1, log_density=-2.5),
        "gobo_without_outliers": gobo(weight, log_density=-100),
        "mixed": quantize_mixed(weight, mixed, group_size=8),
        "mixed_one": quantize_mixed(weight, mixed[:1], group_size=None),
        "table": table_quantize(weight, book, group_size=8),
        "table_float64": table_quantize(wide, book),
        "vector": vector_quantization(weight, entries=16, **vector),
        "vector_of_one": vector_quantization(weight, entries=1, **vector),
        "product": product_quantization(weight, entries=5, parts=2, **vector),
        "residual": residual_quantization(weight, entries=7, stages=2, **vector),
        "tree": tree_quantization(weight, entries=9, branching=3, **vector),
        "aqlm": aqlm(weight, hessian, dim=8, books=2, code_bits=3, max_rounds=1),
        "spqr": spqr(weight, hessian, bits=3),
        "spqr_plain": spqr(weight, hessian, bits=3, statistic_bits=None),
        "quip": quip(weight, hessian, bits=2, seed=5),
        "quip_plain": quip(weight, hessian, bits=3, rescale=False, transform="hadamard"),
        "quip_sharp_2": quip_sharp(weight, hessian, bits=2),
        "quip_sharp_3": quip_sharp(weight, hessian, bits=3, seed=9),
        "quip_sharp_4": quip_sharp(weight, hessian, bits=4, transform="orthogonal"),
        "bitmask": Bitmask.from_dense(magnitude(weight, sparsity=0.6)),
        "csr": CSR.from_dense(magnitude(weight, sparsity=0.9)),
        "two_four": TwoFour.from_dense(magnitude(weight[:, :28], pattern=(2, 4))),
        "two_four_half": TwoFour.from_dense(magnitude(weight, pattern=(2, 4)).half()),
        "pruned": magnitude(weight, sparsity=0.5),
        "onebit": onebit_decompose(weight),
        "onebit_wide": onebit_decompose(weight, dtype=torch.float32),
        "dense": weight,
        "half": weight.half(),
    }


RESULTS = results()
EVERY = pytest.mark.parametrize("name", RESULTS)


def weight_of(result) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else result.dequantize()


@EVERY
def test_bytes_are_those_counted_and_the_weight_comes_back_bit_for_bit(name):
    result = RESULTS[name]
    stored = store(result)
    nbytes = stored_nbytes(result) if isinstance(result, torch.Tensor) else result.nbytes
    assert stored.nbytes == nbytes == sum(t.numel() * t.element_size() for t in stored.tensors.values())
    back = restore(stored)
    assert type(back) is type(result) or isinstance(result, torch.Tensor)
    assert back.nbytes == nbytes and back.bits_per_weight == pytest.approx(8 * nbytes / math.prod(stored.shape))
    weight, before = back.dequantize(), weight_of(result)
    assert weight.dtype == before.dtype and torch.equal(weight, before)
    assert stored.shape == tuple(weight.shape)


@EVERY
def test_rows_alone_are_those_of_the_whole(name):
    stored, whole = store(RESULTS[name]), weight_of(RESULTS[name])
    if not stored.by_rows:
        with pytest.raises(ValueError, match="decoded whole"):
            restore(stored, 0, 4)
        return
    for start, stop in ((0, 1), (3, 10), (8, OUT), (OUT - 1, OUT)):
        part = restore(stored, start, stop).dequantize()
        assert torch.equal(part, whole[start:stop]), (start, stop)


@EVERY
def test_tensors_and_facts_are_what_a_file_can_hold(name):
    stored = store(RESULTS[name])
    assert json.loads(json.dumps(stored.facts)) == stored.facts
    assert all(t.is_contiguous() for t in stored.tensors.values())


def test_which_kinds_are_decoded_by_rows():
    whole = {name for name, result in RESULTS.items() if not store(result).by_rows}
    kinds = ("gobo", "mixed", "spqr", "quip", "bitmask", "pruned")
    assert whole == {name for name in RESULTS if name.startswith(kinds)} | {
        "blockwise_float",
        "blockwise_nf4",
        "double_quantized_across",
    }


@given(
    st.integers(1, 8),
    st.integers(1, 5),
    st.sampled_from([(1, 1), (1, 6), (2, 3), (3, 2), (6, 1)]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_every_uniform_grid_comes_back(bits, out, sizes, symmetric, seed):
    groups, size = sizes
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (out, groups * size), generator=g).to(torch.uint8)
    rows = out if seed % 2 else 1
    zero = torch.randint(0, 2**bits, (rows, groups), generator=g).float()
    if symmetric:
        zero = torch.full((rows, groups), 2.0 ** (bits - 1))
    group = torch.randint(0, groups, (groups * size,), generator=g) if seed % 3 == 0 else None
    result = Codes(codes, torch.rand(rows, groups, generator=g), zero, bits, symmetric, group)
    stored = store(result)
    assert stored.nbytes == result.nbytes
    back = restore(stored)
    for field in dataclasses.fields(result):
        a, b = getattr(result, field.name), getattr(back, field.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


@given(st.lists(st.integers(0, 7), min_size=1, max_size=3).map(tuple), st.integers(0, 31), st.integers(0, 2**31))
def test_planes_hold_codes_of_any_width(shape, bits, seed):
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, shape, generator=g)
    packed = pack_planes(codes, bits)
    assert len(packed) == packed_nbytes(codes.numel(), bits)
    back = unpack_planes(packed, bits, shape)
    assert torch.equal(back.long(), codes) and back.dtype == (torch.uint8 if bits <= 8 else torch.int32)
    start, stop = sorted((seed % (shape[0] + 1), seed // 11 % (shape[0] + 1)))
    assert torch.equal(unpack_planes(packed, bits, shape, start=start, stop=stop).long(), codes[start:stop])


def test_every_kind_is_tried_here():
    assert {store(result).kind for result in RESULTS.values()} == set(KINDS)


def test_bad_input(as_user):
    with pytest.raises(TypeError, match="no stored form"):
        store("weight")
    with pytest.raises(TypeError, match="floating point"):
        store(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="matrix"):
        store(torch.ones(3))
    codes, step = torch.zeros(2, 4, dtype=torch.uint8), torch.ones(2, 1)
    for zero, symmetric, words in ((0.5, False, "whole number"), (16.0, False, "0 … 15"), (3.0, True, "is 8")):
        with pytest.raises(ValueError, match=words):
            store(Quantized(codes, step, torch.full((2, 1), zero), 4, symmetric))
    good = store(RESULTS["rtn_groups"])
    with pytest.raises(ValueError, match="one of dense"):
        restore(Stored("os:system", good.tensors, good.facts))
    with pytest.raises(ValueError, match="rows must lie in"):
        restore(good, 3, OUT + 1)
    with pytest.raises(ValueError, match="no weight of kind 'quantized'"):
        restore(Stored("quantized", {}, good.facts))
    with pytest.raises(ValueError, match="bytes of uint8"):
        restore(Stored("quantized", {**good.tensors, "codes": good.tensors["codes"][:-1]}, good.facts))
    with pytest.raises(ValueError):
        restore(Stored("quantized", good.tensors, {**good.facts, "shape": [OUT + 1, INP]}))
    with pytest.raises(ValueError, match="float32"):
        restore(Stored("quantized", good.tensors, {**good.facts, "zero_dtype": "int64"}))
