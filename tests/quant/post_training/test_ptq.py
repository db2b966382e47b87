import copy

import pytest
import torch
from torch import nn

from mlcomp.data import mnist5k, mnist_calibration
from mlcomp.layerwise import reestimate_batchnorm
from mlcomp.metrics import accuracy, kl_divergence
from mlcomp.models import convnet
from mlcomp.quant import FakeQuantized, fold_batchnorm, ptq, rtn


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 3),
        )  # fmt: skip
        return reestimate_batchnorm(model, [torch.randn(64, 1, 5, 5)]).eval()


def data(seed: int = 1) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 1, 5, 5, generator=g) for _ in range(3)]


def test_against_the_pipeline_written_out():
    """Fold, round each row, take the extremes of each input, run with rounded inputs: by hand."""
    model, batches = net(), data()
    result = ptq(model, batches, weight_bits=4, input_bits=5, clip="minmax", calibration="minmax")
    hand = fold_batchnorm(model)
    for i in (0, 3, 7):
        w = hand[i].weight.detach().flatten(1)
        scale = 2 * w.abs().amax(1, keepdim=True) / 15
        q = (w / scale).round().clamp(-8, 7)
        hand[i].weight.data = (q * scale).reshape(hand[i].weight.shape)
    spans, x = {}, torch.cat(batches)
    for i in range(8):
        spans[i] = (min(0.0, float(x.detach().min())), max(0.0, float(x.detach().max())))
        x = hand[i](x)
    x = y = torch.cat(data(5))
    for i in range(8):
        if i in (0, 3, 7):
            step = (spans[i][1] - spans[i][0]) / 31
            zero = round(-spans[i][0] / step)
            y = ((y / step).round() + zero).clamp(0, 31)
            y = (y - zero) * step
        y = hand[i](y)
    # A value within rounding of the middle between two codes may go either way: a few activations, one step each.
    close = torch.isclose(result.model(x), y, rtol=1e-4, atol=1e-4)
    assert float(close.double().mean()) > 0.97
    for row, i in zip(result.rows, (0, 3, 7), strict=True):
        assert row.input_range == pytest.approx(
            (spans[i][0] if spans[i][0] < 0 else row.input_range[0], spans[i][1]), rel=1e-4
        )


@pytest.mark.parametrize("options", [{}, {"batchnorm": "keep"}, {"symmetric": False}, {"bias_correction": True}])
def test_eight_bits_change_almost_nothing(options):
    model, batches = net(), data()
    x = torch.cat(data(7))
    with torch.no_grad():
        wanted = model(x)
        got = ptq(model, batches, **options).model(x)
    assert float((got - wanted).square().sum() / wanted.square().sum()) < 1e-3


def test_the_model_stays_and_the_report_counts_every_byte():
    model = net().train()
    before = {k: t.clone() for k, t in model.state_dict().items()}
    result = ptq(model, data(), weight_bits=3, input_bits=4, overrides={"7": (8, None)})
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items()) and model.training
    assert not result.model.training and all(isinstance(result.model[i], FakeQuantized) for i in (0, 3, 7))
    packed = (36 * 3 + 7) // 8 + 4 * 4, (6 * 18 * 3 + 7) // 8 + 6 * 4, 54 * 3 + 3 * 4
    biases, grids = (4 + 6 + 3) * 4, (4 + 1) * 2
    assert result.nbytes == sum(packed) + biases + grids
    assert result.nbytes_before == sum(t.nbytes for t in before.values())
    kept = ptq(model, data(), weight_bits=3, input_bits=4, overrides={"7": (8, None)}, batchnorm="keep")
    assert kept.nbytes == result.nbytes - 4 * 4 + (4 * 4 * 4 + 8) + (6 * 4 * 4 + 8)
    last = result.rows[-1]
    assert (last.name, last.weight_bits, last.input_bits, last.input_range) == ("7", 8, None, None)
    assert last.bits_per_weight == pytest.approx(8 + 32 / 54) and last.weight_snr_db > 40
    assert "W8A32" in str(result) and str(result).endswith(f"{result.nbytes_before} → {result.nbytes} bytes")


def test_one_grid_for_each_channel_makes_folding_free():
    """Folding multiplies a row by a number, and its grid with it: the codes stay, where that number is positive."""
    model = net()
    for bn in (model[1], model[4]):
        bn.weight.data = torch.rand(bn.num_features) + 0.5
    folded, kept = (ptq(model, data(), weight_bits=4, batchnorm=b).model for b in ("fold", "keep"))
    for i in (0, 3, 7):
        assert torch.equal(folded[i].codes, kept[i].codes)


@pytest.mark.slow
def test_the_course_network(as_user):
    model, batches = convnet(), mnist_calibration(128)
    images, labels = mnist5k("held_out", count=300)
    with torch.no_grad():
        wanted = model(images)
    ends = {"stem.conv": (8, 8), "head": (8, 8)}
    share, moved = {}, {}
    for name, options in {
        "W8A8": {},
        "W4A4": {"weight_bits": 4, "input_bits": 4},
        "W2A4": {"weight_bits": 2, "input_bits": 4},
        "W2A4, biases": {"weight_bits": 2, "input_bits": 4, "bias_correction": True},
        "W2A4, BatchNorm": {"weight_bits": 2, "input_bits": 4, "batchnorm": "reestimate"},
    }.items():
        result = ptq(model, batches, overrides=ends, **options)
        share[name] = accuracy(result.model, images, labels)
        with torch.no_grad():
            moved[name] = kl_divergence(wanted, result.model(images))
        assert result.rows[0].weight_bits == 8 and len(result.rows) == 12
    full = accuracy(model, images, labels)
    assert abs(share["W8A8"] - full) < 0.01 and share["W4A4"] > full - 0.02
    assert share["W2A4"] < 0.6 < 0.85 < share["W2A4, biases"] and share["W2A4, BatchNorm"] > full - 0.03
    assert moved["W8A8"] < moved["W4A4"] < moved["W2A4, BatchNorm"] < moved["W2A4, biases"] < moved["W2A4"]


def test_a_single_layer_and_weights_only():
    layer = nn.Linear(6, 4)
    result = ptq(layer, [torch.randn(10, 6)], weight_bits=4, input_bits=None, symmetric=False)
    assert isinstance(result.model, FakeQuantized) and result.rows[0].name == ""
    assert torch.equal(result.model.layer.weight, rtn(layer.weight.detach(), bits=4, clip="mse").dequantize())


def test_bad_input():
    model, batches = net(), data()
    for options, message in (
        ({"weight_bits": 9}, "bits must be"),
        ({"input_bits": 0}, "bits must be"),
        ({"overrides": {"7": (8, 16)}}, "bits must be"),
        ({"overrides": {"9": (8, 8)}}, "no layer '9'"),
        ({"batchnorm": "fuse"}, "batchnorm must be"),
        ({"batchnorm": "reestimate", "bias_correction": True}, "switch bias_correction off"),
        ({"calibration": "max"}, "rule must be"),
        ({"clip": "max"}, "clip must be"),
    ):
        with pytest.raises(ValueError, match=message):
            ptq(model, batches, **options)
    with pytest.raises(TypeError, match="got one Tensor"):
        ptq(model, batches[0])
    with pytest.raises(ValueError, match="one-shot"):
        ptq(model, iter(batches))
    with pytest.raises(ValueError, match="saw no sample"):
        ptq(model, [])
    with pytest.raises(ValueError, match="NaN or infinite"):
        ptq(model, [batches[0] / 0])
    with pytest.raises(ValueError, match="no layers"):
        ptq(nn.ReLU(), batches)
    unused = copy.deepcopy(model)
    unused[5].more = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"\['5\.more'\] saw no sample"):
        ptq(unused, batches)
