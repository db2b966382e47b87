import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.data import make_layer
from mlcomp.metrics import hessian_error
from mlcomp.obs import gptq, layer_hessian, quantized_sparsegpt
from mlcomp.prune import magnitude, sparsegpt
from mlcomp.quant import rtn
from tests.examples import examples


def small(out=5, inp=24, samples=80, seed=0):
    weight, x, _ = make_layer(out, inp, samples, seed=seed)
    return weight.double(), layer_hessian(x.double())


def literal(weight, hessian, bits, *, pattern, damp=0.01):
    """The joint sweep with an inverse of its own for each column, and a grid written out by hand."""
    h = hessian + damp * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    n, m = pattern
    result = weight.clone()
    for w in result:
        step = (w.max().clamp(min=0) - w.min().clamp(max=0)) / (2**bits - 1)
        zero = torch.round(-w.min().clamp(max=0) / step)
        for i in range(len(w)):
            if i % m == 0:
                scores = [w[j] ** 2 / torch.linalg.inv(h[j:, j:])[0, 0] for j in range(i, i + m)]
                removed = torch.stack(scores).argsort()[:n] + i
            code = (torch.round(w[i] / step) + zero).clamp(0, 2**bits - 1)
            q = 0.0 if i in removed else (code - zero) * step
            inverse = torch.linalg.inv(h[i:, i:])
            change = (w[i] - q) / inverse[0, 0] * inverse[0]
            w[i:] = w[i:] - change
            w[i] = q
    return result


@examples(8)
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 5), pattern=st.sampled_from([(2, 4), (1, 3), (3, 6), (0, 4)]))
def test_codes_are_those_of_the_literal_sweep(seed, bits, pattern):
    weight, hessian = small(out=2, inp=12, seed=seed)
    result = quantized_sparsegpt(weight, hessian, bits=bits, pattern=pattern).dequantize()
    torch.testing.assert_close(result, literal(weight, hessian, bits, pattern=pattern))


@pytest.mark.parametrize("options", [{}, {"order": "activation"}, {"clip": "mse"}, {"symmetric": True}])
@pytest.mark.parametrize("group_size", [None, 8])
def test_with_nothing_to_remove_it_is_gptq(options, group_size):
    weight, hessian = small()
    joint = quantized_sparsegpt(weight, hessian, bits=3, sparsity=0.0, group_size=group_size, **options)
    alone = gptq(weight, hessian, bits=3, group_size=group_size, static_groups=True, **options)
    assert torch.equal(joint.codes, alone.codes)
    assert torch.equal(joint.dequantize(), alone.dequantize())


def test_with_eight_bits_on_the_same_mask_it_is_nearly_sparsegpt():
    weight, hessian = small(seed=1)
    pruned = sparsegpt(weight, hessian, pattern=(2, 4))
    joint = quantized_sparsegpt(weight, hessian, bits=8, mask=pruned != 0).dequantize()
    # 256 codes a row add a thirtieth to the error of the zeros here; 4 bits would add nine times it.
    assert hessian_error(weight, joint, hessian) == pytest.approx(hessian_error(weight, pruned, hessian), rel=0.06)


def test_identity_hessian_gives_magnitude_and_nearest_codes():
    weight = small()[0]
    joint = quantized_sparsegpt(weight, torch.eye(24), bits=4, pattern=(2, 4)).dequantize()
    kept = magnitude(weight, pattern=(2, 4)) != 0
    # The grid is the dense row's, as both fit it before anything is removed.
    torch.testing.assert_close(joint, torch.where(kept, rtn(weight, bits=4).dequantize(), torch.zeros_like(weight)))


@examples(12)
@given(
    seed=st.integers(0, 10_000),
    sparsity=st.floats(0, 1),
    order=st.sampled_from(["natural", "activation"]),
    dead=st.integers(0, 4),
)
def test_at_least_the_asked_zeros_and_all_values_on_the_grid(seed, sparsity, order, dead):
    weight, x, _ = make_layer(4, 16, 60, seed=seed)
    x[:dead] = 0
    result = quantized_sparsegpt(weight, layer_hessian(x), bits=3, sparsity=sparsity, order=order)
    values = result.dequantize()
    assert int((values == 0).sum()) >= max(int(sparsity * 64), 4 * dead)
    assert (values[:, :dead] == 0).all() and int(result.codes.max()) <= 7


def test_joint_beats_rounding_afterwards():
    weight, x, _ = make_layer(32, 64, 512, seed=0)
    hessian = layer_hessian(x)
    for target in ({"sparsity": 0.5}, {"pattern": (2, 4)}):
        joint = quantized_sparsegpt(weight, hessian, bits=3, **target).dequantize()
        after = rtn(sparsegpt(weight, hessian, **target), bits=3).dequantize()
        # Rounding's own part of the error is 0.6 of the later one's on this layer.
        assert hessian_error(weight, joint, hessian) < 0.9 * hessian_error(weight, after, hessian)


@pytest.mark.parametrize("options", [{"sparsity": 0.5, "mask_block": 8}, {"pattern": (2, 4)}, {"mask": True}])
def test_neither_the_lazy_batches_nor_the_scale_of_the_inputs_matter(options):
    weight, hessian = small(seed=2)
    if "mask" in options:
        options = {"mask": weight.abs() > weight.abs().median()}
    reference = quantized_sparsegpt(weight, hessian, bits=4, **options)
    for other in (
        quantized_sparsegpt(weight, hessian, bits=4, block_size=5, **options),
        quantized_sparsegpt(weight, hessian * 2.0**10, bits=4, **options),
    ):
        assert torch.equal(other.codes, reference.codes)
    if "mask" in options:
        assert (reference.dequantize()[~options["mask"]] == 0).all()


def test_arguments_stay_as_they_were():
    weight, hessian = small()
    before = weight.clone(), hessian.clone()
    quantized_sparsegpt(weight, hessian, bits=4, sparsity=0.5)
    assert torch.equal(weight, before[0]) and torch.equal(hessian, before[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 0}, "bits"),
        ({"sparsity": None}, "exactly one"),
        ({"pattern": (2, 4)}, "exactly one"),
        ({"group_size": 5}, "divide"),
        ({"clip": "median"}, "clip"),
        ({"order": "random"}, "order must be one of"),
        ({"mask_block": 0}, "mask_block"),
        ({"hessian": torch.eye(25)}, "24 inputs"),
        ({"weight": torch.full((5, 24), torch.nan)}, "NaN"),
    ],
)
def test_bad_input_is_a_clear_error(as_user, change, message):
    weight, hessian = small()
    arguments = {"weight": weight, "hessian": hessian, "bits": 4, "sparsity": 0.5, **change}
    with pytest.raises(ValueError, match=message):
        quantized_sparsegpt(arguments.pop("weight"), arguments.pop("hessian"), **arguments)
