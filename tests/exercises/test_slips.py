"""What the checks of the third lecture's exercises compare with agrees with the library, and slips are told apart."""

import pytest
import torch

from mlcomp.formats import Bitmask, sparse_nbytes
from mlcomp.grading import by_trying_importance as importance
from mlcomp.grading import by_trying_training as training
from mlcomp.grading.slips import distinct, draw_telling, expect_no_slip
from mlcomp.prune import erdos_renyi_densities, kept_magnitude
from mlcomp.prune.classical import cost_complexity_path


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
