import functools
import math

import pytest

from mlcomp.compare import compare, crossover_kurtosis
from mlcomp.sources import gaussian, laplace, student_t

# The same crossovers serve several tests.
crossover = functools.cache(crossover_kurtosis)


def test_quantization_leads_for_a_gaussian_from_one_bit_to_eight_and_the_lead_grows():
    leads = [compare(gaussian(), bits=b).advantage_db for b in range(1, 9)]
    assert leads[0] > 0.5 and leads == sorted(leads)
    # Four bits: 19.26 dB of the best grid with 0 on it against 5.58 dB of keeping a quarter (closed form, 2 digits).
    four = compare(gaussian(), bits=4)
    assert (round(four.quantization_db, 2), round(four.pruning_db, 2)) == (19.26, 5.58)


def test_heavy_tails_help_the_pruner():
    leads = [compare(source, bits=2).advantage_db for source in (gaussian(), laplace(), student_t(100.0))]
    assert leads == sorted(leads, reverse=True)


@pytest.mark.parametrize("bits", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("storage", ["values", "bitmask"])
@pytest.mark.slow
def test_the_lead_changes_its_sign_at_the_crossover(bits, storage):
    kurtosis = crossover(bits, storage=storage)
    below = compare(student_t(kurtosis * 0.99), bits=bits, storage=storage).advantage_db
    above = compare(student_t(kurtosis * 1.01), bits=bits, storage=storage).advantage_db
    assert below > 0 > above


@pytest.mark.slow
def test_more_bits_or_an_honest_mask_move_the_crossover_up():
    two, four = crossover(2, storage="values"), crossover(4, storage="values")
    assert two < four and two < crossover(2, storage="bitmask")
    assert crossover_kurtosis(4, largest=100.0) == math.inf


def test_bad_input(as_user):
    with pytest.raises(ValueError, match="bits must be"):
        crossover_kurtosis(0)
    with pytest.raises(ValueError, match="storage must be"):
        compare(gaussian(), bits=4, storage="free")
