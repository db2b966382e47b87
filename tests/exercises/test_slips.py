"""What the checks of the exercises compare with agrees with the library, and slips are told apart."""

import hashlib
import math

import pytest
import torch
from torch import nn

from mlcomp.distill import ensemble_log_probabilities, soft_target_loss
from mlcomp.distill.born_again import confidence_weighted_loss
from mlcomp.formats import Bitmask, absmax_int8, sparse_nbytes
from mlcomp.formats.xnor_matmul import pack_signs, xnor_matmul
from mlcomp.grading import by_trying_distillation as distillation
from mlcomp.grading import by_trying_importance as importance
from mlcomp.grading import by_trying_nlp as nlp
from mlcomp.grading import by_trying_training as training
from mlcomp.grading.slips import distinct, draw_telling, expect_no_slip
from mlcomp.prune import erdos_renyi_densities, kept_magnitude
from mlcomp.prune.classical import cost_complexity_path
from mlcomp.quant import binarize, double_quantize, gobo, gobo_outliers, llm_int8
from mlcomp.quant.aware_training.packed_binarized import fold_thresholds


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_the_weakest_link_is_the_first_price_of_the_path(seed):
    left, right, risk = training.random_tree(torch.Generator().manual_seed(seed), 9)
    path = cost_complexity_path(left, right, risk, torch.ones(len(left)))
    assert float(training.weakest_link(left, right, risk)[1]) == pytest.approx(float(path.alphas[1]))


def test_densities_are_those_of_the_library():
    shapes = [(300, 784), (100, 300), (10, 100)]
    for density in (0.02, 0.1, 0.5):
        found = training.densities(shapes, density)
        torch.testing.assert_close(found, torch.tensor(erdos_renyi_densities(shapes, density)).double())


def test_formats_are_those_of_the_library():
    matrix = normal(0, 5, 9) * (normal(1, 5, 9) > 0)
    assert importance.mask_bytes(matrix).tolist() == Bitmask.from_dense(matrix).mask.tolist()
    kept = int((matrix != 0).sum())
    wanted = [sparse_nbytes((5, 9), kept, format=f, value_bits=6) for f in ("dense", "bitmask", "csr")]
    assert importance.stored_bytes(5, 9, kept, 6).tolist() == wanted


def test_the_best_split_keeps_what_the_library_says():
    weight = normal(2, 12, 8)
    first = [int(c) for c in importance.best_split(weight)]
    order = torch.tensor([*first, *(c for c in range(8) if c not in first)])
    kept = importance.kept_by_splits(weight)
    assert float(kept.max()) == pytest.approx(kept_magnitude(weight, order))
    assert float(kept[0]) == pytest.approx(kept_magnitude(weight))


def test_eight_bits_are_those_of_the_library():
    x, weight = normal(3, 5, 8), normal(4, 3, 8)
    x[2, 5], x[0] = 9.0, 0.0
    codes, scale = absmax_int8(x, -1)
    torch.testing.assert_close(nlp.absmax_codes(x), torch.cat([codes.double(), scale], 1))
    for threshold in (6.0, math.inf):  # the library multiplies the scales in float32
        found, theirs = nlp.split_product(x, weight, threshold), llm_int8(x, weight, threshold=threshold)
        torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-5)


def test_signs_are_those_of_the_library():
    x = torch.tensor([-2.0, -1.0, -0.3, 0.0, 0.4, 1.0, 1.7], dtype=torch.float64, requires_grad=True)
    upstream = normal(5, 7)
    (gradient,) = torch.autograd.grad(binarize(x), x, upstream)
    found = nlp.binary_neuron(x.detach(), upstream)
    torch.testing.assert_close(found[0], binarize(x.detach()))
    torch.testing.assert_close(found[2], gradient)
    drawn = binarize(x.detach().expand(20_000, 7), stochastic=True, generator=torch.Generator().manual_seed(0))
    # Five standard errors of a mean of 20 000 signs are 0.035, of a share half of it.
    torch.testing.assert_close(found[1], ((drawn + 1) / 2).mean(0), atol=0.018, rtol=0)
    a, b = normal(6, 4, 13), normal(7, 3, 13)
    bits = [nlp_bytes(m) for m in (a, b)]
    torch.testing.assert_close(nlp.sign_products(*bits, 13), xnor_matmul(pack_signs(a), pack_signs(b)).double())


def nlp_bytes(matrix):
    """Return signs in bytes as the question has them, with ones behind them."""
    worth = 2 ** torch.arange(8)
    signs = nn.functional.pad((matrix > 0).long(), (0, -matrix.shape[1] % 8), value=1)
    return (signs.reshape(len(matrix), -1, 8) * worth).sum(-1).to(torch.uint8)


def test_folded_signs_are_those_of_the_library():
    norm, n = nn.BatchNorm1d(40, eps=0.5), 12
    with torch.no_grad():
        for tensor, seed in ((norm.weight, 8), (norm.bias, 9), (norm.running_mean, 10)):
            tensor.copy_(normal(seed, 40))
        norm.weight[::7] = 0
    folded = fold_thresholds(norm, 40, n)
    parts = (t.detach().double() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var))
    found = nlp.folded_signs(*parts, 0.5, n)
    z = torch.arange(-n, n + 1)
    assert torch.equal(found > 0, (z >= folded.at[:, None]) ^ folded.falls[:, None])


@pytest.mark.parametrize("seed", range(3))
def test_gobo_is_that_of_the_library(seed):
    weight = 3 * normal(seed, 8, 12)
    assert torch.equal(nlp.outliers(weight, -3.5), gobo_outliers(weight, log_density=-3.5))
    body = weight[~gobo_outliers(weight)]
    torch.testing.assert_close(nlp.body_levels(body, 2), gobo(body[None], bits=2, log_density=-99.0).levels)


def test_double_scales_are_those_of_the_library():
    weight = normal(11, 10, 8)
    stored = double_quantize(weight, block_size=8, scale_block=4, scale_type="int")
    decoded = nlp.decoded_scales(weight.abs().amax(1), 4)
    torch.testing.assert_close(decoded, stored.scales().double(), atol=1e-6, rtol=0)  # it computes in float32
    assert nlp.scale_bits(10, 4) == 8 * stored.nbytes - 4 * weight.numel()


@pytest.mark.parametrize("temperature", [1.0, 3.0, math.inf])
def test_soft_gradients_are_those_of_the_library(temperature):
    student, teacher = normal(12, 4, 5).requires_grad_(), normal(13, 4, 5)
    (gradient,) = torch.autograd.grad(soft_target_loss(student, teacher, temperature=temperature), student)
    torch.testing.assert_close(distillation.soft_gradient(student.detach(), teacher, temperature), gradient)


def test_generations_are_those_of_the_library():
    student, teacher, labels = normal(14, 4, 5), normal(15, 4, 5), torch.tensor([0, 4, 2, 2])
    found = distillation.confidence_weighted(student, teacher, labels)
    torch.testing.assert_close(found[0], confidence_weighted_loss(student, teacher, labels))
    torch.testing.assert_close(
        distillation.ensemble(torch.stack([student, teacher])), ensemble_log_probabilities([student, teacher])
    )


def test_rouge_and_fingerprints_of_small_cases():
    assert distillation.rouge("a b c d", "a x c d e") == pytest.approx(2 * 3 / 9)
    first = hashlib.sha256(b'["parse", {"seed": 1}, ""]').hexdigest()
    steps = [["parse", {"seed": 1}], ["filter", {}]]
    assert distillation.chain(steps) == [
        first,
        hashlib.sha256(f'["filter", {{}}, "{first}"]'.encode()).hexdigest(),
    ]


def solve(x, slip=""):
    return {"": x, "sign": -x, "twice": 2 * x}[slip]


def test_inputs_are_drawn_until_slips_show():
    draws = iter([(torch.zeros(2),), (torch.tensor([torch.nan, 1.0]),), (torch.ones(2),), (torch.full((2,), 3.0),)])
    (x,), truth, wrong = draw_telling(lambda: next(draws), solve, {"sign": "minus"}, also=lambda x: float(x[0]) != 1)
    assert torch.equal(x, truth) and float(x[0]) == 3 and torch.equal(wrong["minus"], -x)
    with pytest.raises(RuntimeError, match="3 draws"):
        draw_telling(lambda: (torch.zeros(2),), solve, {"sign": "minus"}, tries=3)


def test_a_slip_is_told_unless_it_is_the_truth():
    x = torch.ones(2)
    wrong = {"minus": -x, "no slip": x}
    expect_no_slip(x, x, wrong)
    expect_no_slip(3 * x, x, wrong)
    with pytest.raises(AssertionError, match="minus"):
        expect_no_slip(-x, x, wrong)


def test_results_of_other_shape_are_distinct():
    assert distinct([torch.ones(2), torch.ones(3), torch.zeros(2)])
    assert not distinct([torch.ones(2), torch.ones(3), torch.ones(2) + 1e-5])
