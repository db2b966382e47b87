import itertools

import pytest
import torch
from torch import nn

from mlcomp.quant.additive.block_tuning import capture_block, tune_block
from mlcomp.quant.additive.pv_tuning import pv_tuning
from tests.quant.additive.additive_case import error, network


def test_codes_stay_and_the_best_round_is_returned():
    block, x, _, layers = network()
    result = tune_block(block, x, layers, max_rounds=3, steps=5, batch_size=100, dtype=torch.float32)
    for name, q in result.layers.items():
        assert torch.equal(q.codes, layers[name].codes)
        assert not torch.equal(q.codebooks, layers[name].codebooks)
    # One ratio over all inputs against the mean of two batches' ratios: they differ by 1 % here; the rounds, by more.
    assert error(block, result.block, x) == pytest.approx(min(result.history), rel=0.02)
    assert min(result.history) < 0.9 * result.history[0]


def test_stops_when_a_round_gains_less_than_tau():
    block, x, _, layers = network()
    options = {"steps": 5, "batch_size": 100}
    patient = tune_block(block, x, layers, tau=0.0, max_rounds=3, **options).history
    gains = [1 - after / before for before, after in itertools.pairwise(patient)]
    assert 0 < gains[1] < gains[0]
    hasty = tune_block(block, x, layers, tau=(gains[0] + gains[1]) / 2, max_rounds=3, **options).history
    assert hasty == patient[:3]


def test_it_is_the_continuous_half_of_pv_tuning():
    block, x, _, layers = network()
    z = block(x).detach()
    shared = {"targets": z.roll(1, dims=1), "steps": 3, "learning_rate": 5e-3, "batch_size": 60, "seed": 2}
    shared |= {"train_rest": False, "dtype": torch.float32}
    ours = tune_block(block, x, layers, max_rounds=2, tau=0.1, **shared)
    want = pv_tuning(block, x, layers, method="continuous", rounds=2, tolerance=0.1, **shared)
    assert ours.history == want.history
    for name, value in ours.block.state_dict().items():
        assert torch.equal(value, want.block.state_dict()[name])


def test_the_loss_is_taken_from_the_targets():
    block, x, _, layers = network()
    z = block(x).detach()
    disturbed = x + 0.2 * x.roll(1, dims=1)
    start = tune_block(block, disturbed, layers, targets=z, max_rounds=0, batch_size=200, dtype=torch.float32)
    with torch.no_grad():
        want = (start.block(disturbed) - z).square().sum() / z.square().sum()
    assert start.history == (pytest.approx(float(want), rel=1e-5),)  # the same sum in float32


def test_bad_options(as_user):
    block, x, _, layers = network()
    for options in ({"max_rounds": -1}, {"steps": 0}, {"tau": 1.0}, {"learning_rate": 0.0}):
        with pytest.raises(ValueError, match=str(next(iter(options.values())))):
            tune_block(block, x, layers, **options)


class Attention(nn.Module):
    """A block that takes positions and a mask beside its input, and returns a tuple."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(4, 4)

    def forward(self, hidden_states, positions=None, mask=None):
        return self.proj(hidden_states) * mask + positions, None


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.blocks = nn.ModuleList(Attention() for _ in range(2))
        self.unused = nn.Linear(4, 4)

    def forward(self, tokens, mask=None):
        x = self.embed(tokens)
        positions = torch.arange(tokens.shape[1]).float()[None, :, None].expand(len(x), -1, 4)
        mask = torch.ones(len(x), tokens.shape[1], 1) if mask is None else mask
        for block in self.blocks:
            x = block(x, positions=positions, mask=mask)[0]
        return x


def test_a_captured_block_gives_the_models_own_hidden_states():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Model()
    g = torch.Generator().manual_seed(0)
    batches = [torch.randint(10, (size, 5), generator=g) for size in (3, 2)]
    captured = [capture_block(model, batches, f"blocks.{i}") for i in range(2)]
    assert captured[0].inputs.shape == (5, 5, 4) and captured[0].block.block is model.blocks[0]
    with torch.no_grad():
        torch.testing.assert_close(captured[0].block(captured[0].inputs), captured[1].inputs)
        want = torch.cat([model(batch) for batch in batches])
        torch.testing.assert_close(captured[1].block(captured[1].inputs), want)
    assert model.training


def test_bad_input(as_user):
    model, tokens = Model(), torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match="no part 'nowhere'"):
        capture_block(model, [tokens], "nowhere")
    with pytest.raises(ValueError, match="never called"):
        capture_block(model, [tokens], "unused")
    with pytest.raises(TypeError, match="iterable of batches"):
        capture_block(model, tokens, "blocks.0")
    mask = torch.ones(2, 5, 1)
    mask[1, 3:] = 0
    with pytest.raises(ValueError, match="other positions or masks in batch 0"):
        capture_block(model, [(tokens, mask)], "blocks.0")
    with pytest.raises(ValueError, match="other positions or masks in batch 1"):
        capture_block(model, [tokens, tokens[:, :4]], "blocks.0")
