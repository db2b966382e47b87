import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.data import make_layer
from mlcomp.metrics import hessian_error
from mlcomp.obs import gptq, layer_hessian, spqr
from tests.examples import examples


def small(out=20, inp=32, samples=90, seed=0, outliers=True):
    weight, x, _ = make_layer(out, inp, samples, seed=seed)
    if outliers:
        g = torch.Generator().manual_seed(seed)
        weight[torch.rand(weight.shape, generator=g) < 0.02] *= 8
    return weight, x, layer_hessian(x)


def literal_second_level(values, bits, rows):
    """Each run of rows on its own grid of 2^bits values; offset and step of the grid in half precision."""
    result = []
    for start in range(0, len(values), rows):
        part = [float(v) for v in values[start : start + rows]]
        low = float(torch.tensor(min(part), dtype=torch.float64).half())
        step = float(torch.tensor((max(part) - low) / (2**bits - 1), dtype=torch.float64).half())
        for v in part:
            code = min(max(round((v - low) / step), 0), 2**bits - 1) if step > 0 else 0
            result.append(low + step * code)
    return torch.tensor(result, dtype=torch.float64)


def literal_spqr(weight, hessian, *, bits, size, statistic_bits, rows, threshold, damp=0.01):
    """Algorithm 1 with plain loops; the inverse Hessian is updated by the lemma, with no factor and no batches."""
    h = hessian.double()
    h = h + damp * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    start = torch.linalg.inv(h)
    pivots, inverse = [], start
    for p in range(len(h)):  # 1/[H_F⁻¹]_pp: the cost of a unit error at step p
        pivots.append(float(inverse[p, p]))
        inverse = inverse - torch.outer(inverse[:, p], inverse[p]) / inverse[p, p]
    w = weight.double().clone()
    limit = threshold * float((w.square().mean(0) / torch.tensor(pivots, dtype=torch.float64)).mean())
    top = 2**bits - 1

    def fit(values):
        step = (max(values) - min(values)) / top
        return step, -min(values) / step

    def rounded(value, step, zero):
        return (min(max(round(value / step + zero), 0), top) - zero) * step

    outliers = torch.zeros(w.shape, dtype=torch.bool)
    result = torch.zeros_like(w)
    inverse = start
    for p in range(w.shape[1]):
        if p % size == 0:
            steps, zeros = [], []
            for row in w[:, p : p + size].tolist():

                def cost(left_out, row=row, p=p):
                    rest = [j for j in range(size) if j != left_out]
                    step, zero = fit([row[j] for j in rest])
                    return sum((row[j] - rounded(row[j], step, zero)) ** 2 / pivots[p + j] for j in rest)

                base = cost(None)
                inliers = [v for j, v in enumerate(row) if base - cost(j) <= limit]
                step, zero = fit(inliers if len(inliers) >= 2 else row)
                steps.append(step)
                zeros.append(zero)
            steps = literal_second_level(steps, statistic_bits, rows)
            zeros = literal_second_level(zeros, statistic_bits, rows)
        for i in range(len(w)):
            value = rounded(float(w[i, p]), float(steps[i]), float(zeros[i]))
            if (float(w[i, p]) - value) ** 2 / pivots[p] > limit:
                value = float(w[i, p].half())
                outliers[i, p] = True
            result[i, p] = value
        w = w - torch.outer((w[:, p] - result[:, p]) / inverse[p, p], inverse[p])
        inverse = inverse - torch.outer(inverse[:, p], inverse[p]) / inverse[p, p]
    return result, outliers


@examples(8)
@given(
    seed=st.integers(0, 1000),
    bits=st.integers(2, 4),
    size=st.sampled_from([8, 16]),
    statistic_bits=st.integers(2, 8),
    rows=st.sampled_from([5, 16, 64]),
    threshold=st.sampled_from([0.05, 0.3, 1.0]),
)
def test_is_the_literal_algorithm(seed, bits, size, statistic_bits, rows, threshold):
    weight, _, hessian = small(seed=seed)
    unit = 2.0 ** math.ceil(math.log2(float(weight.abs().max())))
    literal, outliers = literal_spqr(
        weight / unit, hessian, bits=bits, size=size, statistic_bits=statistic_bits, rows=rows, threshold=threshold
    )
    q = spqr(
        weight, hessian, bits=bits, group_size=size, statistic_bits=statistic_bits, statistic_rows=rows,
        threshold=threshold, block_size=20,
    )  # fmt: skip
    assert q.unit == unit
    # A value at a tie (of a code, of float16) may fall the other way by rounding, and what follows it with it.
    same = (q.dequantize().double() - unit * literal).abs() < 1e-6 * unit
    assert same.double().mean() > 0.95 and (q.outliers == outliers).double().mean() > 0.99


@examples(8)
@given(seed=st.integers(0, 1000), bits=st.integers(1, 5), size=st.sampled_from([1, 8, 16, 32]))
def test_without_second_level_and_outliers_it_is_gptq_with_groups(seed, bits, size):
    weight, _, hessian = small(seed=seed)
    q = spqr(weight.double(), hessian, bits=bits, group_size=size, statistic_bits=None, threshold=None)
    plain = gptq(weight.double(), hessian, bits=bits, group_size=size)
    assert torch.equal(q.codes, plain.codes) and len(q.values) == 0
    torch.testing.assert_close(q.dequantize(), plain.dequantize(), rtol=1e-15, atol=0)  # a division by a power of two
    assert q.nbytes == plain.nbytes + q.parts["row pointers"] + q.parts["unit"]


def test_outliers_decode_to_their_weights_in_float16_and_the_rest_costs_less_than_the_threshold():
    weight, _, _ = small()
    q = spqr(weight, torch.eye(32), bits=3, threshold=0.2, damp=0.0)  # H = I: nothing is compensated
    mask, values = q.outliers, q.dequantize()
    assert 0 < int(mask.sum()) < 60
    assert torch.equal(values[mask], (weight[mask] / q.unit).half().float() * q.unit)
    limit = 0.2 * float(weight.double().square().mean())
    errors = (weight - values).double().square()
    assert (errors[~mask] <= limit * (1 + 1e-9)).all()  # rounding of the limit
    rows = torch.arange(20).repeat_interleave(q.pointers.diff())
    assert torch.equal(torch.stack([rows, q.columns.long()], 1), mask.nonzero())  # compressed sparse rows


def test_leaving_outliers_out_of_the_fit_gains():
    weight, _, hessian = small(out=64, inp=64, samples=300)
    none = spqr(weight, hessian, bits=3, threshold=None)
    some = spqr(weight, hessian, bits=3, threshold=0.5)
    assert float(some.outliers.double().mean()) < 0.05
    error_none, error_some = (hessian_error(weight, q.dequantize(), hessian) for q in (none, some))
    assert error_some < 0.75 * error_none
    # Each weight saved costs 32 bits: more outliers, less error.
    more = spqr(weight, hessian, bits=3, threshold=0.05)
    assert more.nbytes > some.nbytes and hessian_error(weight, more.dequantize(), hessian) < error_some


def test_second_level_costs_little():
    weight, _, hessian = small(out=64, inp=64, samples=300, outliers=False)
    exact = spqr(weight, hessian, bits=3, statistic_bits=None, threshold=None)
    coarse = spqr(weight, hessian, bits=3, statistic_bits=3, threshold=None)
    assert coarse.bits_per_weight < exact.bits_per_weight - 1.2
    error = hessian_error(weight, coarse.dequantize(), hessian)
    assert error < 1.3 * hessian_error(weight, exact.dequantize(), hessian)


@examples(8)
@given(seed=st.integers(0, 1000), x_power=st.integers(-20, 20), w_power=st.integers(-30, 30))
def test_scales_do_not_matter(seed, x_power, w_power):
    weight, x, hessian = small(seed=seed)
    q = spqr(weight, hessian, bits=3)
    scaled = spqr(weight * 2.0**w_power, layer_hessian(x * 2.0**x_power), bits=3)
    assert torch.equal(scaled.codes, q.codes) and torch.equal(scaled.columns, q.columns)
    assert torch.equal(scaled.dequantize(), q.dequantize() * 2.0**w_power)


@examples(8)
@given(seed=st.integers(0, 1000), block_size=st.sampled_from([1, 7, 16, 32, 100]))
def test_block_size_changes_nothing(seed, block_size):
    weight, _, hessian = small(seed=seed)
    a, b = (spqr(weight, hessian, bits=3, block_size=s) for s in (block_size, 32))
    # float64 rounding may move a value across a tie of a code or of float16
    assert (a.codes == b.codes).double().mean() > 0.99 and (a.outliers == b.outliers).double().mean() > 0.99


@pytest.mark.parametrize("order", ["activation", "ascending"])
def test_another_order_is_the_same_problem_with_its_columns_moved(order):
    weight, _, hessian = small()
    columns = hessian.diagonal().argsort(descending=order == "activation", stable=True)
    moved = spqr(weight[:, columns].contiguous(), hessian[columns][:, columns].contiguous(), bits=3)
    q = spqr(weight, hessian, bits=3, order=order)
    assert torch.equal(q.codes, moved.codes) and torch.equal(q.columns, moved.columns)
    assert torch.equal(q.dequantize()[:, columns], moved.dequantize())
    assert torch.equal(q.outliers[:, columns], moved.outliers) and q.outliers.any()
    assert q.nbytes == moved.nbytes + 2 * 32
    plain = gptq(weight.double(), hessian, bits=3, group_size=8, order=order)
    bare = spqr(weight.double(), hessian, bits=3, group_size=8, statistic_bits=None, threshold=None, order=order)
    torch.testing.assert_close(bare.dequantize(), plain.dequantize(), rtol=1e-15, atol=0)


def test_dead_inputs_constant_rows_and_zero_weight():
    weight, x, _ = small()
    x[[3, 20]] = 0
    weight[0], weight[1] = 0.0, 0.25
    hessian = layer_hessian(x)
    loud = weight.clone()
    loud[:, [3, 20]] *= 1000
    q = spqr(loud, hessian, bits=4)
    assert torch.equal(q.codes, spqr(weight, hessian, bits=4).codes)
    assert hessian_error(weight, q.dequantize(), hessian) < 0.01
    for zero in (torch.zeros(20, 32), torch.zeros(1, 32)):
        assert torch.equal(spqr(zero, hessian, bits=2).dequantize(), zero)
    assert torch.equal(spqr(torch.ones(2, 16), torch.zeros(16, 16), bits=2).dequantize(), torch.zeros(2, 16))
    same = spqr(torch.full((4, 16), 0.25), torch.eye(16), bits=2).dequantize()
    torch.testing.assert_close(same, torch.full((4, 16), 0.25), rtol=1e-3, atol=0)  # float16 statistics


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_and_arguments(dtype):
    weight, _, hessian = small()
    weight = weight.to(dtype)
    before = weight.clone(), hessian.clone()
    q = spqr(weight, hessian, bits=2)
    assert q.dequantize().dtype == torch.float32 and torch.isfinite(q.dequantize()).all()
    assert torch.equal(weight, before[0]) and torch.equal(hessian, before[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 0}, "bits must be"),
        ({"group_size": 7}, "group_size must divide"),
        ({"statistic_bits": 9}, "bits must be"),
        ({"statistic_rows": 0}, "statistic_rows must be"),
        ({"threshold": 0.0}, "threshold must be positive"),
        ({"threshold": float("nan")}, "threshold must be positive"),
        ({"order": "random"}, "order must be one of natural"),
        ({"damp": -1.0}, "damp"),
        ({"block_size": 0}, "block_size"),
        ({"weight": torch.full((20, 32), torch.nan)}, "NaN"),
        ({"hessian": torch.eye(31)}, "32 inputs"),
        ({"hessian": torch.ones(32, 32), "damp": 0.0}, "singular"),
        ({"weight": torch.ones(1, 2**16 + 16), "hessian": torch.eye(1)}, "65536"),
    ],
)
def test_bad_input_is_a_clear_error(as_user, change, message):
    weight, _, hessian = small()
    arguments = {"weight": weight, "hessian": hessian, "bits": 3, **change}
    with pytest.raises(ValueError, match=message):
        spqr(arguments.pop("weight"), arguments.pop("hessian"), **arguments)
