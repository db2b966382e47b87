import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.prune import dependency_groups, group_importance
from mlcomp.prune.structured.group_importance import next_token_loss
from tests.prune.structured.nets import run, seeded, with_zeros
from tests.prune.structured.test_remove_channels import TOKENS, transformer

X = torch.rand(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.3
EXAMPLES = [*TOKENS.split(1), TOKENS.flip(1)[:1]]


def plain_net():
    return seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)))


def mean_loss(output, batch):
    return (output * torch.tensor([1.0, -2.0, 0.5], dtype=output.dtype)).sum(1).mean()


def literal(model, examples, layer, expansion, order, aggregation):
    """Loop over the channels of one MLP and the heads of one attention of a LLaMA, with slices written out."""
    block = model.model.layers[layer]
    sums = {}
    for tokens in examples:
        model.zero_grad()
        out = model(tokens).logits
        F.cross_entropy(out[0, :-1], tokens[0, 1:]).backward()
        for name, parameter in block.named_parameters():
            change = (parameter.grad * parameter).detach()
            sums.setdefault(name, []).append(change)
    found = []
    mlp = [("mlp.gate_proj", 0), ("mlp.up_proj", 0), ("mlp.down_proj", 1)]
    attention = [("self_attn.q_proj", 0), ("self_attn.k_proj", 0), ("self_attn.v_proj", 0), ("self_attn.o_proj", 1)]
    for channels, parts in ((2, attention), (40, mlp)):
        scores = []
        for channel in range(channels):
            structures = []
            for name, dim in parts:
                per = sums[f"{name}.weight"][0].shape[dim] // channels
                each = [c.narrow(dim, channel * per, per).flatten() for c in sums[f"{name}.weight"]]
                if expansion == "vector":
                    each = [c.sum() for c in each]
                first = sum(each) / len(each)
                second = sum(c * c for c in each) / len(each) / 2
                value = {"first": first, "second": second, "both": first - second}[order].abs().sum()
                structures.append(float(value))
            total = {"sum": sum(structures), "max": max(structures), "last": structures[-1]}
            scores.append(total.get(aggregation, torch.tensor(structures).double().prod().log().item()))
        found.append(torch.tensor(scores, dtype=torch.float64))
    return found


@pytest.mark.parametrize(("expansion", "order"), [("vector", "first"), ("vector", "both"), ("element", "second")])
def test_a_loop_over_slices(expansion, order):
    model = transformer("Llama")
    groups = [g for g in dependency_groups(model, {"input_ids": TOKENS}) if not g.averaged]
    for aggregation in ("sum", "product", "max", "last"):
        options = {"expansion": expansion, "order": order, "aggregation": aggregation}
        found = group_importance(model, EXAMPLES, groups, **options)
        assert list(found) == groups
        expected = [x for layer in range(2) for x in literal(model, EXAMPLES, layer, **options)]
        for got, want in zip(found.values(), expected, strict=True):
            # transformers' RMSNorm computes in float32, where sums of changes that cancel lose some digits
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-9)


def test_where_the_loss_is_linear_it_is_the_change_by_removal():
    """Two linear layers, and a loss linear in their output: a row alone, or a column alone, changes it linearly."""
    model = plain_net()
    (group,) = dependency_groups(model, X)
    found = group_importance(model, [X], [group], loss=mean_loss)[group]
    whole = float(mean_loss(run(model, X), X))
    for channel in range(4):
        each = []
        for kind in ("row", "column"):
            cut = plain_net()
            (cut[0].weight.data[channel] if kind == "row" else cut[1].weight.data[:, channel]).zero_()
            if kind == "row":
                cut[0].bias.data[channel] = 0
            each.append(abs(float(mean_loss(run(cut, X), X)) - whole))
        # Sums of thirty terms in float64.
        assert float(found[channel]) == pytest.approx(sum(each), rel=1e-10)
    last = group_importance(model, [X], [group], loss=mean_loss, aggregation="last")[group]
    small = [abs(float(mean_loss(run(with_zeros(model, {group: [c]}), X), X)) - whole) for c in range(4)]
    torch.testing.assert_close(last, torch.tensor(small, dtype=torch.float64), rtol=1e-10, atol=0)


def test_a_quadratic_loss_makes_the_expansion_exact():
    """The sign of the printed formula: L(W) − L(0) = gᵀW − WᵀHW/2; its plus would be wrong by WᵀHW."""
    w, x, y = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).unbind()
    inputs = torch.stack([x, y, x * y])

    def loss(weight):
        return (inputs @ weight - 0.3).square().mean()

    gradient = torch.autograd.functional.jacobian(loss, w)
    hessian = torch.autograd.functional.hessian(loss, w)
    change = float(loss(w) - loss(torch.zeros(7, dtype=torch.float64)))
    assert float(gradient @ w - w @ hessian @ w / 2) == pytest.approx(change, rel=1e-12)


def test_the_first_order_does_not_depend_on_how_examples_are_cut():
    model = transformer("Llama")
    groups = dependency_groups(model, {"input_ids": TOKENS})
    one, two = (group_importance(model, x, groups, expansion="element") for x in ([TOKENS], TOKENS.split(1)))
    for group in groups:
        torch.testing.assert_close(one[group], two[group], rtol=1e-9, atol=1e-14)
    first, both = (group_importance(model, EXAMPLES, groups, order=order) for order in ("first", "both"))
    assert all(bool((first[group] != both[group]).any()) for group in groups)


def test_a_bias_goes_with_its_rows():
    model = plain_net()
    (group,) = dependency_groups(model, X)
    model[0].bias.data.zero_()  # of no importance, so a product with it as a factor of its own would be 0
    product = group_importance(model, [X], [group], loss=mean_loss, aggregation="product")[group]
    assert product.isfinite().all()


def test_a_channel_of_no_importance_and_modes_and_gradients_stay():
    model = plain_net().train()
    (group,) = dependency_groups(model, X)
    model[1].weight.data[:, 2] = 0
    model.requires_grad_(False)
    before = [p.clone() for p in model.parameters()]
    found = group_importance(model, [X], [group], loss=mean_loss)[group]
    assert float(found[2]) == 0 and bool((found[[0, 1, 3]] > 0).all())
    assert group_importance(model, [X], [group], loss=mean_loss, aggregation="product")[group][2] == -torch.inf
    assert model.training and all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_bad_input():
    model = plain_net()
    groups = dependency_groups(model, X)
    for options, message in (
        ({"expansion": "weight"}, "expansion"),
        ({"order": "third"}, "order"),
        ({"aggregation": "mean"}, "aggregation"),
        ({"loss": lambda output, batch: output}, "one number"),
        ({"loss": lambda output, batch: output.sum() / 0}, "the loss"),
    ):
        with pytest.raises(ValueError, match=message):
            group_importance(model, [X], groups, **options)
    with pytest.raises(ValueError, match="examples is empty"):
        group_importance(model, [], groups, loss=mean_loss)
    with pytest.raises(ValueError, match="groups is empty"):
        group_importance(model, [X], [], loss=mean_loss)
    with pytest.raises(TypeError, match="one Tensor"):
        group_importance(model, X, groups, loss=mean_loss)
    with pytest.raises(ValueError, match="not of this model"):
        group_importance(nn.Sequential(nn.Linear(5, 3)).double(), [X], groups, loss=lambda o, b: o.sum())


def test_the_loss_of_the_next_token():
    model = transformer("Qwen2")
    with torch.no_grad():
        out = model(TOKENS)
    by_hand = [-out.logits[b, t].log_softmax(-1)[TOKENS[b, t + 1]] for b in range(2) for t in range(4)]
    assert float(next_token_loss(out, TOKENS)) == pytest.approx(float(sum(by_hand)) / 8, rel=1e-12)
    assert next_token_loss(out, {"input_ids": TOKENS}) == next_token_loss(out, TOKENS)
