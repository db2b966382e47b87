import pytest
import torch

from mlcomp.quant import Codebook


def book():
    return Codebook(torch.tensor([-1.0, 0.0, 2.0]).double(), torch.tensor([-0.5, 1.0]).double())


def test_encode_and_decode_by_hand():
    x = torch.tensor([[-7.0, -0.5, -0.4], [1.0, 1.1, 9.0]])
    codes = book().encode(x)
    assert codes.tolist() == [[0, 0, 1], [1, 2, 2]] and codes.dtype == torch.uint8  # a threshold belongs below
    assert book().decode(codes).tolist() == [[-1, -1, 0], [0, 2, 2]]
    assert book().decode(codes, torch.float64).dtype == torch.float64
    assert book().round(x.bfloat16()).dtype == torch.bfloat16


def test_thresholds_are_met_to_the_last_digit():
    t = torch.tensor([-0.5, 1.0]).double()
    above = torch.nextafter(t, t + 1)
    assert book().encode(t).tolist() == [0, 1] and book().encode(above).tolist() == [1, 2]


def test_256_levels_fit_into_a_byte():
    levels = torch.arange(256).double()
    wide = Codebook(levels, levels[:-1] + 0.5)
    assert torch.equal(wide.round(levels), levels) and int(wide.encode(levels).max()) == 255


def test_bad_input(as_user):
    with pytest.raises(ValueError, match="NaN or infinite"):
        book().encode(torch.tensor([float("inf")]))
