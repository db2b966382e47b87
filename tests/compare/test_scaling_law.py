import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from mlcomp.compare import best_precision, bits_per_byte, fit_power_law, quantize_matrices
from mlcomp.models import byte_lm
from mlcomp.quant import blockwise


class Uniform(nn.Module):
    """Every byte is as likely as any other: 8 bits per byte."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(256))

    def forward(self, tokens):
        return self.bias.expand(*tokens.shape, 256)


def test_bits_per_byte_of_known_models():
    text = torch.randint(256, (1000,), generator=torch.Generator().manual_seed(0))
    model = Uniform().train()
    assert bits_per_byte(model, text, context=99) == pytest.approx(8)
    assert model.training
    with torch.no_grad():
        model.bias[:128] = -math.inf
    assert bits_per_byte(model, text % 128 + 128, context=99) == pytest.approx(7)


def test_bits_per_byte_against_byte_by_byte_prediction():
    model = byte_lm(16, pretrained=False)
    text = torch.randint(256, (30,), generator=torch.Generator().manual_seed(1))
    total = 0.0
    with torch.no_grad():
        for start in range(0, 28, 7):  # four windows of seven predictions use 29 bytes, one is left over
            for i in range(7):
                logits = model(text[None, start : start + i + 1])[0, -1]
                total -= float(F.log_softmax(logits.double(), -1)[text[start + i + 1]]) / math.log(2)
    for batch_size in (1, 3, 16):
        got = bits_per_byte(model, text, context=7, batch_size=batch_size)
        assert got == pytest.approx(total / 28, rel=1e-5)  # float32 logits against float64 sums


def test_bits_per_byte_bad_input(as_user):
    with pytest.raises(ValueError, match="longer than one window of 256"):
        bits_per_byte(Uniform(), torch.zeros(256, dtype=torch.int64))
    for name in ("context", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            bits_per_byte(Uniform(), torch.zeros(300, dtype=torch.int64), **{name: 0})


def test_quantized_copy_counts_every_bit():
    model = byte_lm(32, pretrained=False, seed=1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    copy, total = quantize_matrices(model, bits=3, block_size=100)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    expected = 0
    for name, p in model.named_parameters():
        if p.ndim == 2:  # codes padded to whole bytes, one float16 scale for each begun block of 100
            expected += 8 * math.ceil(3 * p.numel() / 8) + 16 * math.ceil(p.numel() / 100)
            want = blockwise(p.detach(), bits=3, block_size=100).dequantize()
        else:
            expected += 16 * p.numel()
            want = p.half().float()
        assert torch.equal(copy.get_parameter(name), want)
    assert total == expected


def test_sixteen_bits_are_the_parameters_in_float16():
    model = byte_lm(16, pretrained=False)
    copy, total = quantize_matrices(model, bits=16)
    assert total == 16 * sum(p.numel() for p in model.parameters())
    assert torch.equal(copy.embedding.weight, model.embedding.weight.half().float())


@given(st.floats(0, 3), st.floats(1, 50), st.integers(5, 95))
def test_a_law_is_found_again(floor, amplitude, hundredths):
    sizes = torch.tensor([1e4, 3e4, 1e5, 3e5, 1e6, 3e6])
    exponent = hundredths / 100
    law = fit_power_law(sizes, floor + amplitude * sizes.double() ** -exponent)
    assert law.exponent == pytest.approx(exponent) and law.residual < 1e-6
    assert law.floor == pytest.approx(floor, abs=1e-5) and law.amplitude == pytest.approx(amplitude, rel=1e-4)
    assert torch.allclose(law(sizes), floor + amplitude * sizes.double() ** -exponent, atol=1e-6)


def test_no_other_law_fits_better():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(4, 7, 7)
    loss = 2 + 30 * sizes.double() ** -0.3 + 0.05 * torch.randn(7, generator=generator)
    law = fit_power_law(sizes, loss)
    best = (law(sizes) - loss).square().mean()
    assert law.residual == pytest.approx(float(best.sqrt()))
    for exponent in (0.05, 0.2, 0.4, 0.9):
        for floor in (0.0, 1.5, 2.0, 2.2):
            for amplitude in (0.5, 5, 30, 100):
                assert (floor + amplitude * sizes.double() ** -exponent - loss).square().mean() >= best


def test_a_floor_below_zero_is_not_allowed():
    sizes = torch.tensor([1.0, 10, 100, 1000])
    law = fit_power_law(sizes, torch.tensor([4.0, 3, 2, 1]))  # a straight line in log N wants a floor of −∞
    assert law.floor >= 0


def test_best_precision_by_hand():
    curves = {4: ([100, 1000], [2.0, 1.0]), 8: ([200, 2000], [1.5, 1.2])}
    # At 200, 4 bits reach 2 − log10(2) = 1.699; at 1000, 8 bits reach 1.5 − 0.3·log10(5) = 1.29.
    budgets = torch.tensor([50.0, 150, 200, 1000, 1500, 3000])
    assert best_precision(curves, budgets) == [None, 4, 8, 4, 8, None]


def test_laws_bad_input(as_user):
    for sizes in ([1.0, 2.0], [1.0, 1.0, 2.0], [0.0, 1.0, 2.0]):
        with pytest.raises(ValueError, match="three different positive sizes"):
            fit_power_law(torch.tensor(sizes), torch.ones(len(sizes)))
    with pytest.raises(ValueError, match="NaN"):
        fit_power_law(torch.tensor([1.0, 2, 3]), torch.tensor([1.0, math.nan, 1]))
    with pytest.raises(ValueError, match="at least one precision"):
        best_precision({}, torch.ones(1))
    with pytest.raises(ValueError, match="must ascend"):
        best_precision({4: ([2, 1], [1, 1])}, torch.ones(1))
