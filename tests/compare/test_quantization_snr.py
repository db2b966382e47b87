import itertools
import math

import pytest
import torch

from mlcomp.compare.quantization_snr import uniform_error
from mlcomp.quant import fit_grid, quantization_snr
from mlcomp.sources import gaussian, laplace, sample, student_t

# Max 1960, Table II (equally spaced levels, Gaussian of unit variance): bits, step, mean squared error.
MAX_1960 = [
    (1, 1.596, 0.3634),
    (2, 0.9957, 0.1188),
    (3, 0.5860, 0.03744),
    (4, 0.3352, 0.01154),
    (5, 0.1881, 0.003495),
]


@pytest.mark.parametrize(("bits", "step", "error"), MAX_1960)
def test_the_best_uniform_quantizers_of_a_gaussian_are_those_of_max(bits, step, error):
    found = quantization_snr(gaussian(), bits=bits, zero="between")
    assert found.zero == (2**bits - 1) / 2
    # Four digits are printed.
    assert found.step == pytest.approx(step, abs=6e-5 if bits > 1 else 6e-4)
    assert 10 ** (-found.snr_db / 10) == pytest.approx(error, rel=5e-4)


def rounded_error(values, step, zero, bits):
    codes = (values / step + zero).round().clamp(0, 2**bits - 1)
    return float((values - step * (codes - zero)).square().mean())


@pytest.mark.parametrize("zero", ["on_grid", "between"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_error_of_a_tensor_is_that_of_rounding_it_and_no_step_is_better(bits, zero):
    generator = torch.Generator().manual_seed(bits)
    values = torch.randn(3001, generator=generator, dtype=torch.float64) ** 3 + 0.3
    source = sample(values)
    found = quantization_snr(source, bits=bits, zero=zero)
    error = rounded_error(values, found.step, found.zero, bits)
    assert found.snr_db == pytest.approx(10 * math.log10(float(values.square().mean()) / error), abs=1e-9)
    top = float(values.abs().max())
    # "Not better" up to what golden section leaves between local minima of a sample: 0.5 %.
    for step in torch.logspace(-3, 0, 400).tolist():
        assert rounded_error(values, top * step, found.zero, bits) > 0.995 * error


@pytest.mark.parametrize(("source", "seed"), [(gaussian(), 0), (laplace(), 1), (student_t(20.0), 2)])
def test_error_of_a_density_is_that_of_its_integral(source, seed):
    # Midpoint rule on the distribution function, which shares nothing with the closed moments of a cell.
    edges = torch.linspace(-source.bound, source.bound, 400_001, dtype=torch.float64)
    mass = source.cells(edges).mass
    middle = (edges[1:] + edges[:-1]) / 2
    for bits in (1, 3, 5):
        for step in (0.05, 0.4, 1.7):
            zero = float(2 ** (bits - 1))
            codes = (middle / step + zero).round().clamp(0, 2**bits - 1)
            expected = float(((middle - step * (codes - zero)).square() * mass).sum())
            found = uniform_error(source, torch.tensor([step], dtype=torch.float64), bits=bits, zero=zero)
            assert float(found[0]) == pytest.approx(expected, rel=1e-3)  # the midpoint rule's own error


def test_each_bit_is_worth_less_than_six_decibels_and_zero_between_is_better_for_two_bits():
    snr = [quantization_snr(gaussian(), bits=b).snr_db for b in range(1, 9)]
    gains = [b - a for a, b in itertools.pairwise(snr)]
    assert all(4 < gain < 6.02 for gain in gains)
    assert quantization_snr(gaussian(), bits=2, zero="between").snr_db > snr[1] + 0.9


def test_it_is_at_least_as_good_as_the_fitted_grid_of_the_course():
    values = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for bits in (2, 3, 4, 6):
        grid = fit_grid(values, bits=bits, symmetric=True, clip="mse")
        error = float((values - grid.round(values)).square().mean())
        snr = 10 * math.log10(float(values.square().mean()) / error)
        assert quantization_snr(sample(values), bits=bits).snr_db >= snr - 1e-6


def test_the_mirrored_grid_is_found_and_a_grid_that_fits_is_exact():
    ones = torch.tensor([-1.0, 0.0, 0.0, 1.0, 2.0, 2.0])  # reaches two steps up, one down: the mirror of −2 … 1
    up, down = quantization_snr(sample(ones), bits=2), quantization_snr(sample(-ones), bits=2)
    assert (up.zero, down.zero) == (1.0, 2.0)
    assert up.snr_db > 60 and down.snr_db > 60  # golden section finds the step to seven digits
    assert up.step == pytest.approx(1.0, rel=1e-5)


def test_bad_input(as_user):
    for bits in (0, 9, 2.0):
        with pytest.raises(ValueError, match="bits must be"):
            quantization_snr(gaussian(), bits=bits)
    with pytest.raises(ValueError, match="zero must be"):
        quantization_snr(gaussian(), bits=2, zero="middle")
