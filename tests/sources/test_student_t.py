import math

import pytest
import scipy.stats
import torch

from mlcomp.sources import student_t
from tests.sources.partial_moments import moments


def test_student_t_without_a_cut_that_matters_has_the_textbook_degrees_of_freedom():
    mine = moments(student_t(5.0), torch.tensor([1.0, 2.0], dtype=torch.float64))[0]
    dof = 7  # κ = 3 + 6/(ν − 4)
    other = scipy.stats.t(dof, scale=math.sqrt(5 / 7)).cdf([1.0, 2.0])
    assert mine.tolist() == pytest.approx(other.tolist(), abs=1e-5)


@pytest.mark.parametrize(("kurtosis", "limit"), [(3.2, 10.0), (25.0, 30.0), (1000.0, 1000.0), (1e5, 1e6)])
def test_kurtosis_and_cut_are_those_asked_for(kurtosis, limit):
    source = student_t(kurtosis, limit=limit)
    assert source.kurtosis == pytest.approx(kurtosis, rel=1e-9)
    whole = source.cells(torch.tensor([-source.bound, source.bound], dtype=torch.float64))
    assert [float(part) for part in whole] == pytest.approx([1, 0, 1], abs=1e-12)
    # f(1 scale)/f(0) is (1 + 1/ν)^(−(ν+1)/2), and rises with ν from 2 to 10⁶; a scale is bound/limit.
    x = torch.tensor([1.0, 0.0], dtype=torch.float64) * source.bound / limit
    ratio = float(source.density(x)[0] / source.density(x)[1])
    assert 1.5**-1.5 <= ratio * (1 + 1e-12) and ratio <= (1 + 1e-6) ** (-(1e6 + 1) / 2) * (1 + 1e-12)


def test_bad_input(as_user):
    for kurtosis in (2.9, 1e6, float("nan")):
        with pytest.raises(ValueError, match="kurtosis must be from"):
            student_t(kurtosis)
    for limit in (5.0, float("inf")):
        with pytest.raises(ValueError, match="limit must be"):
            student_t(5.0, limit=limit)
