"""A layer's weight is not always a plain parameter of its own: each function does it right, or names the layer."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from mlcomp.layerwise import (
    collect_hessians,
    compress,
    correct_biases,
    is_layer,
    keep_zeros,
    layer_weights,
    network_sparsity,
    replace_module,
    with_weights,
)
from mlcomp.layerwise.fit import copy_model
from mlcomp.obs import gptq
from mlcomp.prune import calibrate, gradual_pruning, magnitude, snip
from mlcomp.quant import brecq, prepare_diffq, prepare_qat, ptq, rtn


def normed():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
    parametrizations.weight_norm(net[2])
    return net


def old_normed():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(net[2])
    return net


def masked():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
    prune.random_unstructured(net[2], "weight", 0.5)
    net(torch.ones(1, 6))
    return net


class OwnForward(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight - self.weight.mean(1, keepdim=True))


def own_forward():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), OwnForward(8, 6))


def scaled():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
    net[2].weight = nn.Parameter(net[2].weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    net[2].forward = lambda x: F.linear(x, net[2].weight.float())
    return net


def tied():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
    net.table = nn.Embedding(8, 6)
    net.table.forward = lambda x: x
    net[2].weight = nn.Parameter(net.table.weight.detach().t())
    assert net[2].weight.data_ptr() == net.table.weight.data_ptr()
    return net


UNFIT = {
    normed: "computed",
    old_normed: "remove_weight_norm",
    masked: "prune.remove",
    own_forward: "OwnForward has a forward",
    scaled: "float8",
}
X, Y = torch.randn(32, 6), torch.randint(0, 6, (32,))
FUNCTIONS = {
    "compress": lambda net: compress(net, [X], functools.partial(rtn, bits=3), layers=["2"], progress=False),
    "ptq": lambda net: ptq(net, [X], weight_bits=3, input_bits=None, layers=["2"]),
    "prepare_qat": lambda net: prepare_qat(net, [X], weight_bits=3, input_bits=None),
    "prepare_diffq": lambda net: prepare_diffq(net),
    "brecq": lambda net: brecq(net, X, bits=3, steps=2),
    "with_weights": lambda net: with_weights(net, {"2": torch.zeros(6, 8)}),
    "keep_zeros": lambda net: keep_zeros(net),
    "snip": lambda net: snip(net, X, Y, sparsity=0.5),
    "gradual": lambda net: gradual_pruning(net, X, Y, sparsity=0.5, epochs=1, lr=0.1, progress=False),
    "calibrate": lambda net: calibrate(net, net, [X]),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("make", UNFIT, ids=lambda f: f.__name__)
def test_a_weight_that_cannot_be_exchanged_is_refused_by_name(make, function):
    net = make()
    if function == "calibrate":
        with torch.no_grad():
            net[0].weight[0] = 0
            for parameter in net[2].parameters():
                if parameter.dtype.itemsize == 1:
                    parameter.zero_()
                elif parameter.shape == (6, 8):
                    parameter[0, 0] = 0
            net(X)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    if make is own_forward and function not in ("compress", "calibrate"):
        FUNCTIONS[function](net)  # whatever the weight multiplies, the layer itself knows
        return
    with pytest.raises(ValueError, match=f"layer '2': .*{UNFIT[make]}"):
        FUNCTIONS[function](net)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("make", [*UNFIT, tied], ids=lambda f: f.__name__)
def test_where_nobody_asked_for_it_the_layer_is_left_with_the_reason(make):
    net = make()
    words = UNFIT.get(make, "tied to table.weight")
    result, report = compress(net, [X], functools.partial(rtn, bits=3), progress=False)
    assert words in report["2"].status and report["0"].status == "compressed"
    assert words in str(report) and words in report._repr_html_().replace("&#x27;", "'")
    models = [result]
    if make in (normed, old_normed, masked):  # the caller can make them plain
        with pytest.raises(ValueError, match=f"layer '2': .*{words}"):
            ptq(net, [X], weight_bits=3, input_bits=4)
    else:
        quantized = ptq(net, [X], weight_bits=3, input_bits=4)
        if make is own_forward:
            assert not quantized.skipped and all(len(row.unique()) <= 8 for row in quantized.model[2].weight)
        else:
            assert words in quantized.skipped["2"] and words in str(quantized) and len(quantized.rows) == 1
            models.append(quantized.model)
    for model in models:
        torch.testing.assert_close(model[2](torch.ones(1, 8)), net[2](torch.ones(1, 8)))


def test_tied_weights_stay_tied_or_get_one_of_their_own():
    net = tied()
    method = functools.partial(rtn, bits=2)
    with pytest.raises(ValueError, match=r'layer .2.: its weight is tied to table.weight.*tied="untie"'):
        compress(net, [X], method, layers=["2"], progress=False)
    result, _ = compress(net, [X], method, tied="untie", progress=False)
    assert torch.equal(result.table.weight, net.table.weight)
    assert all(len(row.unique()) <= 4 for row in result[2].weight.detach())
    copied = copy_model(net)
    assert copied[2].weight.data_ptr() == copied.table.weight.data_ptr() != net.table.weight.data_ptr()
    changed = with_weights(net, {"2": torch.full((6, 8), 2.0)})
    assert (changed.table.weight == 2).all()


def test_layers_that_share_a_weight_cannot_be_given_two():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = nn.Parameter(net[0].weight.detach().t())
    assert list(layer_weights(net)) == ["0"] or len(layer_weights(net)) == 2
    with pytest.raises(ValueError, match="shares its weight"):
        with_weights(net, {"0": torch.eye(4), "2": torch.ones(4, 4)})
    assert with_weights(net, {"0": torch.eye(4), "2": torch.eye(4)})[2].weight.equal(torch.eye(4))


def test_what_only_reads_takes_computed_weights():
    net = masked()
    assert network_sparsity(net, ["2"]) == 0.5
    assert torch.equal(layer_weights(net)["2"], net[2].weight)
    found = collect_hessians(net, [X])
    assert found["2"].shape == (8, 8)
    with pytest.raises(ValueError, match="layer '2': OwnForward"):
        collect_hessians(own_forward(), [X])


@pytest.mark.parametrize("moved", [nn.Module.double, nn.Module.half, copy.deepcopy])
def test_zeros_stay_zero_when_the_model_is_moved(moved):
    net = nn.Sequential(nn.Linear(6, 4), nn.MultiheadAttention(4, 2))
    net = with_weights(net, {n: magnitude(w, sparsity=0.5) for n, w in layer_weights(net).items()})
    keep = keep_zeros(net)
    if moved is copy.deepcopy:
        net._apply(lambda t: t.clone())
    else:
        moved(net)
    zeros = {name: weight == 0 for name, weight in layer_weights(net).items()}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    keep(1)
    for name, weight in layer_weights(net).items():
        assert torch.equal(weight == 0, zeros[name])


def test_a_module_under_several_names_is_replaced_under_each():
    net = nn.Module()
    net.a, net.list = nn.Linear(4, 4), nn.ModuleList()
    net.list.append(net.a)
    net.inner = nn.ModuleDict({"again": net.a})
    new = nn.Identity()
    assert replace_module(net, "list.0", new) is net
    assert net.a is net.list[0] is net.inner["again"] is new


def test_a_replacement_serves_who_reads_the_layer():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(x.to(self.inner.weight.dtype)) + self.inner.bias.sum() * self.inner.in_features

    x = torch.randn(8, 4)
    for model in (
        ptq(Reader(), [x], input_bits=None).model,
        prepare_qat(Reader(), [x], weight_bits=4, input_bits=8),
        prepare_diffq(Reader()),
    ):
        weight = model.inner.weight
        assert model(x).shape == (8, 4) and weight.shape == (4, 4)
        with pytest.raises(AttributeError):
            _ = model.inner.nothing_of_the_kind
    trained = prepare_qat(Reader(), [x], weight_bits=2, input_bits=None)
    assert all(len(row.unique()) <= 4 for row in trained.inner.weight.detach()) and trained.inner.weight.requires_grad


KINDS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (5, 4, 11)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, padding="same", dilation=(1, 2, 1)), (2, 2, 4, 5, 3)),
    "up1": (lambda: nn.ConvTranspose1d(4, 6, 4, stride=3, padding=1, output_padding=2, groups=2), (5, 4, 7)),
    "up2": (lambda: nn.ConvTranspose2d(4, 3, (3, 2), stride=(2, 3), padding=(2, 0), dilation=(1, 2)), (3, 4, 5, 4)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_convolutions_of_other_dimensions_and_transposed_ones(kind):
    """The output for Ŵ from the matrices alone, and its error from H, are those of the layer itself."""
    make, shape = KINDS[kind]
    net, x = nn.Sequential(make()).double(), torch.randn(shape, dtype=torch.float64)
    assert is_layer(net[0])
    method = functools.partial(rtn, bits=3)
    result, report = compress(net, [x], method, dtype=torch.float64, errors=True, progress=False)
    with torch.no_grad():
        bias = net[0].bias.reshape(-1, *[1] * (x.ndim - 2))
        true = net(x) - bias
        error = (result(x) - net(x)).square().sum() / true.square().sum()
    assert report["0"].error == pytest.approx(float(error), rel=1e-9)
    rows = (0, 1) if isinstance(net[0], nn.modules.conv._ConvTransposeNd) else (0,)
    if getattr(net[0], "groups", 1) == 1:  # eight values a row of outputs, whatever the layout of the weight
        by_output = result[0].weight.detach().movedim(rows[-1], 0).flatten(1)
        assert all(len(row.unique()) <= 8 for row in by_output)
    quantized = ptq(net, [x], weight_bits=3, input_bits=None, clip="minmax")
    corrected = correct_biases(quantized.model[0].layer, net[0], [x])
    channel = [d for d in range(x.ndim) if d != 1]
    torch.testing.assert_close(corrected(x).mean(channel), net(x).mean(channel), rtol=1e-6, atol=1e-9)


def test_conv1d_of_transformers_is_a_linear_layer():
    module = pytest.importorskip("transformers.pytorch_utils")
    plain, turned = nn.Sequential(nn.Linear(6, 9)), nn.Sequential(module.Conv1D(9, 6))
    with torch.no_grad():
        turned[0].weight.copy_(plain[0].weight.T)
        turned[0].bias.copy_(plain[0].bias)
    method = functools.partial(rtn, bits=3)
    results = [compress(net, [X], method, progress=False) for net in (plain, turned)]
    torch.testing.assert_close(results[0][0][0].weight, results[1][0][0].weight.T, rtol=0, atol=0)
    assert results[0][1]["0"].error == pytest.approx(results[1][1]["0"].error)
    for bits in (None, 4):
        outputs = [ptq(net, [X], weight_bits=3, input_bits=bits).model(X) for net in (plain, turned)]
        torch.testing.assert_close(*outputs)


def test_weights_without_data_are_named():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6, device="meta"))
    for call in (
        lambda: compress(net, [X], functools.partial(gptq, bits=3), progress=False),
        lambda: ptq(net, [X]),
        lambda: collect_hessians(net, [X]),
    ):
        with pytest.raises(ValueError, match=r"layer '2': its weight has no data .*load the model's weights"):
            call()
