import itertools

import pytest
import torch
from torch import nn

from mlcomp.data import make_layer
from mlcomp.quant import brecq, rtn


class Residual(nn.Module):
    def __init__(self, channels: int = 4):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=2)

    def forward(self, x):
        return torch.relu(x + self.conv2(torch.relu(self.norm(self.conv1(x)))))


def residual_block(seed: int = 0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A block with smooth, correlated images as inputs: (block, calibration, held out)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        block = Residual()
        images = nn.functional.avg_pool2d(torch.randn(96, 4, 10, 10), 3, stride=1)
        block.norm(block.conv1(images))  # moves the running statistics away from their start
    return block.eval(), images[:64], images[64:]


def error(block: nn.Module, other: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float((block(x) - other(x)).square().sum() / block(x).square().sum())


def rounded_to_nearest(block: nn.Module, bits: int) -> nn.Module:
    with torch.random.fork_rng():
        copied = Residual().eval()
    copied.load_state_dict(block.state_dict())
    with torch.no_grad():
        for layer in (copied.conv1, copied.conv2):
            q = rtn(layer.weight.flatten(1), bits=bits, clip="mse")
            layer.weight.copy_(q.dequantize().reshape(layer.weight.shape))
    return copied


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_better_than_nearest_on_a_residual_block(bits):
    block, x, held_out = residual_block()
    result = brecq(block, x, bits=bits, steps=120)
    nearest = rounded_to_nearest(block, bits)
    assert error(block, result.block, x) < 0.7 * error(block, nearest, x)
    assert error(block, result.block, held_out) < 0.8 * error(block, nearest, held_out)


def test_codes_are_neighbours_and_stand_for_the_weights():
    block, x, _ = residual_block()
    before = {name: t.clone() for name, t in block.state_dict().items()}
    result = brecq(block, x, bits=3, steps=60)
    assert all(torch.equal(t, before[name]) for name, t in block.state_dict().items())
    assert set(result.layers) == {"conv1", "conv2"} and not result.block.training
    for name, q in result.layers.items():
        weight, new = block.get_submodule(name).weight, result.block.get_submodule(name).weight
        assert torch.equal(q.dequantize().reshape(new.shape), new)
        nearest = rtn(weight.detach().flatten(1), bits=3, clip="mse")
        assert torch.equal(q.step, nearest.step) and torch.equal(q.zero, nearest.zero)
        low = torch.floor(weight.detach().flatten(1) / q.step) + q.zero
        assert (q.codes == torch.stack([low, low + 1]).clamp(0, 7)).any(0).all()
    for name in ("norm.weight", "norm.running_mean", "norm.num_batches_tracked", "conv2.bias"):
        assert torch.equal(result.block.state_dict()[name], before[name])
    assert all(p.requires_grad for p in result.block.parameters())


@pytest.mark.slow
def test_close_to_the_best_of_all_joint_roundings():
    """Two layers of 2·3 + 1·2 weights: all 2^8 joint roundings of the block."""
    gain, possible = 0.0, 0.0
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        block = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
        with torch.no_grad():
            for layer in (block[0], block[2]):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=g))
        x = make_layer(1, 3, 60, seed=seed)[1].T.double()
        grids = [rtn(layer.weight.detach(), bits=2, clip="mse") for layer in (block[0], block[2])]
        lows = [
            torch.floor(layer.weight.detach() / q.step) for layer, q in zip((block[0], block[2]), grids, strict=True)
        ]

        def candidate(bits, x=x, lows=lows, grids=grids):
            ups = torch.tensor(bits[:6]).reshape(2, 3), torch.tensor(bits[6:]).reshape(1, 2)
            a, b = (
                ((low + up + q.zero).clamp(0, 3) - q.zero) * q.step
                for low, up, q in zip(lows, ups, grids, strict=True)
            )
            return torch.relu(x @ a.T) @ b.T

        with torch.no_grad():
            z = block(x)
            best = min(float((candidate(bits) - z).square().sum()) for bits in itertools.product((0, 1), repeat=8))
            nearest = torch.relu(x @ grids[0].dequantize().T) @ grids[1].dequantize().T
            ours = float((brecq(block, x, bits=2, steps=200).block(x) - z).square().sum())
        assert ours >= best - 1e-9
        gain += (float((nearest - z).square().sum()) - ours) / float(z.square().sum())
        possible += (float((nearest - z).square().sum()) - best) / float(z.square().sum())
    # A heuristic: it gets most of the gain that there is.
    assert possible > 0.05 and gain > 0.5 * possible


@pytest.mark.slow
def test_fisher_weights_favour_the_outputs_that_matter():
    """A bottleneck of 3 values serves 12 outputs: what helps some of them hurts the others."""
    own, other = torch.zeros(2), torch.zeros(2)
    for seed in range(3):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            block = nn.Sequential(nn.Linear(16, 3, bias=False), nn.Linear(3, 12, bias=False))
        x = make_layer(1, 16, 100)[1].T
        z = block(x).detach()
        gradients = torch.tensor([1.0] * 4 + [0.1] * 8).expand_as(z)
        for i, g in enumerate((None, gradients)):
            result = brecq(block, x, bits=3, gradients=g, steps=150, batch_size=100)
            with torch.no_grad():
                square = (result.block(x) - z).square()
            own[i] += (square * gradients.square()).sum()
            other[i] += square.sum()
    assert own[1] < 0.9 * own[0] and other[0] < 0.9 * other[1]
    # Only the ratios of the gradients count.
    scaled = brecq(block, x, bits=3, gradients=gradients * 2.0**-30, steps=150, batch_size=100)
    assert all(torch.equal(scaled.layers[n].codes, result.layers[n].codes) for n in scaled.layers)


def test_the_weight_of_an_error_is_the_square_of_its_gradient():
    """With one output, sum g²(z − ẑ)² is the plain error of the samples g·x: the same codes, to the last one."""
    layer = nn.Linear(48, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(1, 48, generator=torch.Generator().manual_seed(1)))
    x = make_layer(1, 48, 96, seed=1)[1].T.double()
    gradients = torch.tensor([0.25, 0.5, 0.125, -4.0]).double().repeat(24)[:, None]
    options = {"bits": 2, "steps": 100, "batch_size": 96}
    weighted = brecq(layer, x, gradients=gradients, **options).layers[""].codes
    assert torch.equal(weighted, brecq(layer, x * gradients, **options).layers[""].codes)
    # Weights of 1, or of |g|, choose other codes on this problem.
    for power in (0.0, 0.5):
        other = brecq(layer, x * gradients.abs() ** power, **options).layers[""].codes
        assert not torch.equal(weighted, other)


def test_targets_of_the_original_network_undo_an_error_of_the_inputs():
    block, x, _ = residual_block()
    z = block(x).detach()
    disturbed = x + 0.1 * x.roll(1, dims=1)
    aware = brecq(block, disturbed, bits=3, targets=z, steps=100).block
    unaware = brecq(block, disturbed, bits=3, steps=100).block
    with torch.no_grad():
        assert (aware(disturbed) - z).square().sum() < (unaware(disturbed) - z).square().sum()


def test_same_seed_same_codes_and_global_generator_untouched():
    block, x, _ = residual_block()
    state = torch.random.get_rng_state()
    one, two = (brecq(block, x, bits=3, steps=20, batch_size=10, seed=5) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one.layers[n].codes, two.layers[n].codes) for n in one.layers)


def test_a_single_layer_and_an_already_quantized_block():
    layer = nn.Linear(6, 3)
    x = make_layer(1, 6, 50)[1].T
    with torch.no_grad():
        layer.weight.copy_(rtn(torch.randn(3, 6, generator=torch.Generator().manual_seed(0)), bits=4).dequantize())
    result = brecq(layer, x, bits=4, clip="minmax")
    assert list(result.layers) == [""]
    assert torch.allclose(result.block.weight, layer.weight, atol=1e-6)


def test_bad_input(as_user):
    block, x, _ = residual_block()
    z = block(x).detach()
    for options, message in (
        ({"bits": 9}, "bits must be"),
        ({"bits": 3, "steps": 0}, "steps must be"),
        ({"bits": 3, "batch_size": 0}, "batch_size must be"),
        ({"bits": 3, "targets": z[:5]}, "targets must have one entry"),
        ({"bits": 3, "targets": z[:, :2]}, "like the block's output"),
        ({"bits": 3, "targets": z / 0}, "targets holds"),
        ({"bits": 3, "gradients": z[:, :1]}, "like the targets"),
        ({"bits": 3, "gradients": z * 0}, "zero everywhere"),
    ):
        with pytest.raises(ValueError, match=message):
            brecq(block, x, **options)
    with pytest.raises(ValueError, match=r"no layers: the model has no nn.Linear"):
        brecq(nn.ReLU(), x, bits=3)
    for bad in (x[:0], torch.ones(3)):
        with pytest.raises(ValueError, match="inputs must be"):
            brecq(block, bad, bits=3)
    with pytest.raises(ValueError, match="inputs holds"):
        brecq(block, x / 0, bits=3)
