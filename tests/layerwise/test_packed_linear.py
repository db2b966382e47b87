import copy
import functools

import pytest
import torch
from torch import nn

from mlcomp.formats import Stored, TwoFour, restore, store
from mlcomp.layerwise import (
    PackedConv,
    PackedLinear,
    compress,
    is_layer,
    kept,
    packed_linear,
    set_weight_matrix,
    weight_matrix,
)
from mlcomp.layerwise.packed_linear import packed_layer
from mlcomp.prune import magnitude
from mlcomp.quant import onebit_decompose, quip, rtn

KINDS = {
    "four_bits": functools.partial(rtn, bits=4, group_size=8),
    "three_bits": functools.partial(rtn, bits=3, scale_dtype=torch.float16),
    "tensor": functools.partial(rtn, bits=4, per_tensor=True),
    "one_bit": onebit_decompose,
    "two_four": lambda weight: TwoFour.from_dense(magnitude(weight, pattern=(2, 4))),
    "quip": lambda weight: quip(weight, torch.eye(weight.shape[1]), bits=4),
    "plain": lambda weight: weight,
}
EVERY = pytest.mark.parametrize("kind", KINDS)


def pair(kind, out=20, inp=16, **options) -> tuple[nn.Linear, PackedLinear]:
    """A dense layer with the decoded weight, and the packed one."""
    torch.manual_seed(0)
    layer = nn.Linear(inp, out, **options)
    result = KINDS[kind](layer.weight.detach().float())
    with torch.no_grad():
        layer.weight.copy_(result if isinstance(result, torch.Tensor) else result.dequantize())
    return layer, PackedLinear(layer, (store(result),))


@EVERY
@pytest.mark.parametrize("shape", [(16,), (3, 16), (2, 5, 16), (0, 16)])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_are_those_of_the_dense_layer(kind, shape, bias):
    layer, packed = pair(kind, bias=bias)
    x = torch.randn(*shape)
    assert torch.equal(packed(x), layer(x))
    assert torch.equal(packed.weight, layer.weight) and not packed.weight.requires_grad


@EVERY
@pytest.mark.parametrize("tile", [1, 3 * 16, 7 * 16, 19 * 16])
def test_tiles_make_no_difference(kind, tile, monkeypatch):
    layer, packed = pair(kind)
    x = torch.randn(4, 16)
    monkeypatch.setattr(packed_linear, "TILE", tile)
    # Rows are independent; a product of fewer rows may sum in another order.
    torch.testing.assert_close(packed(x), layer(x), rtol=1e-6, atol=1e-6)


def test_no_dense_weight_is_kept():
    layer, packed = pair("four_bits", out=64, inp=64)
    held = [*packed.parameters(), *packed.buffers()]
    assert sum(t.nbytes for t in held) == packed.nbytes + layer.bias.nbytes < layer.weight.nbytes / 3
    assert {t.dtype for t in packed.buffers() if t.numel()} == {torch.uint8}
    assert not is_layer(packed) and (packed.in_features, packed.out_features) == (64, 64)
    assert "quantized" in repr(packed) and str(packed.nbytes) in repr(packed)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_changes_as_a_dense_layers_does(kind, dtype):
    layer, packed = pair(kind)
    x = torch.randn(5, 16, dtype=dtype)
    layer, packed = layer.to(dtype), packed.to(dtype)
    assert packed(x).dtype == dtype and packed.weight.dtype == dtype
    assert torch.equal(packed.weight, layer.weight)
    torch.testing.assert_close(packed(x), layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(packed.float()(x.float()), layer.float()(x.float()), rtol=2e-2, atol=2e-2)


def test_a_layer_in_bfloat16_holds_what_bfloat16_holds():
    torch.manual_seed(0)
    layer = nn.Linear(16, 8).bfloat16()
    result = rtn(layer.weight.detach().float(), bits=4)
    packed = PackedLinear(layer, (store(result),)).float()
    assert torch.equal(packed.weight, result.dequantize().bfloat16().float())


@pytest.mark.parametrize("tile", [48, 2**20])  # 3 rows of the 20 at once, or all
def test_gradients_reach_the_inputs_and_the_bias_alone(monkeypatch, tile):
    monkeypatch.setattr("mlcomp.layerwise.packed_linear.TILE", tile)
    layer, packed = pair("four_bits")
    grads = []
    for module in (layer, packed):
        x = torch.linspace(-1, 1, 48).reshape(3, 16).requires_grad_()
        module(x).square().sum().backward()
        grads.append((x.grad, module.bias.grad))
        module.bias.grad = None
    torch.testing.assert_close(grads[0], grads[1])
    assert [name for name, p in packed.named_parameters() if p.requires_grad] == ["layer.bias"]


def test_copies_and_states_carry_the_weight():
    layer, packed = pair("four_bits")
    x = torch.randn(2, 16)
    assert torch.equal(copy.deepcopy(packed)(x), layer(x))
    torch.manual_seed(1)
    other = nn.Linear(16, 20)
    fresh = PackedLinear(other, (store(KINDS["four_bits"](other.weight.detach())),))
    assert not torch.equal(fresh(x), layer(x))
    fresh.load_state_dict(packed.state_dict())
    assert torch.equal(fresh(x), layer(x))
    with torch.inference_mode():
        assert torch.equal(packed(x), layer(x))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 6, 3),
        nn.Conv2d(4, 6, 3, groups=2, padding=1, padding_mode="circular", bias=False),
        nn.Conv3d(2, 4, 2, stride=2),
        nn.ConvTranspose1d(4, 6, 3, groups=2, stride=2),
        nn.ConvTranspose2d(4, 6, 3, output_padding=1, stride=2),
    ],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("parts", ["groups", "one"])
def test_convolutions(layer, parts):
    groups = weight_matrix(layer) if parts == "groups" else weight_matrix(layer).flatten(0, 1)[None]
    results = [rtn(matrix, bits=4) for matrix in groups]
    dense = copy.deepcopy(layer)
    set_weight_matrix(dense, torch.stack([result.dequantize() for result in results]))
    packed = packed_layer(layer, tuple(store(result) for result in results))
    assert isinstance(packed, PackedConv) and packed.kernel_size == layer.kernel_size
    x = torch.randn(2, layer.in_channels, *[6] * len(layer.kernel_size))
    assert torch.equal(packed(x), dense(x)) and torch.equal(copy.deepcopy(packed)(x), dense(x))
    assert torch.equal(packed.weight, dense.weight)
    torch.testing.assert_close(packed.half()(x.half()), dense.half()(x.half()))
    assert layer.bias is None or layer.bias.dtype == torch.float32  # the original is as it was


def test_transformers_conv1d():
    module = pytest.importorskip("transformers.pytorch_utils")
    layer = module.Conv1D(9, 6)
    result = rtn(layer.weight.detach().T, bits=4)
    with torch.no_grad():
        layer.weight.copy_(result.dequantize().T)
    packed = packed_layer(layer, (store(result),))
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(packed(x), layer(x), rtol=1e-6, atol=1e-6)
    assert torch.equal(packed.weight, layer.weight)


def test_a_packed_model_is_not_compressed_again(as_user):
    _, packed = pair("four_bits")
    with pytest.raises(ValueError, match="load the folder without packed=True"):
        compress(nn.Sequential(packed), [torch.randn(3, 16)], KINDS["three_bits"], progress=False)


@pytest.mark.parametrize("kind", ["four_bits", "tensor", "one_bit", "two_four", "plain"])
def test_a_weight_is_looked_through_some_rows_at_a_time(kind, monkeypatch):
    sizes = []

    def watched(part, *rows):
        sizes.append(restore(part, *rows).dequantize().numel())
        return restore(part, *rows)

    monkeypatch.setattr(kept, "CHECKED", 64)  # four rows of 16
    monkeypatch.setattr(kept, "restore", watched)
    pair(kind)
    assert max(sizes) == 64 and sum(sizes) == 20 * 16


def test_bad_input(as_user):
    layer, packed = pair("four_bits")
    good = packed.parts[0]
    with pytest.raises(ValueError, match="do not fit"):
        PackedLinear(nn.Linear(16, 21), (good,))
    with pytest.raises(ValueError, match="do not fit"):
        PackedLinear(layer, (good, good))
    cut = {key: tensor[:-1] if key == "codes" else tensor for key, tensor in good.tensors.items()}
    with pytest.raises(ValueError):
        PackedLinear(layer, (Stored(good.kind, cut, good.facts),))
    with pytest.raises(ValueError, match="one of dense"):
        PackedLinear(layer, (Stored("strange", good.tensors, good.facts),))
    with pytest.raises(RuntimeError):  # torch's own, as for a dense layer
        packed(torch.randn(3, 15))
