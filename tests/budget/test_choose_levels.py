import itertools
import math
import random
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlcomp.budget import choose_levels
from tests.examples import examples


def brute_force(errors, costs, budget):
    """Least (error, cost) over all choices, in rationals."""
    best = None
    for choice in itertools.product(*(range(len(row)) for row in errors)):
        cost = sum(Fraction(row[l]) for row, l in zip(costs, choice, strict=True))
        error = sum(Fraction(row[l]) for row, l in zip(errors, choice, strict=True))
        if cost <= Fraction(budget) and (best is None or (error, cost) < best):
            best = (error, cost)
    return best


def problems(cost, error):
    layer = st.lists(st.tuples(error, cost), min_size=1, max_size=5)
    return st.tuples(st.lists(layer, min_size=1, max_size=5), st.floats(0, 1))


def check_against_brute_force(layers, share):
    errors = [[e for e, _ in layer] for layer in layers]
    costs = [[c for _, c in layer] for layer in layers]
    least, most = sum(map(min, costs)), sum(map(max, costs))
    budget = least + share * (most - least)
    truth = brute_force(errors, costs, budget)
    if truth is None:  # the float budget may fall below the exact least cost by rounding
        with pytest.raises(ValueError, match="cannot be met"):
            choose_levels(errors, costs, budget)
        return
    found = choose_levels(errors, costs, budget)
    assert sum(Fraction(row[l]) for row, l in zip(costs, found.levels, strict=True)) <= Fraction(budget)
    error = sum(Fraction(row[l]) for row, l in zip(errors, found.levels, strict=True))
    scale = sum(max(map(abs, row)) for row in errors)
    assert float(error - truth[0]) <= 1e-12 * scale  # float64 sums of at most 5 terms
    assert found.error == pytest.approx(float(error), rel=1e-12, abs=1e-12 * scale)


@pytest.mark.slow
@examples(150)
@given(problems(st.integers(0, 20), st.integers(0, 20)))
def test_integers_match_brute_force(problem):
    """Small ranges give many ties and zero costs."""
    layers, share = problem
    check_against_brute_force(layers, share)
    errors = [[e for e, _ in layer] for layer in layers]
    costs = [[c for _, c in layer] for layer in layers]
    budget = sum(map(min, costs)) + int(share * 10)
    found = choose_levels(errors, costs, budget)
    assert (found.error, found.cost) == brute_force(errors, costs, budget)  # ties go to the cheaper


@examples(150)
@example(([[(0.0, 0.0), (0.0, 2.0), (-1.0, 5e-324)]], 0.0))  # as a share of 2 the least float is zero
@given(problems(st.floats(0, 1e6), st.floats(-1e3, 1e3)))
def test_floats_match_brute_force(problem):
    check_against_brute_force(*problem)


@examples(60)
@given(problems(st.integers(0, 10**30), st.floats(0, 1e-9)))
def test_huge_costs_and_tiny_errors_match_brute_force(problem):
    check_against_brute_force(*problem)


def test_a_cost_that_only_rounding_makes_fit_is_refused():
    # 0.1 + 0.2 is more than 0.3 as rationals of the floats given
    with pytest.raises(ValueError, match=r"least achievable cost is 0\.3"):
        choose_levels([[1.0], [1.0]], [[0.1], [0.2]], 0.3)
    assert choose_levels([[1.0], [1.0]], [[0.1], [0.2]], 0.1 + 0.2).levels == (0, 0)


def test_levels_of_zero_cost_are_found_in_every_layer():
    errors, costs = [[5, 1], [5, 1], [5, 1]], [[0, 3], [0, 3], [0, 3]]
    assert choose_levels(errors, costs, 0).levels == (0, 0, 0)
    assert choose_levels(errors, costs, 3).error == 11
    assert choose_levels(errors, costs, 9).levels == (1, 1, 1)


def test_the_budget_is_used_to_the_last_unit():
    assert choose_levels([[3, 0], [3, 0]], [[0, 50_001], [0, 49_999]], 100_000).error == 0
    assert choose_levels([[3, 0], [3, 0]], [[0, 50_001], [0, 49_999]], 99_999).error == 3


def test_a_worse_and_dearer_level_is_never_taken():
    assert choose_levels([[2, 1, 3]], [[4, 2, 9]], 100).levels == (1,)


def test_as_large_as_a_real_network_in_a_second():
    source = random.Random(0)
    layers, levels = 60, 40
    sizes = [source.randrange(10**5, 10**8) for _ in range(layers)]
    costs = [[int(size * 0.9**i) for i in range(levels)] for size in sizes]
    scales = [math.exp(source.gauss(0, 2)) for _ in sizes]
    errors = [[s * (1 - 0.9**i) ** 2 * source.uniform(0.9, 1.1) for i in range(levels)] for s in scales]
    start = time.perf_counter()
    found = choose_levels(errors, costs, sum(sizes) // 3)
    assert time.perf_counter() - start < 10  # 0.2 s alone on one core
    assert found.cost <= sum(sizes) // 3
    # No exchange of two layers' levels helps: a necessary condition that is cheap to check at this size.
    for a, b in itertools.combinations(range(layers), 2):
        rest = found.cost - costs[a][found.levels[a]] - costs[b][found.levels[b]]
        now = errors[a][found.levels[a]] + errors[b][found.levels[b]]
        fits = rest + np.add.outer(costs[a], costs[b]) <= sum(sizes) // 3
        assert np.add.outer(errors[a], errors[b])[fits].min() >= now * (1 - 1e-12)


@pytest.mark.parametrize(
    ("errors", "costs", "budget", "message"),
    [
        ([], [], 1, "one row for each layer"),
        ([[1]], [[1], [1]], 1, "one row for each layer"),
        ([[1, 2]], [[1]], 1, "layer 0 must have an error and a cost"),
        ([[1], []], [[1], []], 1, "layer 1 must have"),
        ([[float("nan")]], [[1]], 1, "layer 0 has NaN"),
        ([[1]], [[float("inf")]], 1, "layer 0 has NaN"),
        ([[1]], [[-1]], 1, "negative cost: -1"),
        ([[1]], [[1]], float("inf"), "budget must be finite"),
        ([[1, 2]], [[7, 9]], 6, "least achievable cost is 7$"),
        ([[1]], [[10**400]], 6, "least achievable cost"),
    ],
)
def test_bad_input(as_user, errors, costs, budget, message):
    with pytest.raises(ValueError, match=message):
        choose_levels(errors, costs, budget)
