from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.prune import cubic_schedule


@pytest.mark.parametrize("step", range(9))
def test_exact_rational_values(step):
    """By hand, in fractions: s_f + (s_i − s_f)(1 − t/8)³ with s_i = 1/4 and s_f = 7/8; all are dyadic."""
    exact = Fraction(7, 8) - Fraction(5, 8) * Fraction(8 - step, 8) ** 3
    assert cubic_schedule(step, steps=8, initial=0.25, final=0.875) == float(exact)


def test_written_out_table():
    # Seven eighths of the way is done at half time: 1 − (1/2)³.
    assert [cubic_schedule(t, steps=4, final=0.8) for t in (-1, 0, 1, 2, 3, 4, 9)] == pytest.approx(
        [0, 0, 0.8 * 37 / 64, 0.8 * 7 / 8, 0.8 * 63 / 64, 0.8, 0.8]
    )


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.5, 1e6), st.floats(-2, 2), st.floats(-2, 2))
def test_never_falls_and_stays_between_the_ends(a, b, steps, t, u):
    initial, final = sorted((a, b))
    earlier, later = sorted((t * steps, u * steps))
    values = [cubic_schedule(x, steps=steps, initial=initial, final=final) for x in (0, earlier, later, steps)]
    assert values[0] == initial and values[3] == final
    # The two roundings of the formula, each of one part in 2⁵³ of a number up to 1.
    assert initial - 1e-15 <= values[1] <= values[2] + 1e-15 and values[2] <= final + 1e-15


def test_rate_is_the_derivative():
    rate = (cubic_schedule(1e-6, steps=1, final=0.9) - cubic_schedule(0, steps=1, final=0.9)) / 1e-6
    assert rate == pytest.approx(3 * 0.9, rel=1e-5)  # the next term of the difference quotient is 3e-6 of it
    assert cubic_schedule(1, steps=1, final=0.9) - cubic_schedule(1 - 1e-3, steps=1, final=0.9) < 1e-8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be positive"),
        ({"steps": float("inf")}, "steps must be positive"),
        ({"steps": float("nan")}, "steps must be positive"),
        ({"step": float("nan")}, "step is NaN"),
        ({"final": 1.1}, "sparsity is the share"),
        ({"initial": -0.1}, "sparsity is the share"),
        ({"initial": 0.9}, "can only rise"),
    ],
)
def test_bad_input(as_user, change, message):
    with pytest.raises(ValueError, match=message):
        cubic_schedule(**{"step": 1, "steps": 4, "final": 0.8} | change)
