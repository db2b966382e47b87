import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.data import make_layer
from mlcomp.obs import gptq, layer_hessian, ldl, ldlq, ldlq_round
from mlcomp.quant import fit_grid, rtn
from mlcomp.quant.post_training.ldlq import feedback_rounding
from tests.examples import examples


def small(out=6, inp=24, samples=60, seed=0):
    weight, x, _ = make_layer(out, inp, samples, seed=seed)
    return weight.double(), layer_hessian(x.double())


def literal_ldl(hessian):
    """Eliminate the last variable, then the one before it: H = (U + I) D (U + I)ᵀ by its definition."""
    h = hessian.clone()
    n = len(h)
    u, d = torch.zeros_like(h), torch.zeros(n, dtype=h.dtype)
    for k in reversed(range(n)):
        d[k] = h[k, k]
        u[:k, k] = h[:k, k] / d[k]
        h = h - d[k] * torch.outer(h[:, k] / d[k], h[:, k] / d[k])
    return u, d


def literal_ldlq(weight, hessian, low=-torch.inf, high=torch.inf):
    """The lecture's line 3: one column at a time, a full product with column k of U̇."""
    u, _ = literal_ldl(hessian)
    w_hat = weight.clone()
    for k in range(weight.shape[1]):
        w_hat[:, k] = torch.round(weight[:, k] + (weight - w_hat) @ u[:, k]).clamp(low, high)
    return w_hat


def loss(weight, rounded, hessian):
    delta = rounded - weight
    return ((delta @ hessian) * delta).sum(1)


@examples(30)
@given(seed=st.integers(0, 10_000), width=st.sampled_from([1, 2, 3, 8, 24]))
def test_decomposition_gives_h_back(seed, width):
    _, h = small(seed=seed)
    u, d = ldl(h, width=width)
    unit = u + torch.eye(24, dtype=h.dtype)
    # Rounding of a Cholesky of 24 inputs: a few eps of the largest entry.
    torch.testing.assert_close(unit @ torch.block_diag(*d) @ unit.T, h, rtol=0, atol=1e-13 * float(h.abs().max()))
    for i in range(0, 24, width):
        assert (u[i:, i : i + width] == 0).all()  # a block feeds on earlier columns only
    assert (torch.linalg.eigvalsh(d) > 0).all()
    assert d.diagonal(dim1=1, dim2=2).sum() <= h.trace() * (1 + 1e-12)  # rounding
    if width == 1:
        literal_u, literal_d = literal_ldl(h)
        # The literal elimination loses a few digits to the condition of H, about 1e3 here.
        torch.testing.assert_close(u, literal_u, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(d.flatten(), literal_d, rtol=1e-9, atol=0)


@examples(30)
@given(seed=st.integers(0, 10_000), block_size=st.sampled_from([1, 5, 8, 24, 100]), ends=st.booleans())
def test_whole_numbers_are_those_of_the_literal_loop(seed, block_size, ends):
    weight, h = small(seed=seed)
    weight = 8 * weight + 1.5
    low, high = (0, 3) if ends else (None, None)
    literal = literal_ldlq(weight, h, *((0, 3) if ends else ()))
    assert torch.equal(ldlq_round(weight, h, low=low, high=high, block_size=block_size), literal)


@examples(30)
@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(1, 6),
    order=st.sampled_from(["natural", "activation", "ascending"]),
    symmetric=st.booleans(),
    clip=st.sampled_from(["minmax", "mse"]),
    scale_dtype=st.sampled_from([None, torch.bfloat16]),
)
def test_codes_are_gptqs_to_the_last(seed, bits, order, symmetric, clip, scale_dtype):
    weight, h = small(seed=seed)
    options = {"bits": bits, "order": order, "symmetric": symmetric, "clip": clip, "scale_dtype": scale_dtype}
    ours, theirs = ldlq(weight, h, **options), gptq(weight, h, **options)
    assert torch.equal(ours.codes, theirs.codes) and torch.equal(ours.dequantize(), theirs.dequantize())
    assert ours.nbytes == theirs.nbytes


def test_codes_are_gptqs_on_a_larger_layer_with_dead_inputs():
    weight, x, _ = make_layer(256, 256, 2048, seed=0)
    x[[3, 100]] = 0
    h = layer_hessian(x.double())
    for bits in (2, 3, 4):
        ours = ldlq(weight.double(), h, bits=bits)
        assert torch.equal(ours.codes, gptq(weight.double(), h, bits=bits).codes)
        assert torch.equal(ours.dequantize()[:, [3, 100]], torch.zeros(256, 2, dtype=torch.float64))


def test_the_other_order_is_another_method():
    # From last to first with the lower factor is GPTQ on the flipped problem; with the upper factor it is not.
    weight, h = small(out=40, seed=3)
    flipped = ldlq(weight.flip(1), h.flip(0, 1), bits=3).codes.flip(1)
    assert torch.equal(flipped, gptq(weight.flip(1), h.flip(0, 1), bits=3).codes.flip(1))
    assert not torch.equal(flipped, ldlq(weight, h, bits=3).codes)


def test_loss_without_ends_is_trace_of_d_over_twelve_for_nearest_and_over_six_for_stochastic():
    weight, x, _ = make_layer(2000, 64, 1000, seed=1)
    h = layer_hessian(x.double()) / 2000
    w = weight.double() * 100  # many steps, so that the fractions are spread evenly
    _, d = ldl(h)
    predicted, plain = float(d.sum()) / 12, float(h.trace()) / 12
    near = float(loss(w, ldlq_round(w, h), h).mean())
    g = torch.Generator().manual_seed(0)
    coin = float(loss(w, ldlq_round(w, h, rounding="stochastic", generator=g), h).mean())
    # 2000 rows: the mean has a standard error of about 2 %.
    assert near == pytest.approx(predicted, rel=0.06)
    assert coin == pytest.approx(2 * predicted, rel=0.06)
    assert float(loss(w, w.round(), h).mean()) == pytest.approx(plain, rel=0.06)
    assert predicted < 0.7 * plain


@examples(20)
@given(seed=st.integers(0, 10_000))
def test_worst_row_stays_below_a_quarter_of_the_trace(seed):
    weight, h = small(seed=seed)
    _, d = ldl(h)
    assert (loss(30 * weight, ldlq_round(30 * weight, h), h) <= float(d.sum()) / 4 * (1 + 1e-9)).all()


def test_stochastic_rounding_is_unbiased():
    w = torch.full((20_000, 2), 0.3, dtype=torch.float64)
    h = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    q = ldlq_round(w, h, rounding="stochastic", generator=torch.Generator().manual_seed(0))
    assert (q.mean(0) - 0.3).abs().max() < 0.02  # standard error 0.004 to 0.006


def counterexample(n=64, out=4, c=0.01):
    """Supplement of the paper: feedback that only ever pushes up, against the end of the grid."""
    h = torch.ones(n, n, dtype=torch.float64) + torch.eye(n, dtype=torch.float64)
    h[-1, -1] = 1
    h[0, 1:-1] += 2 * c
    h[1:-1, 0] += 2 * c
    h[0, -1] += c
    h[-1, 0] += c
    h[0, 0] += 4 * c + n * c**2
    weight = 0.499 + 0.002 * (torch.arange(n, dtype=torch.float64) % 2)
    return weight.expand(out, n).contiguous(), h


def test_published_counterexample_where_clamping_makes_ldlq_worse_than_rounding():
    w, h = counterexample(256)
    plain = float(loss(w, w.round(), h).mean())
    free = float(loss(w, ldlq_round(w, h), h).mean())
    clamped = float(loss(w, ldlq_round(w, h, low=0, high=3), h).mean())
    assert free < plain < 0.01 * clamped


def test_vector_rounding_sees_what_is_left_of_each_goal():
    # Q that returns its goal makes no error, so nothing feeds back; a Q that makes one feeds it to all later blocks.
    weight, h = small()
    u, _ = ldl(h, width=4)
    assert torch.equal(feedback_rounding(weight, u, lambda k, goal: goal, width=4, block_size=8), weight)
    lost = feedback_rounding(weight, u, lambda k, goal: goal * (k != 4), width=4, block_size=8)
    eta = torch.zeros_like(weight)  # what Q itself did: (Ŵ − W)(U̇ + I) = η
    eta[:, 4:8] = -weight[:, 4:8]
    expected = weight + eta @ torch.linalg.inv(u + torch.eye(24, dtype=u.dtype))
    torch.testing.assert_close(lost, expected, rtol=1e-11, atol=1e-11)  # float64 rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_identity_hessian_gives_round_to_nearest(dtype):
    weight = small()[0].to(dtype)
    q = ldlq(weight, 3.7 * torch.eye(24), bits=3)
    assert torch.equal(q.codes, rtn(weight, bits=3).codes)
    assert q.step.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_constant_rows_and_all_inputs_dead():
    weight, h = small()
    weight[0], weight[1] = 0.0, 0.25
    q = ldlq(weight, h, bits=4).dequantize()
    assert torch.equal(q[0], torch.zeros_like(q[0]))
    # Both ends of [0, 0.25] are grid points; the step is 0.25/15 rounded.
    torch.testing.assert_close(q[1], torch.full_like(q[1], 0.25), rtol=1e-15, atol=0)
    assert torch.equal(ldlq(torch.ones(2, 4), torch.zeros(4, 4), bits=4).dequantize(), torch.zeros(2, 4))


def test_arguments_stay_as_they_were_and_a_seed_repeats_the_result():
    weight, h = small()
    before = weight.clone(), h.clone()
    runs = [
        ldlq(weight, h, bits=2, rounding="stochastic", generator=torch.Generator().manual_seed(s)).codes
        for s in (0, 0, 1)
    ]
    assert torch.equal(weight, before[0]) and torch.equal(h, before[1])
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_stochastic_codes_stay_on_the_grid():
    weight, h = small()
    q = ldlq(weight, h, bits=2, rounding="stochastic", generator=torch.Generator().manual_seed(0))
    grid = fit_grid(weight, bits=2)
    assert q.codes.max() <= 3 and torch.equal(q.step, grid.step) and torch.equal(q.zero, grid.zero)


@pytest.mark.parametrize("samples", [12, 23])
def test_a_deficiency_hidden_by_float32_rounding_is_seen(as_user, samples):
    for seed in range(8):
        weight, x, _ = make_layer(4, 24, samples, seed=seed)
        with pytest.raises(ValueError, match="singular"):
            ldlq(weight, layer_hessian(x), bits=4, damp=0.0)
        ldlq(weight, layer_hessian(x), bits=4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bits": 0}, ValueError, "bits"),
        ({"bits": 4.0}, ValueError, "bits"),
        ({"clip": "none"}, ValueError, "clip"),
        ({"order": "random"}, ValueError, "order must be one of natural"),
        ({"rounding": "up"}, ValueError, "rounding must be one of nearest, stochastic"),
        ({"rounding": "stochastic"}, ValueError, "generator"),
        ({"block_size": 0}, ValueError, "block_size"),
        ({"damp": -0.1}, ValueError, "damp"),
        ({"weight": torch.full((6, 24), torch.nan)}, ValueError, "NaN"),
        ({"weight": torch.ones(6, 24, dtype=torch.int64)}, TypeError, "floating"),
        ({"hessian": torch.eye(23)}, ValueError, "24 inputs"),
        ({"hessian": torch.ones(24, 24).triu()}, ValueError, "symmetric"),
        ({"hessian": torch.eye(24) * torch.inf}, ValueError, "NaN"),
    ],
)
def test_bad_input_is_a_clear_error(as_user, change, error, message):
    weight, h = small()
    arguments = {"weight": weight, "hessian": h, "bits": 4, **change}
    with pytest.raises(error, match=message):
        ldlq(arguments.pop("weight"), arguments.pop("hessian"), **arguments)


def test_bad_width(as_user):
    for width in (5, 0, 2.0):
        with pytest.raises(ValueError, match="width must divide the 24 inputs"):
            ldl(torch.eye(24), width=width)
