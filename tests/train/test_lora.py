import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.layerwise import compress, load, save
from mlcomp.quant import rtn
from mlcomp.train import LoRALinear, add_lora, lora_layers, lora_parameters, merge_lora, train

X = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))


def network(dtype=torch.float32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 5, bias=False))).to(dtype)


def corrected(dtype=torch.float32, rank=2, alpha=3.0) -> nn.Module:
    """Return a network whose corrections are no longer zero."""
    model = add_lora(network(dtype), ["0", "2.0"], rank=rank, alpha=alpha)
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_at_first_nothing_changes_to_the_bit(dtype):
    dense = network(dtype)
    model = add_lora(copy.deepcopy(dense), lambda name, layer: layer.in_features == 6, rank=3, alpha=16)
    assert list(lora_layers(model)) == ["0"] and model[0].lora_A.shape == (3, 6)
    assert model[0].lora_A.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(model(X.to(dtype)), dense(X.to(dtype)))
    assert {p for p in model.parameters() if p.requires_grad} == set(lora_parameters(model))  # "2.0" is frozen, too


def test_the_formula_by_hand():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0]])
    lora = LoRALinear(layer, rank=1, alpha=0.5)
    lora.lora_A.data, lora.lora_B.data = torch.tensor([[3.0, -1.0]]), torch.tensor([[4.0]])
    # W x = 1 + 2·5 = 11; A x = 3 − 5 = −2; B A x = −8; times 0.5/1.
    assert lora(torch.tensor([[1.0, 5.0]])).tolist() == [[7.0]]
    assert lora.weight.tolist() == [[7.0, 0.0]]


def test_gradients_are_those_of_finite_differences():
    model = corrected(torch.float64)
    a, b = lora_parameters(model)[:2]

    def loss(*parameters):
        names = ("0.lora_A", "0.lora_B")
        return torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (X.double(),))

    assert torch.autograd.gradcheck(loss, (a, b))


def test_outputs_and_gradients_are_those_of_peft():
    peft = pytest.importorskip("peft", reason="needs the extra deploy")
    model, dense = corrected(), None
    dense = copy.deepcopy(model)
    for name, layer in lora_layers(dense).items():
        dense.set_submodule(name, layer.layer)
    theirs = peft.get_peft_model(dense, peft.LoraConfig(r=2, lora_alpha=3, target_modules=["0", "2.0"]))
    pairs = []
    for name, layer in lora_layers(model).items():
        other = theirs.base_model.model.get_submodule(name)
        pairs += [(layer.lora_A, other.lora_A["default"].weight), (layer.lora_B, other.lora_B["default"].weight)]
    for mine, other in pairs:
        other.data = mine.data.clone()
    outputs = [m(X) for m in (model, theirs)]
    # Two products of at most 8 terms each, in another order.
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
    for output in outputs:
        output.square().sum().backward()
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-4)


def test_a_is_drawn_as_the_weight_of_a_linear_layer_is():
    lora = LoRALinear(nn.Linear(400, 3), rank=300, alpha=1)
    bound = 1 / 400**0.5
    assert float(lora.lora_A.detach().abs().max()) <= bound
    # The mean square of U(−c, c) is c²/3, known to 1 % from 120 000 draws (0.9/√n of it is 0.3 %).
    assert float(lora.lora_A.detach().square().mean()) == pytest.approx(bound**2 / 3, rel=0.01)
    one, same, other = (add_lora(network(), ["0", "2.0"], rank=2, alpha=1, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one[0].lora_A, same[0].lora_A) and not torch.equal(one[0].lora_A, other[0].lora_A)


def test_only_the_corrections_are_trained_and_merging_keeps_the_outputs():
    model = add_lora(network(), ["0", "2.0"], rank=2, alpha=4)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert [p.shape for p in model.parameters() if p.requires_grad] == [p.shape for p in lora_parameters(model)]
    history = train(model, X, torch.arange(9) % 5, epochs=60, lr=0.05, progress=False)
    assert history.loss[-1] < 0.5 * history.loss[0]
    after = dict(model.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in frozen.items())
    wanted = model(X)
    assert merge_lora(model) is model and type(model[0]) is nn.Linear and not lora_layers(model)
    torch.testing.assert_close(model(X), wanted, rtol=1e-5, atol=1e-5)  # float32: the sum W + BA is rounded once
    add_lora(model, ["0"], rank=1, alpha=1)  # again


def test_merging_rounds_once_in_a_narrow_dtype():
    model = corrected(torch.bfloat16)
    weight, correction = model[0].layer.weight.detach().clone(), model[0].correction().detach()
    assert torch.equal(merge_lora(model)[0].weight, (weight.float() + correction).bfloat16())


def test_on_a_packed_layer(tmp_path):
    model, report = compress(network(), [X], lambda weight: rtn(weight, bits=4), progress=False)
    save(model, report.results, tmp_path / "saved")
    packed = load(tmp_path / "saved", network(), packed=True)
    dense_output, packed_output = model(X), packed(X)
    twins = [add_lora(m, ["0", "2.0"], rank=2, alpha=3) for m in (model, packed)]
    assert torch.equal(twins[1](X), packed_output)
    for twin in twins:
        for layer in lora_layers(twin).values():
            layer.lora_B.data.fill_(0.1)
        twin(X).square().sum().backward()
    torch.testing.assert_close(packed_output, dense_output, rtol=1e-5, atol=1e-6)
    for mine, other in zip(*map(lora_parameters, twins), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(twins[0][0].weight, twins[1][0].weight)
    with pytest.raises(ValueError, match="layer '0' is packed: load it dense"):
        merge_lora(packed)


def test_what_reads_the_weight_past_the_call_finds_the_corrected_one():
    """The attention of torch multiplies by out_proj.weight itself, without calling the layer."""
    attention = nn.MultiheadAttention(4, 2)
    x = torch.randn(3, 1, 4)
    before = attention(x, x, x)[0]
    add_lora(attention, ["out_proj"], rank=2, alpha=1)
    torch.testing.assert_close(attention(x, x, x)[0], before)
    attention.out_proj.lora_B.data.fill_(1.0)
    corrected_output = attention(x, x, x)[0]
    assert not torch.allclose(corrected_output, before)
    merge_lora(attention)
    torch.testing.assert_close(attention(x, x, x)[0], corrected_output)


def test_a_layer_under_two_names_is_one():
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    add_lora(model, ["0"], rank=2, alpha=1)
    assert model[0] is model[2] and isinstance(model[0], LoRALinear)
    merge_lora(model)
    assert model[0] is model[2] is shared


def test_dropout_acts_while_training_only():
    model = add_lora(network(), ["0"], rank=2, alpha=1, dropout=0.5)
    model[0].lora_B.data.fill_(1.0)
    model.train()
    assert not torch.equal(model(X), model(X))
    model.eval()
    assert torch.equal(model(X), model(X))


@torch.inference_mode()
def test_it_can_be_trained_although_it_was_made_in_inference_mode():
    layer = add_lora(network(), ["0"], rank=2, alpha=1)[0]
    assert not layer.lora_A.is_inference()
    with torch.inference_mode(False):
        F.linear(X.clone(), layer.lora_A).sum().backward()


def test_bad_input_is_refused_before_anything_is_changed(as_user):
    model = network()
    good = {"rank": 2, "alpha": 1.0}
    for layers, options, error, match in (
        (["1"], good, ValueError, "no linear layer '1'; it has 0, 2.0"),
        (["0", "9"], good, ValueError, "no linear layer '9'"),
        ([], good, ValueError, "layers chooses none"),
        (lambda name, layer: False, good, ValueError, "layers chooses none"),
        (["0"], good | {"rank": 0}, ValueError, "rank must be a whole number"),
        (["0"], good | {"alpha": 0}, ValueError, "alpha must be positive"),
        (["0"], good | {"dropout": 1.0}, ValueError, r"dropout must lie in \[0, 1\)"),
        (["0"], good | {"seed": -1}, ValueError, "seed must be a whole number"),
    ):
        with pytest.raises(error, match=match):
            add_lora(model, layers, **options)
    assert all(p.requires_grad for p in model.parameters()) and not lora_layers(model)
    with pytest.raises(TypeError, match="must have in_features and out_features, got ReLU"):
        LoRALinear(nn.ReLU(), rank=1, alpha=1)
    with pytest.raises(ValueError, match="has no corrections"):
        merge_lora(model)
    add_lora(model, ["0"], **good)
    with pytest.raises(ValueError, match="has corrections already"):
        add_lora(model, ["2.0"], **good)
    tied = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    tied[1].weight = tied[0].weight
    add_lora(tied, ["1"], **good)
    with pytest.raises(ValueError, match="layer '1' has a weight that another module holds"):
        merge_lora(tied)
