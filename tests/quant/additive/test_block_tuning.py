import pytest
import torch
from torch import nn

from mlcomp.quant.additive.block_tuning import capture_block, tune_block
from tests.quant.additive.additive_case import error, network


def test_only_continuous_parameters_move_and_the_error_falls():
    block, x, held_out, layers = network()
    result = tune_block(block, x, layers, max_rounds=15)
    for name, q in result.layers.items():
        assert torch.equal(q.codes, layers[name].codes)
    assert min(result.history) < 0.8 * result.history[0]
    start = tune_block(block, x, layers, max_rounds=0)
    for inputs in (x, held_out):
        assert error(block, result.block, inputs) < 0.85 * error(block, start.block, inputs)


def test_stops_when_a_round_gains_less_than_tau():
    block, x, _, layers = network()
    patient, hasty = (tune_block(block, x, layers, tau=tau, max_rounds=12) for tau in (0.0, 0.5))
    assert len(hasty.history) < len(patient.history)
    assert hasty.history[-1] > 0.5 * hasty.history[-2]


def test_targets_of_the_dense_network_undo_errors_of_the_inputs():
    block, x, _, layers = network()
    z = block(x).detach()
    disturbed = x + 0.2 * x.roll(1, dims=1)
    aware, unaware = (tune_block(block, disturbed, layers, targets=t).block for t in (z, None))
    with torch.no_grad():
        assert (aware(disturbed) - z).square().sum() < (unaware(disturbed) - z).square().sum()


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
