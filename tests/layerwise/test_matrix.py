import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mlcomp.layerwise import matrix
from mlcomp.layerwise.matrix import find_layers, input_matrices, set_weight_matrix, weight_matrix

CONVS = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": (2, 0), "dilation": (1, 2), "stride": (1, 2)},
    {"padding": "same", "kernel_size": (2, 3)},
    {"padding": "valid"},
    {"padding": 2, "padding_mode": "circular"},
    {"padding": 1, "padding_mode": "reflect", "groups": 2},
    {"padding": "same", "padding_mode": "replicate", "kernel_size": (4, 2), "dilation": 2},
    {"groups": 4, "out_channels": 4, "padding": 1},
    {"groups": 4, "out_channels": 8, "stride": 3},
]


@pytest.mark.parametrize("options", CONVS)
@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
def test_the_two_matrices_multiply_to_the_convolution(options):
    torch.manual_seed(0)
    module = nn.Conv2d(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, "bias": False, **options}).double()
    x = torch.randn(5, 4, 9, 10, dtype=torch.float64)
    truth = module(x).movedim(1, 0).flatten(1)
    columns = torch.cat(list(input_matrices(module, x)), 2)
    torch.testing.assert_close((weight_matrix(module) @ columns).flatten(0, 1), truth)


def test_image_without_batch_and_small_pieces(monkeypatch):
    module = nn.Conv2d(3, 2, 3, padding=1, bias=False)
    x = torch.randn(7, 3, 6, 6)
    whole = torch.cat(list(input_matrices(module, x)), 2)
    monkeypatch.setattr(matrix, "UNFOLD_FLOATS", 2 * 3 * 8 * 8 * 9)
    parts = list(input_matrices(module, x))
    assert len(parts) > 2
    torch.testing.assert_close(torch.cat(parts, 2), whole)
    torch.testing.assert_close(next(input_matrices(module, x[0])), whole[:, :, :36])


def test_linear_with_any_leading_shape():
    module = nn.Linear(4, 3, bias=False)
    x = torch.randn(2, 5, 4)
    product = weight_matrix(module)[0] @ next(input_matrices(module, x))[0]
    torch.testing.assert_close(product, F.linear(x, module.weight).reshape(10, 3).T)


def test_weight_goes_there_and_back_in_any_dtype_and_layout():
    module = nn.Conv2d(4, 6, 3, groups=2).bfloat16()
    module.weight = nn.Parameter(module.weight.detach().to(memory_format=torch.channels_last))
    before = module.weight.detach().clone()
    matrix = weight_matrix(module)
    assert matrix.shape == (2, 3, 18) and matrix.dtype == torch.float32
    set_weight_matrix(module, 2 * matrix)
    assert module.weight.dtype == torch.bfloat16
    torch.testing.assert_close(module.weight.detach(), 2 * before, rtol=0, atol=0)


def test_names_must_be_layers():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(ValueError, match="no layer 'x'"):
        find_layers(model, ["x"])
    with pytest.raises(ValueError, match="'1' is ReLU"):
        find_layers(model, ["1"])
    with pytest.raises(ValueError, match="no layers"):
        find_layers(model, [])
    with pytest.raises(ValueError, match="no layers"):
        find_layers(model[1])


def test_layers_are_found_in_the_order_asked_for():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)))
    assert find_layers(model) == {"0": model[0], "2.0": model[2][0]}
    assert list(find_layers(model, ["2.0", "0"]).values()) == [model[2][0], model[0]]
