import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.data import make_layer
from mlcomp.formats import AdditiveCodes
from mlcomp.metrics import relative_error
from mlcomp.obs import gptq, layer_hessian
from mlcomp.quant.additive.aqlm import aqlm, residual_kmeans, stored
from mlcomp.quant.additive.aqlm_beam_search import row_loss
from tests.examples import examples


@pytest.fixture(scope="module")
def layer():
    weight, calibration, held_out = make_layer(256, 256, 2048, seed=0)
    return weight, calibration, held_out, layer_hessian(calibration)


# The authors' code on the same layer: bits a weight with 16-bit codebooks and scales, and the calibration error.
AUTHORS = [
    pytest.param((8, 2, 8), 3.0625, 0.0295, marks=pytest.mark.slow),
    ((4, 1, 8), 2.3125, 0.0323),
    pytest.param((4, 2, 6), 3.1875, 0.0126, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("sizes", "bits", "error"), AUTHORS)
@pytest.mark.slow
def test_beats_the_authors_code_at_the_same_size(layer, sizes, bits, error):
    weight, calibration, held_out, hessian = layer
    dim, books, code_bits = sizes
    q = aqlm(weight, hessian, dim=dim, books=books, code_bits=code_bits)
    assert q.bits_per_weight == bits
    ours = relative_error(weight, q.dequantize(), calibration)
    assert ours < 0.96 * error
    assert relative_error(weight, q.dequantize(), held_out) < 1.2 * ours


@pytest.mark.slow
def test_beats_gptq_at_two_bits(layer):
    weight, calibration, held_out, hessian = layer
    ours = aqlm(weight, hessian, dim=4, books=1, code_bits=7)  # 2 bits, all counted
    theirs = [
        gptq(weight, hessian, bits=2, order=order, clip=clip)
        for order in ("natural", "activation")
        for clip in ("minmax", "mse")
    ]
    assert ours.bits_per_weight < min(q.bits_per_weight for q in theirs)
    for x in (calibration, held_out):
        assert relative_error(weight, ours.dequantize(), x) < 0.85 * min(
            relative_error(weight, q.dequantize(), x) for q in theirs
        )


def small(out=24, inp=16, seed=0):
    weight, x, _ = make_layer(out, inp, 100, seed=seed)
    return weight, layer_hessian(x)


@pytest.mark.slow
@examples(10)
@given(
    seed=st.integers(0, 1000),
    update=st.sampled_from(["least_squares", "adam"]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    beam=st.integers(1, 3),
)
def test_the_loss_falls_in_every_round(seed, update, dtype, beam):
    weight, hessian = small(seed=seed)
    options = {"dim": 4, "books": 2, "code_bits": 4, "update": update, "dtype": dtype, "beam": beam, "damp": 0.0}
    losses = []
    for rounds in range(4):
        q = aqlm(weight, hessian, max_rounds=rounds, tau=0.0, **options)
        losses.append(float(row_loss(weight, q, hessian.double()).sum()))
    assert losses == sorted(losses, reverse=True) and losses[1] < losses[0]


def test_tau_ends_with_the_first_round_that_gains_less():
    weight, hessian = small()
    options = {"dim": 4, "books": 1, "code_bits": 4, "damp": 0.0, "dtype": torch.float64}
    made = [aqlm(weight, hessian, max_rounds=n, tau=0.0, **options) for n in range(6)]
    losses = [float(row_loss(weight, q, hessian.double()).sum()) for q in made]
    gains = [1 - after / before for before, after in itertools.pairwise(losses)]
    tried = {0.5 * (gains[0] + gains[1]), 0.5 * (gains[1] + gains[2]), 1e-6}
    for tau in tried:
        short = [n for n, gain in enumerate(gains, 1) if gain < tau]
        q = aqlm(weight, hessian, tau=tau, max_rounds=5, **options)
        assert torch.equal(q.codes, made[short[0] if short else 5].codes)
    assert gains[0] > gains[1] > gains[2] > 0 and not torch.equal(made[1].codes, made[2].codes)


def literal_pv(weight, hessian, codes, codebook):
    """Algorithm 1 of PV-tuning for one row of scalars: both steps over everything there is, until nothing changes."""
    w, h = weight[0], hessian
    losses = []
    while True:
        # P step: all values for this partition, by the normal equations of the one-hot matrix.
        one_hot = torch.nn.functional.one_hot(codes, len(codebook)).double()
        used = one_hot.sum(0) > 0
        normal = one_hot.T @ h @ one_hot
        values = codebook.clone()
        values[used] = torch.linalg.solve(normal[used][:, used], (one_hot.T @ h @ w)[used])
        # V step: all assignments of these values.
        best, best_codes = None, None
        for choice in itertools.product(range(len(codebook)), repeat=len(w)):
            delta = w - values[list(choice)]
            value = float(delta @ h @ delta)
            if best is None or value < best - 1e-12:
                best, best_codes = value, torch.tensor(choice)
        losses.append(best)
        if len(losses) > 1 and not best < losses[-2] * (1 - 1e-9):
            return losses
        codes, codebook = best_codes, values


def test_with_a_full_beam_it_is_the_pv_algorithm():
    for seed in range(4):
        weight, x, _ = make_layer(1, 6, 40, seed=seed)
        weight, hessian = weight.double(), layer_hessian(x.double())
        g = torch.Generator().manual_seed(seed)
        codes = torch.randint(3, (6,), generator=g)
        codebook = torch.randn(3, generator=g, dtype=torch.float64) * weight.std()
        want = literal_pv(weight, hessian, codes, codebook)
        assert want == sorted(want, reverse=True)
        start = AdditiveCodes(codes.to(torch.uint8)[None, :, None], codebook[None, :, None], torch.ones(1).double())
        q = aqlm(
            weight, hessian, start=start, dim=1, books=1, code_bits=2, beam=3**6, steps=200, tau=0.0, damp=0.0,
            dtype=torch.float64, max_rounds=50,
        )  # fmt: skip
        ours = float(row_loss(weight, q, hessian).sum())
        # Where a code is used by no weight its entry differs, so that the paths may part: never for the worse.
        assert ours == pytest.approx(want[-1], rel=1e-6)
        again = aqlm(weight, hessian, start=q, dim=1, beam=3**6, steps=200, tau=0.0, damp=0.0, dtype=torch.float64)
        assert torch.equal(again.codes, q.codes)  # a fixed point


def test_more_rounds_from_a_start_are_the_same_as_at_once():
    weight, hessian = small()
    options = {"dim": 4, "books": 1, "code_bits": 4, "tau": 0.0}
    first = aqlm(weight, hessian, max_rounds=2, **options)
    onwards = aqlm(weight, hessian, max_rounds=2, start=first, **options)
    at_once = aqlm(weight, hessian, max_rounds=4, **options)
    assert torch.equal(onwards.codes, at_once.codes)


def test_exact_weights_are_found_again():
    g = torch.Generator().manual_seed(0)
    codebook = torch.randn(8, 4, generator=g)
    codes = torch.randint(8, (40, 6), generator=g)
    weight = codebook[codes].flatten(1)
    disturbed = codebook + 0.1 * torch.randn(8, 4, generator=g)
    start = AdditiveCodes(codes.to(torch.uint8)[:, :, None], disturbed[None], torch.ones(40))
    q = aqlm(weight, small(inp=24)[1], dim=4, start=start, dtype=torch.float32, damp=0.0, tau=1e-3)
    torch.testing.assert_close(q.dequantize(), weight, rtol=1e-3, atol=1e-3)


def test_initialization_is_residual_kmeans():
    weight, hessian = small(out=60)
    one, two = (residual_kmeans(weight, dim=4, books=books, code_bits=4) for books in (1, 2))
    assert torch.equal(two.codes[:, :, :1], one.codes) and torch.equal(two.codebooks[0], one.codebooks[0])
    errors = [float((weight - q.dequantize()).square().sum()) for q in (one, two)]
    assert errors[1] < 0.5 * errors[0]
    torch.testing.assert_close(one.scale, weight.square().mean(1).sqrt())
    first = aqlm(weight, hessian, dim=4, books=2, code_bits=4, max_rounds=0)
    assert torch.equal(first.codes, two.codes)


def test_same_seed_same_codes():
    weight, hessian = small()
    a, b, c = (
        aqlm(weight, hessian, dim=4, code_bits=4, generator=torch.Generator().manual_seed(s)) for s in (5, 5, 6)
    )
    assert torch.equal(a.codes, b.codes) and not torch.equal(a.codes, c.codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dead_inputs_zero_rows_and_dtypes(dtype):
    weight, x, _ = make_layer(32, 16, 100, seed=0)
    x[[2, 9]] = 0
    weight[5] = 0
    weight[6] = 0.25
    hessian = layer_hessian(x)
    quiet, loud = weight.to(dtype), weight.to(dtype)
    loud[:, [2, 9]] *= 100
    a, b = (aqlm(w, hessian, dim=4, code_bits=4) for w in (quiet, loud))
    assert torch.equal(a.codes, b.codes) and torch.equal(a.codebooks, b.codebooks)
    assert torch.equal(a.dequantize()[5], torch.zeros(16, dtype=torch.float16))
    assert a.dequantize().isfinite().all()
    q = aqlm(weight, torch.zeros(16, 16), dim=4, code_bits=4)  # no input is ever active
    assert q.dequantize().isfinite().all()


DEAD = [2, 9]


def damping_case():
    """Return (weight, H, live): few samples of very unlike size, two inputs never active; float64."""
    weight, x, _ = make_layer(24, 16, 10, seed=3)
    x = x.double() * torch.logspace(1, -1, 16, dtype=torch.float64)[:, None]
    x[DEAD] = 0
    live = torch.ones(16, dtype=torch.float64)
    live[DEAD] = 0
    return weight.double(), layer_hessian(x), live


@pytest.mark.parametrize("damp", [0.0, 0.01, 0.5, 30.0])
def test_damping_adds_its_share_of_the_mean_live_diagonal_to_the_live_diagonal(damp):
    """The same as without damping on H + λI, λ from its definition; a dead input gets nothing."""
    weight, hessian, live = damping_case()
    options = {"dim": 4, "code_bits": 4, "dtype": torch.float64, "max_rounds": 4}
    diagonal = [float(hessian[i, i]) for i in range(16) if i not in DEAD]
    ridge = hessian + damp * sum(diagonal) / len(diagonal) * torch.diag(live)
    ours = aqlm(weight, hessian, damp=damp, **options)
    want = aqlm(weight, ridge, damp=0.0, **options)
    assert torch.equal(ours.codes, want.codes)
    torch.testing.assert_close(ours.codebooks, want.codebooks)  # λ summed in another order, in float64
    plain = aqlm(weight, hessian, damp=0.0, **options)
    assert torch.equal(ours.codes, plain.codes) == (damp == 0.0)


def test_codes_are_the_best_of_all_for_the_damped_hessian():
    """Brute force over all codes with the codebook that came out: best for H + λI, and not for H."""
    weight, hessian, live = damping_case()
    weight, damp = weight[:6], 0.5
    ridge = hessian + damp * hessian.diagonal()[live > 0].mean() * torch.diag(live)
    options = {"dim": 4, "books": 1, "code_bits": 2, "dtype": torch.float64, "tau": 0.0}
    q = aqlm(weight, hessian, damp=damp, beam=4**4, **options)
    sums = q.codebooks[0][torch.tensor(list(itertools.product(range(4), repeat=4)))].flatten(1)
    delta = weight[:, None] - q.scale[:, None, None] * sums
    best, of_plain = (torch.einsum("npi,ij,npj->np", delta, h, delta).min(1).values for h in (ridge, hessian))
    torch.testing.assert_close(row_loss(weight, q, ridge), best)
    assert (row_loss(weight, q, hessian) > 1.01 * of_plain).any()


def test_the_mean_square_error_of_live_weights_is_the_limit_of_large_damping():
    weight, hessian, live = damping_case()
    options = {"dim": 4, "books": 1, "code_bits": 3, "dtype": torch.float64}
    # What is left of H is 1e-12 of the ridge, and moves the codebooks by about as much.
    ours, want = aqlm(weight, hessian, damp=1e12, **options), aqlm(weight, torch.diag(live), damp=0.0, **options)
    assert torch.equal(ours.codes, want.codes)
    torch.testing.assert_close(ours.codebooks, want.codebooks, rtol=1e-9, atol=1e-9)


def test_rank_deficient_and_ill_conditioned():
    weight, x, _ = make_layer(64, 64, 20, seed=0)
    for hessian in (layer_hessian(x), torch.diag(torch.logspace(0, -10, 64, dtype=torch.float64))):
        start, q = (aqlm(weight, hessian, dim=4, code_bits=6, books=1, max_rounds=n) for n in (0, 20))
        losses = [float(row_loss(weight, s, hessian.double()).sum()) for s in (start, q)]
        assert losses[1] < 0.6 * losses[0]


def test_unit_of_weight_and_inputs_does_not_matter():
    weight, hessian = small()
    a = aqlm(weight, hessian, dim=4, code_bits=4)
    b = aqlm(weight * 2.0**5, hessian * 2.0**-20, dim=4, code_bits=4)
    assert torch.equal(a.codes, b.codes) and torch.equal(a.codebooks, b.codebooks)


def test_scales_outside_the_stored_dtype_are_an_error():
    weight, hessian = small()
    for factor in (1e7, 1e-7):
        with pytest.raises(ValueError, match="do not fit into"):
            aqlm(weight * factor, hessian, dim=4, code_bits=4)
        q = aqlm(weight * factor, hessian, dim=4, code_bits=4, dtype=torch.float32)
        assert float((q.dequantize() - weight * factor).norm()) < 0.5 * factor * float(weight.norm())
    once = stored(residual_kmeans(weight, dim=4, books=1, code_bits=2), torch.float32)
    torch.testing.assert_close(once.dequantize(), residual_kmeans(weight, dim=4, books=1, code_bits=2).dequantize())


def test_arguments_stay_as_they_were():
    weight, hessian = small()
    before = weight.clone(), hessian.clone()
    aqlm(weight, hessian, dim=4, code_bits=3)
    assert torch.equal(weight, before[0]) and torch.equal(hessian, before[1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"code_bits": 9}, ValueError, "bits must be"),
        ({"code_bits": 8}, ValueError, "256 entries for the 96 groups"),
        ({"dim": 3}, ValueError, "dim must divide the 16"),
        ({"dim": 0}, ValueError, "dim must divide"),
        ({"books": 0}, ValueError, "books must be"),
        ({"beam": 0}, ValueError, "beam must be"),
        ({"tau": 1.0}, ValueError, "tau must lie"),
        ({"damp": -1.0}, ValueError, "damp must lie"),
        ({"max_rounds": -1}, ValueError, "max_rounds"),
        ({"update": "x"}, ValueError, "update must be"),
        ({"dtype": torch.int8}, TypeError, "dtype must be"),
        ({"weight": torch.full((24, 16), torch.nan)}, ValueError, "NaN"),
        ({"hessian": torch.eye(15)}, ValueError, "16 inputs"),
        ({"hessian": torch.ones(16, 16).triu()}, ValueError, "symmetric"),
    ],
)
def test_bad_input_is_a_clear_error(as_user, change, error, message):
    weight, hessian = small()
    arguments = {"weight": weight, "hessian": hessian, "dim": 4, "code_bits": 4, **change}
    with pytest.raises(error, match=message):
        aqlm(arguments.pop("weight"), arguments.pop("hessian"), **arguments)
