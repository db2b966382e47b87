import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.compare import pareto_front

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


def dominates(a, b):
    return a[0] <= b[0] and a[1] >= b[1] and a != b


@given(POINTS)
def test_equals_the_definition(points):
    front = pareto_front([s for s, _ in points], [q for _, q in points])
    assert sorted(front) == [i for i, p in enumerate(points) if not any(dominates(o, p) for o in points)]
    assert [points[i] for i in front] == sorted(points[i] for i in front)


def test_by_hand():
    assert pareto_front([2, 3, 3, 4, 8, 8], [0.5, 0.4, 0.7, 0.7, 0.9, 0.9]) == [0, 2, 4, 5]
    assert pareto_front([], []) == []
    assert pareto_front([1, math.inf], [0, math.inf]) == [0, 1]


def test_bad_input(as_user):
    with pytest.raises(ValueError, match="2 sizes and 1 qualities"):
        pareto_front([1, 2], [1])
    with pytest.raises(ValueError, match="NaN"):
        pareto_front([1.0], [math.nan])
