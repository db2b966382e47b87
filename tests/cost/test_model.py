import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mlcomp.cost import model_cost
from mlcomp.formats import sparse_nbytes


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, (1, 3), groups=4, dilation=(1, 2)),
        nn.Flatten(),
        nn.Linear(16 * 8 * 4, 10),
    )


def test_by_hand():
    cost = model_cost(net(), torch.randn(1, 3, 16, 16))
    # 3×16×16 → 8×8×8: 64 pixels, each 8 × 27 multiply-adds
    assert cost["0"].flops == 2 * 64 * 8 * 27 and cost["0"].positions == 64
    # → 16×8×4: 32 pixels, 16 outputs from 2 channels × 3
    assert cost["3"].flops == 2 * 32 * 16 * 6
    assert cost["5"].flops == 2 * 512 * 10 and cost["5"].positions == 1
    assert cost.flops == cost.flops_dense == cost["0"].flops + cost["3"].flops + cost["5"].flops
    assert cost["0"].nbytes_dense == 216 * 4 and cost["0"].nbytes_other == 0
    assert cost["5"].nbytes_other == 40
    # BatchNorm: weight, bias, mean, variance in float32 and the int64 counter
    assert cost["1"].nbytes_dense + cost["1"].nbytes_other == 4 * 8 * 4 + 8 and cost["1"].flops == 0
    everything = [*net().parameters(), *net().buffers()]
    assert cost.nbytes_dense == cost.nbytes == sum(t.numel() * t.element_size() for t in everything)
    assert "MFLOPs" in str(cost) and len(str(cost).splitlines()) == len(cost.rows) + 2


@pytest.mark.parametrize("batch", [1, 7])
def test_agrees_with_torch(batch):
    model, x = net(), torch.randn(batch, 3, 16, 16)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert model_cost(model, x).flops == counter.get_total_flops()


def test_tokens_and_shared_modules():
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    x = torch.randn(2, 5, 6)
    with FlopCounterMode(display=False) as counter:
        model(x)
    cost = model_cost(model, x)
    assert cost["0"].positions == 20 and cost.flops == counter.get_total_flops() == 2 * 20 * 36
    assert cost.nbytes == 36 * 4 + 24


def test_tied_weights_are_counted_once_in_bytes_and_fully_in_flops():
    model = nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 11, bias=False))
    model[1].weight = model[0].weight
    cost = model_cost(model, torch.zeros(1, 3, dtype=torch.long))
    assert cost.nbytes == 44 * 4 and cost["1"].flops == 2 * 3 * 44 and cost["1"].nbytes_dense == 0


class NamedWeight(nn.Module):
    """A module whose attribute ``weight`` is a module, not a tensor."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Linear(3, 2, bias=False)
        self.gain = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.weight(x) * self.gain


def test_a_module_named_weight_is_a_module():
    cost = model_cost(NamedWeight(), torch.ones(1, 3))
    assert [(row.name, row.shape, row.nbytes_dense, row.nbytes_other) for row in cost.rows] == [
        ("", (), 0, 8),
        ("weight", (2, 3), 24, 0),
    ]


def test_sparsity_and_bits():
    model = net()
    weight = model[3].weight.data
    weight.view(-1)[: weight.numel() // 4 * 3] = 0
    cost = model_cost(model, torch.randn(1, 3, 16, 16), bits={"5": 4.5})
    assert cost["3"].density == 0.25 and cost["3"].flops == cost["3"].flops_dense // 4
    assert cost["3"].nbytes == sparse_nbytes((16, 6), 24, format="bitmask", value_bits=32) == 24 * 4 + 12
    assert cost["5"].nbytes == math.ceil(5120 * 4.5 / 8)
    assert cost.nbytes < cost.nbytes_dense


def test_the_model_stays_as_it_is():
    model = net().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model_cost(model, torch.randn(1, 3, 16, 16))
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_bad_input():
    x = torch.randn(1, 3, 16, 16)
    with pytest.raises(ValueError, match="'nine', which is no linear"):
        model_cost(net(), x, bits={"nine": 4})
    with pytest.raises(ValueError, match="'0' must be positive"):
        model_cost(net(), x, bits={"0": 0})
