import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from mlcomp.metrics import snr_db
from mlcomp.prune import kept_share, magnitude, pruning_snr
from mlcomp.sources import gaussian, laplace, sample


def binary_entropy(p):
    return 0.0 if p in (0, 1) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)


@given(st.floats(0, 16))
def test_the_share_kept_costs_what_is_paid(bits):
    plain, mask, entropy = (kept_share(bits, storage=s) for s in ("values", "bitmask", "entropy"))
    assert 0 <= mask <= entropy + 1e-12 and entropy <= plain + 1e-12 and plain <= 1
    assert 16 * plain == pytest.approx(bits)
    if 1 <= bits < 16:
        assert 16 * mask + 1 == pytest.approx(bits)
    if bits < 16:
        assert 16 * entropy + binary_entropy(entropy) == pytest.approx(bits, abs=1e-9)


def test_shares_that_can_be_worked_out_by_hand():
    assert kept_share(4) == 0.25 and kept_share(4, storage="bitmask") == 3 / 16
    assert kept_share(9, storage="entropy") == pytest.approx(0.5)  # 16·½ + h(½) = 9
    assert kept_share(1, storage="bitmask") == 0 and kept_share(0, storage="entropy") < 1e-12
    assert all(kept_share(16, storage=s) == 1 for s in ("values", "bitmask", "entropy"))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12])
def test_the_gaussian_has_a_closed_form(bits):
    # Lost: E[W²; |W| ≤ t] = 1 − p − 2tφ(t), with P(|W| > t) = p = b/16.
    t = norm.isf(bits / 32)
    lost = 1 - bits / 16 - 2 * t * norm.pdf(t)
    assert pruning_snr(gaussian(), bits=bits) == pytest.approx(-10 * math.log10(lost), abs=1e-9)


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_the_laplace_density_has_a_closed_form(bits):
    a = -math.log(bits / 16)  # t = a/√2; E[W²; |W| ≤ t] = 1 − e^(−a)(a²/2 + a + 1)
    lost = 1 - math.exp(-a) * (a**2 / 2 + a + 1)
    assert pruning_snr(laplace(), bits=bits) == pytest.approx(-10 * math.log10(lost), abs=1e-9)


@pytest.mark.parametrize("bits", [1, 3.5, 4, 8, 15])
def test_a_tensor_loses_what_magnitude_pruning_takes(bits):
    weight = torch.randn(20, 33, generator=torch.Generator().manual_seed(0))
    pruned = magnitude(weight, sparsity=1 - bits / 16)
    assert pruning_snr(sample(weight), bits=bits) == pytest.approx(snr_db(weight, pruned), abs=1e-9)


def test_ends_and_order():
    for source in (gaussian(), sample(torch.arange(1.0, 9.0))):
        snr = [pruning_snr(source, bits=b) for b in range(17)]
        assert snr[0] == 0 and snr[-1] == math.inf and snr == sorted(snr)
    # The mask costs a bit: as good as one bit less.
    assert pruning_snr(gaussian(), bits=5, storage="bitmask") == pruning_snr(gaussian(), bits=4)


def test_bad_input(as_user):
    for bits in (-0.1, 16.5, float("nan"), "4", True):
        with pytest.raises(ValueError, match="bits must lie"):
            kept_share(bits)
    with pytest.raises(ValueError, match="storage must be"):
        pruning_snr(gaussian(), bits=4, storage="csr")
