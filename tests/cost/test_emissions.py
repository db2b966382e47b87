import math

import pytest

from mlcomp.cost import LLAMA_2, emissions_kg, energy_kwh


@pytest.mark.parametrize("size", LLAMA_2)
def test_the_papers_rows_are_the_formula_cut_after_two_decimals(size):
    run = LLAMA_2[size]
    assert math.floor(emissions_kg(run.hours, run.watts) / 10) / 100 == run.tonnes


def test_the_papers_totals():
    assert sum(run.hours for run in LLAMA_2.values()) == 3_311_616
    assert round(sum(run.tonnes for run in LLAMA_2.values()), 2) == 538.98  # the rows as printed
    assert round(sum(emissions_kg(r.hours, r.watts) for r in LLAMA_2.values()) / 1000, 2) == 539.00


def test_one_intensity_in_all_rows():
    for run in LLAMA_2.values():
        assert run.intensity == pytest.approx(1.1 * 0.385, abs=7e-5)  # half a unit of 31.22 is 1.6e-4 of it


def test_by_hand():
    assert energy_kwh(10, 500) == 5
    assert energy_kwh(10, 500, pue=1.5) == 7.5
    assert emissions_kg(10, 500, pue=1.5, intensity=0.2) == pytest.approx(1.5)
    assert emissions_kg(0, 500) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: energy_kwh(-1, 400),
        lambda: energy_kwh(1, math.nan),
        lambda: energy_kwh(1, 400, pue=0.9),
        lambda: emissions_kg(1, 400, intensity=-0.1),
        lambda: emissions_kg("1", 400),
    ],
)
def test_bad_numbers(call, as_user):
    with pytest.raises(ValueError, match="must lie in"):
        call()
