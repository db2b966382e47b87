import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mlcomp.formats import absmax_int8, int8_matmul
from mlcomp.quant import LLMInt8Linear, llm_int8, outlier_columns, outlier_features
from tests.examples import examples


def case(tokens=5, inp=24, out=7, outliers=(3, 10), seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, inp, generator=g)
    x[0, list(outliers)] = 40.0
    return x, torch.randn(out, inp, generator=g)


def literal(x, weight, threshold):
    """Equation (8) with Python's whole numbers, entry by entry."""
    outlying = [k for k in range(x.shape[1]) if any(abs(v) >= threshold for v in x[:, k].tolist())]
    rest = [k for k in range(x.shape[1]) if k not in outlying]
    y = torch.zeros(len(x), len(weight), dtype=torch.float64)
    for t, row in enumerate(x.tolist()):
        s_x = max((abs(row[k]) for k in rest), default=0) / 127 or 1.0
        for n, w in enumerate(weight.tolist()):
            s_w = max(map(abs, w)) / 127 or 1.0
            total = sum(round(row[k] / s_x) * round(w[k] / s_w) for k in rest)
            y[t, n] = sum(row[k] * w[k] for k in outlying) + s_x * s_w * total
    return y


@pytest.mark.parametrize("threshold", [0.5, 2.5, 6.0, 1e9])
def test_is_the_papers_equation(threshold):
    x, weight = case()
    # Three float32 roundings of values up to 40·24; a code that differs by one would be off by 4e-3.
    torch.testing.assert_close(
        llm_int8(x, weight, threshold=threshold).double(), literal(x, weight, threshold), atol=2e-4, rtol=1e-6
    )


@given(st.integers(1, 6), st.integers(1, 30), st.integers(1, 5), st.floats(0.1, 8), st.integers(0, 10**6))
@examples(40)
def test_the_error_is_within_the_bound(tokens, inp, out, threshold, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, inp, generator=g, dtype=torch.float64) * torch.rand(inp, generator=g).mul(6)
    weight = torch.randn(out, inp, generator=g, dtype=torch.float64)
    regular = x.clone()
    regular[:, outlier_columns(x, threshold=threshold)] = 0
    s_x, s_w = absmax_int8(regular, -1).scale, absmax_int8(weight, -1).scale
    kept = (regular != 0).double()
    bound = regular.abs().sum(1, keepdim=True) * s_w.T / 2 + s_x * (kept @ weight.abs().T) / 2
    bound += s_x * s_w.T * kept.sum(1, keepdim=True) / 4
    error = (llm_int8(x, weight, threshold=threshold) - x @ weight.T).abs()
    assert (error <= bound * (1 + 1e-6) + 1e-5).all()  # the integer part is scaled in float32
    assert (regular.abs().amax(1) < threshold).all()


def test_without_outliers_it_is_the_vector_wise_product():
    x, weight = case()
    want = int8_matmul(absmax_int8(x, -1), absmax_int8(weight, -1))
    assert torch.equal(llm_int8(x, weight, threshold=math.inf), want)


def test_of_outliers_alone_it_is_the_product():
    x, weight = case()
    torch.testing.assert_close(llm_int8(x, weight, threshold=1e-9), x @ weight.T, atol=1e-5, rtol=1e-6)


def test_one_outlier_column_no_longer_spoils_the_row():
    x, weight = case(tokens=64, inp=256, out=32)
    x[:, 3] = 60.0
    exact = x.double() @ weight.double().T
    plain, split = (llm_int8(x, weight, threshold=t).double() - exact for t in (math.inf, 6.0))
    assert split.square().mean() < plain.square().mean() / 30  # rows now end at about 3 instead of 60


def test_a_stored_weight_has_rounded_outlier_columns_too():
    x, weight = case()
    stored = absmax_int8(weight, -1)
    got = llm_int8(x, stored)
    torch.testing.assert_close(got, llm_int8(x, stored.dequantize()), atol=1e-4, rtol=1e-6)
    assert not torch.allclose(got, llm_int8(x, weight), atol=1e-3)


def test_columns():
    x, _ = case()
    assert outlier_columns(x).tolist() == [3, 10]
    assert outlier_columns(-x, threshold=40).tolist() == [3, 10]  # "at least", and magnitudes
    assert outlier_columns(x, threshold=40.5).tolist() == []


def test_against_bitsandbytes():
    """Its own operations; its layer multiplies unquantized activations on a CPU, so it is no truth."""
    pytest.importorskip("bitsandbytes")
    ops = torch.ops.bitsandbytes
    x, weight = case(tokens=32, inp=64, out=16)
    x[:, [3, 10]] = 40.0  # it takes the row maxima without the outlying entries: let the columns hold no others
    codes, scale, _ = ops.int8_vectorwise_quant(weight.clone(), 0.0)
    ours = absmax_int8(weight, -1)
    assert torch.equal(codes, ours.codes)
    torch.testing.assert_close(scale / 127, ours.scale[:, 0], rtol=1e-6, atol=0)
    x_codes, x_scale, columns = ops.int8_vectorwise_quant(x.clone(), 6.0)
    assert columns.tolist() == outlier_columns(x).tolist()
    theirs, _ = ops.int8_mixed_scaled_mm(x, x_codes, codes, x_scale, scale, columns, None)
    integers = llm_int8(x.index_fill(1, columns, 0), ours, threshold=math.inf)
    # Its 1/127² is 6.200124e-05 for 6.2000124e-05, 1.8e-5 too large; the rest is float32 rounding of sums up to 200.
    assert ((theirs - llm_int8(x, ours)).abs() <= 1.9e-5 * integers.abs() + 1e-4).all()
    part = ops.int8_scaled_mm(x_codes, codes, x_scale, scale, dtype=torch.float32)
    torch.testing.assert_close(part * (6.2000124e-05 / 6.200124e-05), integers, rtol=1e-6, atol=1e-5)


def test_the_layer():
    x, weight = case(inp=24)
    linear = nn.Linear(24, 7)
    with torch.no_grad():
        linear.weight.copy_(weight)
    layer = LLMInt8Linear(linear)
    got = layer(x.reshape(1, 5, 24))
    assert got.shape == (1, 5, 7)
    torch.testing.assert_close(got[0], llm_int8(x, absmax_int8(weight, -1)) + linear.bias)
    assert layer.nbytes == 24 * 7 + 7 * 4 + 7 * 4
    assert LLMInt8Linear(nn.Linear(24, 7, bias=False)).bias is None
    assert set(layer.state_dict()) == {"codes", "scale", "bias"}


def test_outlier_features_by_hand():
    # Four layers of ten positions and five dimensions, threshold 6.
    hidden = torch.zeros(4, 10, 5)
    hidden[0, :3, 0] = 7  # one layer of four, 3 of 40 positions: 25 % and 7.5 %
    hidden[1, :2, 1] = -7  # 25 %, but 5 % of the positions
    hidden[:, 0, 2] = 6  # all layers, 10 %, exactly at the threshold
    hidden[:, :, 3] = 5.9
    assert outlier_features(list(hidden)).tolist() == [0, 2]
    assert outlier_features(list(hidden), layer_share=0.26).tolist() == [2]
    assert outlier_features(list(hidden), position_share=0.05).tolist() == [0, 1, 2]
    assert outlier_features(list(hidden), layer_share=0, position_share=0).tolist() == [0, 1, 2]
    assert outlier_features(list(hidden), threshold=5).tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    "call",
    [
        lambda: outlier_columns(torch.ones(3, 4), threshold=0.0),
        lambda: outlier_columns(torch.ones(3)),
        lambda: llm_int8(torch.ones(3, 4), torch.ones(2, 5)),
        lambda: llm_int8(torch.ones(3, 4), torch.ones(2, 4), threshold=-1),
        lambda: llm_int8(torch.ones(3, 4), absmax_int8(torch.ones(2, 4))),
        lambda: llm_int8(torch.full((3, 4), math.nan), torch.ones(2, 4)),
        lambda: outlier_features([]),
        lambda: outlier_features([torch.ones(3, 4), torch.ones(3, 5)]),
        lambda: outlier_features([torch.ones(0, 4)]),
        lambda: outlier_features([torch.ones(3, 4)], layer_share=1.5),
        lambda: LLMInt8Linear(nn.Linear(3, 4), threshold=math.nan),
    ],
)
def test_bad_input(call, as_user):
    with pytest.raises(ValueError, match=r"must|scale a row|NaN"):
        call()


def test_another_layer(as_user):
    with pytest.raises(TypeError, match=r"must be an nn\.Linear, got ReLU"):
        LLMInt8Linear(nn.ReLU())
