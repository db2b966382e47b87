import pytest
import torch

from mlcomp.data import make_layer
from mlcomp.formats import AdditiveCodes
from mlcomp.obs import layer_hessian
from mlcomp.quant.additive.aqlm import residual_kmeans
from mlcomp.quant.additive.aqlm_beam_search import row_loss
from mlcomp.quant.additive.aqlm_codebooks import _conjugate_gradients, decode_sum, gather_sum, tune_codebooks


def problem(out=12, groups=5, books=2, entries=4, dim=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    weight, x, _ = make_layer(out, groups * dim, 90, seed=seed)
    codes = torch.randint(entries, (out, groups, books), generator=g, dtype=torch.uint8)
    scale = weight.double().square().mean(1).sqrt()
    codebooks = torch.randn(books, entries, dim, generator=g, dtype=torch.float64)
    return weight.double(), layer_hessian(x.double()), AdditiveCodes(codes, codebooks, scale)


def loss(weight, hessian, quantized):
    return float(row_loss(weight, quantized, hessian).sum())


def dense_least_squares(weight, hessian, start):
    """The best codebooks for fixed codes and scales: the design matrix written out, solved by lstsq."""
    books, entries, dim = start.codebooks.shape
    root = torch.linalg.cholesky(hessian)  # the loss is the square of (W − Ŵ) root
    columns = []
    for k in range(start.codebooks.numel()):
        unit = torch.zeros(start.codebooks.numel(), dtype=torch.float64)
        unit[k] = 1
        decoded = AdditiveCodes(start.codes, unit.reshape(books, entries, dim), start.scale).dequantize()
        columns.append((decoded @ root).flatten())
    design = torch.stack(columns, dim=1)
    solution = torch.linalg.lstsq(design, (weight @ root).flatten()[:, None], driver="gelsd").solution
    return AdditiveCodes(start.codes, solution.reshape(books, entries, dim), start.scale)


@pytest.mark.parametrize("books", [1, 2])
def test_codebooks_reach_the_least_squares_optimum(books):
    weight, hessian, start = problem(books=books)
    best = loss(weight, hessian, dense_least_squares(weight, hessian, start))
    # The part of tune_codebooks before the scales move. As many steps as unknowns are enough: the directions are
    # conjugate (steepest descent is then still far away).
    unknowns = start.codebooks.numel()
    found = _conjugate_gradients(weight, hessian, start.codes, start.codebooks, start.scale, unknowns)
    ours = loss(weight, hessian, AdditiveCodes(start.codes, found, start.scale))
    assert ours == pytest.approx(best, rel=1e-9) and best < 0.8 * loss(weight, hessian, start)


def test_adam_ends_where_least_squares_has_nothing_to_add_and_scales_are_optimal():
    weight, hessian, start = problem()
    adam = tune_codebooks(weight, hessian, start, update="adam", steps=2000)
    reached = loss(weight, hessian, adam)
    exact = tune_codebooks(weight, hessian, adam, steps=200)
    assert 0.99 * reached < loss(weight, hessian, exact) <= reached < 0.8 * loss(weight, hessian, start)
    for factor in (0.999, 1.001):
        moved = AdditiveCodes(exact.codes, exact.codebooks, exact.scale * factor)
        assert loss(weight, hessian, moved) > loss(weight, hessian, exact)


def test_conjugate_gradients_do_without_a_learning_rate():
    weight, x, _ = make_layer(64, 64, 512, seed=1)
    start = residual_kmeans(weight, dim=4, books=2, code_bits=5)
    hessian = layer_hessian(x)

    def reached(**options):
        return loss(weight, hessian.double(), tune_codebooks(weight, hessian, start, **options))

    exact = reached(steps=40)
    assert exact < 1.02 * reached(update="adam", steps=800)
    for rate in (1e-3, 0.5):
        assert exact < 0.98 * reached(update="adam", steps=40, learning_rate=rate)


@pytest.mark.parametrize("seed", range(5))
def test_least_squares_never_raises_the_loss(seed):
    weight, hessian, start = problem(out=20, entries=16, seed=seed)
    current = loss(weight, hessian, start)
    for _ in range(4):
        start = tune_codebooks(weight, hessian, start, steps=3)
        after = loss(weight, hessian, start)
        assert after <= current * (1 + 1e-9)
        current = after


def test_gather_is_the_adjoint_of_decode():
    weight, _, start = problem()
    direction = torch.randn(start.codebooks.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    left = (decode_sum(start.codes, direction) * weight).sum()
    right = (direction * gather_sum(start.codes, weight, direction)).sum()
    torch.testing.assert_close(left, right)


def test_edges():
    weight, hessian, start = problem(entries=200)  # more entries than groups: most have no code
    unused = torch.ones(2, 200, dtype=torch.bool)
    for c in range(2):
        unused[c, start.codes[:, :, c].flatten().long()] = False
    tuned = tune_codebooks(weight, hessian, start)
    assert torch.equal(tuned.codebooks[unused], start.codebooks[unused]) and unused.sum() > 100
    dead = torch.zeros_like(hessian)
    same = tune_codebooks(weight, dead, start)
    assert torch.equal(same.codebooks, start.codebooks) and torch.equal(same.scale, start.scale)
    loud = tune_codebooks(weight, hessian * 2.0**40, start)
    torch.testing.assert_close(loud.codebooks, tuned.codebooks)
    zero = tune_codebooks(torch.zeros_like(weight), hessian, start, steps=200)
    assert loss(torch.zeros_like(weight), hessian, zero) < 1e-6 * loss(torch.zeros_like(weight), hessian, start)
    for dtype in (torch.float32, torch.bfloat16):
        assert tune_codebooks(weight.to(dtype), hessian.float(), start).codebooks.dtype == torch.float32


def test_bad_input(as_user):
    weight, hessian, start = problem()
    with pytest.raises(ValueError, match="update must be"):
        tune_codebooks(weight, hessian, start, update="sgd")
    with pytest.raises(ValueError, match="steps must be"):
        tune_codebooks(weight, hessian, start, steps=0)
    with pytest.raises(ValueError, match="start stands for"):
        tune_codebooks(weight[:3], hessian, start)
