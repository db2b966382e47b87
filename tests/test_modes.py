"""Where a model lies; and whoever runs one gives every module its own mode back: metrics and training alike."""

import pytest
import torch
from torch import nn

from mlcomp.compare import bits_per_byte
from mlcomp.metrics import accuracy, perplexity
from mlcomp.models import byte_lm, embed
from mlcomp.modes import evaluating, home, keeping_modes
from mlcomp.train import train


def frozen() -> nn.Sequential:
    """Return a net in training whose BatchNorm is frozen: two modes in one model."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Dropout(), nn.Linear(4, 2))).train()
    model[1].eval()
    return model


def modes(model: nn.Module) -> list[bool]:
    return [m.training for m in model.modules()]


class Failing(nn.Module):
    """Fails when it is called."""

    def forward(self, *_, **__):
        raise KeyError("inside the model")


def test_the_home_of_a_model_is_that_of_its_first_parameter():
    assert home(nn.Sequential(nn.ReLU(), nn.Linear(2, 2, device="meta"), nn.Linear(2, 2))).type == "meta"
    assert home(nn.ReLU()) == torch.device("cpu")


@pytest.mark.parametrize("context", [keeping_modes, evaluating])
def test_modes_come_back_after_an_error_too(context):
    model = frozen()
    before = modes(model)
    with pytest.raises(KeyError), context(model):
        model.train(context is keeping_modes)
        assert len(set(modes(model))) == 1
        raise KeyError
    assert modes(model) == before and len(set(before)) == 2 and torch.is_grad_enabled()


def test_training_and_metrics_leave_a_frozen_part_frozen():
    model, x, y = frozen(), torch.randn(8, 4), torch.arange(8) % 2
    before = modes(model)
    train(model, x, y, epochs=1, lr=0.1, progress=False)
    assert modes(model) == before
    accuracy(model, x, y)
    assert modes(model) == before
    with pytest.raises(ValueError, match="the loss"):
        train(model, x, y, epochs=1, lr=0.1, progress=False, loss=lambda out, _: out.sum() / 0)
    assert modes(model) == before


@pytest.mark.parametrize(
    "call",
    [
        lambda model: accuracy(model, torch.ones(2, 4), torch.zeros(2, dtype=torch.long)),
        lambda model: perplexity(model, [torch.zeros(1, 3, dtype=torch.long)]),
        lambda model: bits_per_byte(model, torch.zeros(20, dtype=torch.long), context=4),
        lambda model: embed(model, lambda *_, **__: _Tokens(), ["a"]),
    ],
)
def test_an_error_inside_the_model_leaves_the_modes(call):
    model = nn.Sequential(frozen(), Failing())
    model.forward = model[1].forward
    before = modes(model)
    with pytest.raises(KeyError, match="inside the model"):
        call(model)
    assert modes(model) == before and torch.is_grad_enabled()


class _Tokens(dict):
    def to(self, device):
        return self


def test_no_sample_is_a_clear_error():
    model = byte_lm(16)
    with pytest.raises(ValueError, match="length ≥ 1, got 0 and 0"):
        accuracy(model, torch.ones(0, 4), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="same length"):
        accuracy(frozen(), torch.ones(2, 4), torch.zeros(3, dtype=torch.long))
