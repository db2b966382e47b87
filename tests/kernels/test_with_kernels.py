import copy
import functools
import itertools

import pytest
import torch
from torch import nn

from mlcomp.formats import AdditiveCodes, store
from mlcomp.kernels.with_kernels import AdditiveLinear, NF4Linear, W4Linear, with_kernels
from mlcomp.layerwise import PackedLinear, compress, load, save
from mlcomp.quant import double_quantize, rtn


def packed_model(tmp_path, device, method, *sizes):
    torch.manual_seed(0)
    layers = [nn.Linear(inp, out) for inp, out in itertools.pairwise(sizes)]
    model = nn.Sequential(*layers).to(device)
    batch = torch.randn(8, sizes[0], device=device)
    result, report = compress(model, [batch], method, progress=False, sequential=False)
    save(result, report.results, tmp_path / "m")
    return load(tmp_path / "m", model, packed=True).eval()


@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 5, 64), (0, 64)])
def test_four_bit_layers_call_the_kernel(shape, tmp_path, device):
    method = functools.partial(rtn, bits=4, group_size=16, scale_dtype=torch.float16)
    packed = packed_model(tmp_path, device, method, 64, 48, 24).half()
    fast = with_kernels(packed)
    assert [type(layer) for layer in fast] == [W4Linear] * 2
    x = torch.randn(*shape, device=device).half()
    y, want = fast(x), packed(x)
    assert y.shape == want.shape and y.dtype == torch.float16
    # Two products, each rounded to float16 once.
    torch.testing.assert_close(y, want, rtol=4e-3, atol=4e-3)
    assert all(type(layer) is PackedLinear for layer in packed)
    assert torch.equal(copy.deepcopy(fast)(x), y)


@pytest.mark.parametrize("shape", [(64,), (2, 5, 64), (0, 64)])
def test_doubly_quantized_layers_call_theirs(shape, tmp_path, device):
    packed = packed_model(tmp_path, device, functools.partial(double_quantize, block_size=32), 64, 96, 24).half()
    fast = with_kernels(packed)
    assert [type(layer) for layer in fast] == [NF4Linear] * 2
    x = torch.randn(*shape, device=device).half()
    torch.testing.assert_close(fast(x), packed(x), rtol=4e-3, atol=4e-3)  # as above
    small = packed_model(tmp_path / "s", device, functools.partial(double_quantize, block_size=16), 64, 24).half()
    with pytest.raises(ValueError, match="64 in blocks of 16"):
        with_kernels(small)


def test_additive_layers_call_theirs(device):
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (12, 4, 2), generator=g).to(torch.uint8)
    weight = AdditiveCodes(codes, torch.randn(2, 256, 8, generator=g), torch.rand(12, generator=g))
    packed = PackedLinear(nn.Linear(32, 12), (store(weight),)).to(device)
    fast = with_kernels(nn.Sequential(packed))
    assert type(fast[0]) is AdditiveLinear
    for shape in ((32,), (1, 1, 32), (3, 32), (2, 2, 32)):
        x = torch.randn(*shape, device=device)
        torch.testing.assert_close(fast(x), packed(x), rtol=1e-5, atol=1e-5)


def test_what_no_kernel_takes_is_left_and_told(tmp_path, device):
    four, three = functools.partial(rtn, bits=4), functools.partial(rtn, bits=3)
    packed = packed_model(tmp_path, device, {"0": four, "1": three}, 64, 48, 24).half()
    assert [type(layer) for layer in with_kernels(packed)] == [W4Linear, PackedLinear]
    with pytest.raises(ValueError, match=r"model\.half\(\) first"):
        with_kernels(packed.float())
    with pytest.raises(ValueError, match="no packed linear layer"):
        with_kernels(nn.Sequential(nn.Linear(3, 3)))
