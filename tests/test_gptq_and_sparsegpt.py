"""The experiment of zeros and codes: its methods leave what their names say, and sizes are counted as stated."""

import pytest
import torch

from experiments.gptq_and_sparsegpt import bits_per_weight, methods
from mlcomp.data import make_layer
from mlcomp.layerwise import compress
from mlcomp.metrics import hessian_error
from mlcomp.obs import layer_hessian


def one_layer(name):
    """Compress one layer by a method of the table; return the weight before, after, and the report's rows."""
    weight, x, _ = make_layer(48, 64, 400, seed=0)
    layer = torch.nn.Linear(64, 48, bias=False)
    layer.weight.data.copy_(weight)
    result, report = compress(torch.nn.Sequential(layer), [x.T], methods()[name][0], progress=False)
    return weight, result[0].weight.detach(), layer_hessian(x), report.rows


@pytest.mark.parametrize("name", [name for name in methods() if "50" in name or "2_4" in name])
def test_zeros_are_those_of_the_name(name):
    _, new, _, _ = one_layer(name)
    zeros = new == 0
    assert float(zeros.float().mean()) >= 0.5
    if "2_4" in name:
        assert int(zeros.view(48, 16, 4).sum(-1).min()) >= 2
    if methods()[name][1] == 4:  # at most 16 values in a row
        assert max(len(row.unique()) for row in new) <= 16


def test_the_order_within_a_layer():
    errors = {}
    for name in ("magnitude_50", "wanda_50", "sparsegpt_50", "joint_50_4", "sparsegpt_50_then_rtn_4"):
        weight, new, hessian, _ = one_layer(name)
        errors[name] = hessian_error(weight, new, hessian)
    assert errors["sparsegpt_50"] < errors["wanda_50"] < errors["magnitude_50"]
    assert errors["sparsegpt_50"] < errors["joint_50_4"] < errors["sparsegpt_50_then_rtn_4"]


def test_bits_are_counted_with_the_mask():
    assert bits_per_weight(one_layer("sparsegpt_50")[3], None) == 16 / 2 + 1
    # 4 bits for a code; a row of 64 has a step of 32 bits and a zero code of 4.
    assert bits_per_weight(one_layer("gptq_4")[3], 4) == pytest.approx(4 + 36 / 64)
    zeros = float((one_layer("joint_2_4_4")[1] == 0).double().mean())
    assert bits_per_weight(one_layer("joint_2_4_4")[3], 4) == pytest.approx(4 * (1 - zeros) + 1 + 36 / 64)
