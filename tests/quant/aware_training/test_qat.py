import pytest
import torch
from torch import nn

from mlcomp.metrics import accuracy
from mlcomp.models import convnet
from mlcomp.quant import FakeQuantized, QATLayer, finish_qat, fit_grid, prepare_qat, ptq
from mlcomp.train import train


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4),
        )  # fmt: skip


def patterns(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Four classes: noisy images with one bright quarter."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    x = 0.8 * torch.rand(count, 1, 8, 8, generator=g)
    for i, y in enumerate(labels.tolist()):
        x[i, 0, 4 * (y // 2) : 4 * (y // 2) + 4, 4 * (y % 2) : 4 * (y % 2) + 4] += 0.3
    return x, labels


def trained() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model = net()
    x, y = patterns(256)
    train(model, x, y, epochs=4, lr=5e-3, progress=False)
    return model.eval(), x, y


@pytest.mark.parametrize("method", ["lsq", "ste"])
@pytest.mark.slow
def test_training_repairs_what_rounding_broke(method):
    model, x, y = trained()
    test_x, test_y = patterns(200, seed=9)
    bits = {"weight_bits": 2, "input_bits": 2, "overrides": {"7": (8, 8)}}
    before = {k: t.clone() for k, t in model.state_dict().items()}
    student = prepare_qat(model, [x], method=method, **bits)
    start = accuracy(student, test_x, test_y)
    train(student, x, y, epochs=6, lr=5e-3, progress=False)
    end = accuracy(student, test_x, test_y)
    rounded = accuracy(ptq(model, [x], **bits).model, test_x, test_y)
    assert end > 0.9 and end > start + 0.1 and end > rounded
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    result = finish_qat(student)
    assert all(isinstance(result.model[i], FakeQuantized) for i in (0, 3, 7)) and not result.model.training
    torch.testing.assert_close(result.model(test_x), student.eval()(test_x), rtol=1e-4, atol=1e-4)
    assert [(r.weight_bits, r.input_bits) for r in result.rows] == [(2, 2), (2, 2), (8, 8)]
    assert int(result.model[3].codes.max()) <= 3
    moved = [m.scale for m in student.modules() if getattr(m, "scale", None) is not None]
    assert (len(moved) == 6 and all((s != 1).any() for s in moved)) if method == "lsq" else not moved


@pytest.mark.slow
def test_starts_from_the_grids_of_rounding():
    model, x, _ = trained()
    student = prepare_qat(model, [x], weight_bits=3, input_bits=4)
    for i in (0, 3, 7):
        w = model[i].weight.detach().flatten(1)
        grid = fit_grid(w, bits=3, symmetric=True, clip="mse")
        torch.testing.assert_close(student[i].weight_quantizer(w), grid.round(w))
        assert student[i].input_quantizer.low == 0  # pixels and outputs of relu
    same = ptq(model, [x], weight_bits=3, input_bits=4, batchnorm="keep")
    # ptq collects its ranges with rounded weights, so the inputs' grids differ a little.
    assert student[0].input_quantizer.step.item() == pytest.approx(float(same.model[0].input_step))
    finished = finish_qat(student)
    assert finished.nbytes == same.nbytes and finished.nbytes_before == same.nbytes_before
    assert all(torch.equal(finished.model[i].codes, same.model[i].codes) for i in (0, 3, 7))


def test_signed_inputs_get_signed_codes():
    layer = nn.Linear(6, 3)
    x = torch.randn(50, 6)
    student = prepare_qat(layer, [x], weight_bits=4, input_bits=4)
    assert isinstance(student, QATLayer) and student.input_quantizer.low == -8
    torch.testing.assert_close(finish_qat(student).model(x), student(x))
    floating = prepare_qat(layer, [x], weight_bits=4, input_bits=None)
    assert floating.input_quantizer is None and finish_qat(floating).rows[0].input_range is None


@pytest.mark.slow
def test_gradients_reach_weights_and_steps_of_the_course_network():
    student = prepare_qat(
        convnet(), [torch.rand(4, 1, 28, 28)], weight_bits=2, input_bits=4, overrides={"stem.conv": (8, 8)}
    )
    nn.functional.cross_entropy(student.train()(torch.rand(8, 1, 28, 28)), torch.arange(8)).backward()
    layers = [m for m in student.modules() if isinstance(m, QATLayer)]
    assert len(layers) == 12
    for m in layers:
        for p in (m.layer.weight, m.weight_quantizer.scale, m.input_quantizer.scale):
            assert torch.isfinite(p.grad).all() and (p.grad != 0).any()
    assert layers[0].weight_quantizer.bits == 8 and layers[1].weight_quantizer.bits == 2


@pytest.mark.parametrize("method", ["lsq", "ste"])
def test_clipped_inputs_get_no_gradient_and_clipped_weights_as_the_method_says(method):
    """The chain rule written out: ∂loss/∂x = (Ŵᵀg) and ∂loss/∂W = g·x̂ᵀ, zero where the quantizer clips."""
    layer = nn.Linear(6, 4, bias=False)
    student = prepare_qat(layer, [torch.rand(50, 6) - 0.3], weight_bits=3, input_bits=3, method=method)
    weights, inputs = student.weight_quantizer, student.input_quantizer
    with torch.no_grad():
        student.layer.weight[0, 1], student.layer.weight[2, 3] = 9.0, -9.0
        assert inputs.low == -4 and weights.low == -4
    x = torch.rand(8, 6) - 0.3
    x[0, 0], x[1, 5], x[2, 2] = 5.0, -5.0, 7.0
    x.requires_grad_()
    g = torch.randn(8, 4)
    (student(x) * g).sum().backward()
    ratio_x, ratio_w = x.detach() / inputs.step, student.layer.weight.detach() / weights.step
    inside_x, inside_w = (-4 < ratio_x) & (ratio_x < 3), (-4 < ratio_w) & (ratio_w < 3)
    assert not inside_x[[0, 1, 2], [0, 5, 2]].any() and not inside_w[[0, 2], [1, 3]].any()
    x_hat, w_hat = ratio_x.round().clamp(-4, 3) * inputs.step, ratio_w.round().clamp(-4, 3) * weights.step
    torch.testing.assert_close(x.grad, (g @ w_hat) * inside_x)
    # "ste" passes the gradient of the quantized weights to all weights, as documented.
    torch.testing.assert_close(student.layer.weight.grad, (g.T @ x_hat) * (inside_w if method == "lsq" else 1))
    assert (x.grad[[0, 1, 2], [0, 5, 2]] == 0).all()
    if method == "lsq":
        assert (student.layer.weight.grad[[0, 2], [1, 3]] == 0).all()


def test_a_step_stays_positive():
    student = prepare_qat(nn.Linear(4, 2), [torch.rand(9, 4)], weight_bits=2, input_bits=2)
    with torch.no_grad():
        student.weight_quantizer.scale.fill_(-1.0)
    assert (student.weight_quantizer.step > 0).all() and torch.isfinite(student(torch.rand(3, 4))).all()


def test_bad_input():
    model, x = net().eval(), patterns(8)[0]
    for options, message in (
        ({"weight_bits": 0, "input_bits": 4}, "bits must be"),
        ({"weight_bits": 1, "input_bits": 4}, "one signed bit"),
        ({"weight_bits": 4, "input_bits": 4, "method": "pact"}, "method must be"),
        ({"weight_bits": 4, "input_bits": 4, "overrides": {"x": (8, 8)}}, "no layer 'x'"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare_qat(model, [x], **options)
    with pytest.raises(TypeError, match="got one Tensor"):
        prepare_qat(model, x, weight_bits=4, input_bits=4)
    with pytest.raises(ValueError, match="saw no sample"):
        prepare_qat(model, [], weight_bits=4, input_bits=4)
    with pytest.raises(ValueError, match="no QATLayer"):
        finish_qat(model)
