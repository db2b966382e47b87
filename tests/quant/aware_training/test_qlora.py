import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.layerwise import PackedLinear
from mlcomp.quant import double_quantize, qlora
from mlcomp.train import LoRALinear, lora_layers, lora_parameters, train

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3, bias=False)).eval()


def decoded(model, **options):
    """The same network with the weights that the codes stand for."""
    result = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (result[0], result[2]):
            layer.weight.copy_(double_quantize(layer.weight, **options).dequantize())
    return result


def test_at_first_it_is_the_model_with_the_decoded_weights():
    dense = network()
    before = copy.deepcopy(dense.state_dict())
    model = qlora(dense, rank=2, alpha=4, block_size=8)
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())
    assert [type(layer.layer) for layer in lora_layers(model).values()] == [PackedLinear, PackedLinear]
    assert torch.equal(model(X), decoded(dense, block_size=8)(X))
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in lora_parameters(model)}


def test_gradients_are_those_beside_a_dense_frozen_weight():
    dense = network()
    model = qlora(dense, rank=2, alpha=4, seed=1)
    # The same corrections on the decoded dense layers.
    twin = decoded(dense)
    for i in ("0", "2"):
        twin[int(i)] = LoRALinear(twin[int(i)], rank=2, alpha=4)
        for name in ("lora_A", "lora_B"):
            value = 0.1 * torch.randn_like(getattr(lora_layers(model)[i], name))
            getattr(lora_layers(model)[i], name).data.copy_(value)
            getattr(twin[int(i)], name).data.copy_(value)
    for net in (model, twin):
        net(X).square().sum().backward()
    for ours, theirs in zip(lora_parameters(model), lora_parameters(twin), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)  # also through the packed second layer


def test_no_dense_weight_waits_for_the_backward_pass():
    model = qlora(network(), rank=2, alpha=4)
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(sorted(t.shape)) or t, lambda t: t):
        y = model(X)
    assert [6, 16] not in held and [3, 16] not in held and [2, 16] in held  # the last is the second layer's A
    y.sum().backward()


def test_training_moves_the_corrections_and_not_the_codes():
    dense, labels = network(), X[:, :3].argmax(1)
    model = qlora(dense, rank=4, alpha=8, block_size=8)
    codes = {key: value.clone() for key, value in model.state_dict().items() if "packed" in key}
    history = train(model, X, labels, epochs=30, batch_size=20, lr=1e-2, loss=F.cross_entropy, progress=False)
    assert history.loss[-1] < 0.8 * history.loss[0]
    assert len(codes) == 8 and all(torch.equal(model.state_dict()[key], value) for key, value in codes.items())


def test_named_layers_in_place_and_tied_weights():
    model = network()
    same = qlora(model, ["2"], rank=1, alpha=1, inplace=True)
    assert same is model and list(lora_layers(model)) == ["2"] and type(model[0]) is nn.Linear
    tied = nn.ModuleDict({"embedding": nn.Embedding(5, 6), "first": nn.Linear(6, 6), "head": nn.Linear(6, 5)})
    tied["head"].weight = tied["embedding"].weight
    assert list(lora_layers(qlora(tied, rank=1, alpha=1))) == ["first"]


def test_bad_input(as_user):
    model = network()
    state = copy.deepcopy(model.state_dict())
    for options, told in (
        ({"rank": 0}, "rank"),
        ({"alpha": 0}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"seed": -1}, "seed"),
        ({"layers": ["1"]}, "is Tanh"),
        ({"layers": ["3"]}, "no layer"),
        ({"block_size": 0}, "block_size"),
    ):
        with pytest.raises(ValueError, match=told):
            qlora(model, **{"rank": 2, "alpha": 1, "inplace": True} | options)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for wrong in (nn.Linear(2, 2), nn.Sequential(nn.Conv2d(1, 1, 2)), nn.MultiheadAttention(4, 2)):
        with pytest.raises(ValueError, match="for linear layers"):
            qlora(wrong, rank=1, alpha=1)
