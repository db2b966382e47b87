import pytest
import torch

from mlcomp.data import make_layer
from mlcomp.obs import layer_hessian, refit
from mlcomp.prune import magnitude, masked_finetune


def problem(out=6, inp=16, samples=400, seed=0):
    weight, x, _ = make_layer(out, inp, samples, seed=seed)
    weight, x = weight.double(), x.double() + 0.5
    bias = torch.linspace(-1, 1, out, dtype=torch.float64)
    return magnitude(weight, sparsity=0.5, scope="row"), x, weight @ x + bias[:, None], weight, bias


def best_error(start, x, y):
    """Masked least squares with a free bias, row by row, by torch's solver: the optimum of eq. (6)."""
    total = 0.0
    for row, target in zip(start, y, strict=True):
        columns = torch.cat([x[row != 0], torch.ones_like(x[:1])]).T
        solution = torch.linalg.lstsq(columns, target[:, None]).solution
        total += float((columns @ solution - target[:, None]).square().sum())
    return total / y.numel()


def test_reaches_the_closed_form():
    start, x, y, weight, bias = problem()
    made = masked_finetune(start, x, y, bias=bias, steps=3000, batch_size=400, learning_rate=0.05)
    best = best_error(start, x, y)
    assert best <= made.error < 1.001 * best < 0.7 * made.error_before
    assert torch.equal(made.weight == 0, start == 0)
    error = float((made.weight @ x + made.bias[:, None] - y).square().mean())
    assert made.error == pytest.approx(error)
    # The same optimum from the closed form of the library, the bias as one more input that is always 1 and kept.
    augmented = torch.cat([x, torch.ones_like(x[:1])])
    full, mask = torch.cat([weight, bias[:, None]], 1), torch.cat([start != 0, torch.ones(6, 1, dtype=torch.bool)], 1)
    fitted = refit(full, mask, layer_hessian(augmented))
    assert float((fitted @ augmented - y).square().mean()) == pytest.approx(best, rel=1e-9)


def test_first_step_is_adams():
    """One step of Adam moves each kept weight and each bias by the rate against the sign of its gradient."""
    start, x, y, _, bias = problem()
    bias = bias + 1  # far from right, so that a step of 1e-5 helps
    made = masked_finetune(start, x, y, bias=bias, steps=1, batch_size=400, learning_rate=1e-5)
    unit = float(start[start != 0].square().mean().sqrt())
    step = (made.weight - start)[start != 0]
    # ε of Adam is 1e-8 against gradients of 1e-3 and more.
    torch.testing.assert_close(step.abs(), torch.full_like(step, 1e-5 * unit), rtol=1e-4, atol=0)
    torch.testing.assert_close(
        made.bias - bias, torch.full_like(bias, -1e-5 * unit * float(x.square().mean().sqrt())), rtol=1e-4, atol=0
    )


def test_never_worse_than_the_start():
    start, x, y, _, bias = problem()
    for rate in (0.02, 100.0):  # the second diverges
        made = masked_finetune(start, x, y, bias=bias, steps=20, learning_rate=rate)
        assert made.error <= made.error_before
        if made.error == made.error_before:
            assert torch.equal(made.weight, start) and torch.equal(made.bias, bias)
    assert masked_finetune(start, x, y, bias=bias, learning_rate=100.0, steps=20).error == made.error_before


def test_units_do_not_matter():
    start, x, y, _, bias = problem()
    options = {"steps": 50, "batch_size": 64}
    made = masked_finetune(start, x, y, bias=bias, **options)
    inputs = masked_finetune(start / 1024, x * 1024, y, bias=bias, **options)
    torch.testing.assert_close(inputs.weight * 1024, made.weight, rtol=1e-8, atol=0)
    both = masked_finetune(start * 256, x, y * 256, bias=bias * 256, **options)
    torch.testing.assert_close(both.weight, made.weight * 256, rtol=1e-8, atol=0)
    torch.testing.assert_close(both.bias, made.bias * 256, rtol=1e-8, atol=0)


def test_ends_of_the_options_and_seed():
    start, x, y, _, bias = problem()
    unmoved = masked_finetune(start, x, y, bias=bias, steps=0)
    assert torch.equal(unmoved.weight, start) and torch.equal(unmoved.bias, bias)
    everything = masked_finetune(torch.zeros_like(start), x, y, steps=2000, batch_size=400, learning_rate=0.1)
    assert not everything.weight.any()  # what is left is the bias, whose optimum is the mean
    torch.testing.assert_close(everything.bias, y.mean(1), atol=0.05, rtol=0)  # Adam on drawn samples
    assert masked_finetune(start, torch.zeros_like(x), y, steps=5).error <= float(y.square().mean())
    a, b, c = (masked_finetune(start, x, y, steps=5, batch_size=8, seed=s).weight for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    state = torch.get_rng_state()
    made = masked_finetune(start.bfloat16(), x.float(), y.float(), steps=5)
    assert made.weight.dtype == torch.bfloat16 and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": torch.ones(3, 4)}, "inputs must be"),
        ({"inputs": torch.ones(16, 0)}, "inputs must be"),
        ({"targets": torch.ones(6, 3)}, "targets must be"),
        ({"bias": torch.ones(5)}, "bias must be"),
        ({"targets": torch.full((6, 400), float("nan"))}, "targets holds"),
        ({"inputs": torch.full((16, 400), float("inf"))}, "inputs holds"),
        ({"steps": -1}, "steps must be"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_bad_input(as_user, change, message):
    start, x, y, _, _ = problem()
    with pytest.raises(ValueError, match=message):
        masked_finetune(**{"weight": start, "inputs": x, "targets": y} | change)
