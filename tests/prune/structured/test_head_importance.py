import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.models import byte_lm
from mlcomp.prune import attention_heads, head_importance, head_loss_changes, next_token_losses
from tests.prune.structured.nets import seeded
from tests.prune.structured.test_remove_channels import transformer

TOKENS = torch.randint(256, (5, 9), generator=torch.Generator().manual_seed(0))


def bytes_model():
    return seeded(lambda: byte_lm(32))


def losses(model, tokens):
    """The log loss of each sequence, in the model's dtype."""
    out = model(tokens)
    logs = getattr(out, "logits", out).log_softmax(-1)[:, :-1]
    return -logs.gather(-1, tokens[:, 1:, None]).mean((1, 2))


def first_entries(model, tokens):
    """A loss for an encoder, which gives no logits."""
    return model(tokens).last_hidden_state[:, 0, :5].pow(3).sum(1)


def with_columns(model, name, head, count, factor):
    """A copy whose output projection reads ``factor`` times what the head gives."""
    scaled = copy.deepcopy(model)
    weight = scaled.get_submodule(name).weight.data
    size = weight.shape[1] // count
    weight[:, head * size : (head + 1) * size] *= factor
    return scaled


@pytest.mark.parametrize("kind", ["bytes", "Llama", "Bert"])
def test_per_example_by_finite_differences(kind):
    """Eq. (2) with central differences of each example's loss in the mask: error ~ ε² |L‴| = 1e-6 of the slope."""
    model = bytes_model() if kind == "bytes" else transformer(kind)
    tokens, loss = TOKENS[:3] % 50, first_entries if kind == "Bert" else losses
    heads = attention_heads(model, tokens[:1])
    name, count = list(heads.items())[1]
    got = head_importance(model, [tokens], {name: count}, loss, normalize=False)[name]
    eps = 1e-2 if kind == "Llama" else 1e-4  # transformers' RMSNorm computes in float32
    with torch.no_grad():
        for head in range(count):
            up, down = (loss(with_columns(model, name, head, count, 1 + e), tokens) for e in (eps, -eps))
            expected = ((up - down) / (2 * eps)).abs().mean()
            tolerance = {"rtol": 5e-3, "atol": 2e-6} if kind == "Llama" else {"rtol": 1e-5, "atol": 1e-9}
            torch.testing.assert_close(got[head], expected, **tolerance)


def literal(model, name, count, tokens, per):
    """Loops over examples and positions, the gradient by a mask of each position."""
    found = []
    for line in tokens:
        mask = torch.ones(len(line), count, dtype=torch.float64, requires_grad=True)
        hook = model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, mask=mask: ((args[0].unflatten(-1, (count, -1)) * mask[None, :, :, None]).flatten(2),)
        )
        (gradient,) = torch.autograd.grad(losses(model, line[None]).sum(), mask)
        hook.remove()
        found.append(gradient)
    scores = []
    for head in range(count):
        slopes = [[float(g[t, head]) for t in range(len(g))] for g in found]
        if per == "position":
            scores.append(sum(sum(abs(s) for s in row) for row in slopes) / len(slopes))
        elif per == "example":
            scores.append(sum(abs(sum(row)) for row in slopes) / len(slopes))
        else:
            scores.append(abs(sum(map(sum, slopes))) / len(slopes))
    return torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize("per", ["example", "position", "batch"])
def test_the_three_conventions_in_loops(per):
    model = bytes_model().train()
    model.blocks[0].norm1.eval()
    heads = attention_heads(model, TOKENS[:1])
    got = head_importance(model, [TOKENS], heads, losses, per=per, normalize=False)
    unit = head_importance(model, [TOKENS], heads, losses, per=per)
    for name, count in heads.items():
        expected = literal(model, name, count, TOKENS, per)
        torch.testing.assert_close(got[name], expected, rtol=1e-9, atol=1e-13)  # float64, other order of sums
        torch.testing.assert_close(unit[name], expected / sum(expected**2) ** 0.5, rtol=1e-9, atol=1e-13)
    assert model.training and not model.blocks[0].norm1.training
    assert all(p.grad is None for p in model.parameters())


def test_what_depends_on_the_batches():
    model = bytes_model()
    heads = attention_heads(model, TOKENS[:1])
    scores = {
        (per, size): torch.cat(list(head_importance(model, TOKENS.split(size), heads, losses, per=per).values()))
        for per in ("example", "position", "batch")
        for size in (1, 2, 5)
    }
    for per in ("example", "position"):
        for size in (2, 5):
            torch.testing.assert_close(scores[per, size], scores[per, 1], rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(scores["batch", 1], scores["example", 1], rtol=1e-9, atol=1e-13)
    assert (scores["batch", 5] - scores["batch", 1]).abs().max() > 0.01


def test_importance_is_at_most_what_is_added_before_the_absolute_value():
    model = bytes_model()
    heads = attention_heads(model, TOKENS[:1])
    by = {p: head_importance(model, [TOKENS], heads, losses, per=p, normalize=False) for p in ("position", "example")}
    for name in heads:
        assert (by["example"][name] <= by["position"][name] + 1e-12).all()


def test_losses_without_each_head():
    model = bytes_model()
    heads = attention_heads(model, TOKENS[:1])
    changes = head_loss_changes(model, TOKENS.split(2), heads, losses)
    with torch.no_grad():
        for name, count in heads.items():
            assert changes[name].shape == (count, 5)
            for head in range(count):
                expected = losses(with_columns(model, name, head, count, 0), TOKENS) - losses(model, TOKENS)
                torch.testing.assert_close(changes[name][head], expected, rtol=0, atol=1e-11)


def test_losses_of_the_next_token():
    model = bytes_model()
    torch.testing.assert_close(next_token_losses(model, TOKENS).double(), losses(model, TOKENS), rtol=1e-6, atol=0)
    model = transformer("Llama")
    torch.testing.assert_close(
        next_token_losses(model, TOKENS % 50).double(), losses(model, TOKENS % 50), rtol=1e-6, atol=0
    )


def test_a_head_that_gives_nothing_has_no_importance():
    model = bytes_model()
    for block in model.blocks:
        block.out.weight.data[:, :16] = 0
    heads = attention_heads(model, TOKENS[:1])
    for scores in head_importance(model, [TOKENS], heads, losses).values():
        assert scores[0] == 0 and scores[1] == 1
    for block in model.blocks:
        block.out.weight.data.zero_()
    scores = head_importance(model, [TOKENS], heads, losses)
    assert all((s == 0).all() for s in scores.values())  # no division by a norm of zero


def test_bad_input(as_user):
    model = byte_lm(16, pretrained=False)
    heads, batches = {"blocks.1.out": 1}, [TOKENS]
    with pytest.raises(ValueError, match="per must be one of example, position, batch"):
        head_importance(model, batches, heads, losses, per="token")
    for function in (head_importance, head_loss_changes):
        with pytest.raises(TypeError, match="one Tensor"):
            function(model, TOKENS, heads, losses)
        with pytest.raises(ValueError, match="batches is empty"):
            function(model, [], heads, losses)
        with pytest.raises(ValueError, match=r"no module\(s\) \['there'\]"):
            function(model, batches, {"there": 1}, losses)
        with pytest.raises(ValueError, match="heads is empty"):
            function(model, batches, {}, losses)
        with pytest.raises(ValueError, match=r"must return \(n,\), the loss of each example, got \(\)"):
            function(model, batches, heads, lambda model, batch: losses(model, batch).mean())
        with pytest.raises(ValueError, match="the losses"):
            function(model, batches, heads, lambda model, batch: losses(model, batch) * float("nan"))
        with pytest.raises(ValueError, match=r"3 .* do not divide the 16"):
            function(model, batches, {"blocks.1.out": 3}, losses)
    with pytest.raises(ValueError, match="reads it several times"):
        head_loss_changes(model, iter(batches), heads, losses)

    def unread(model, tokens):
        return losses(model, tokens).detach() + model.embedding(tokens).sum((1, 2))

    def twice(model, tokens):
        return losses(model, tokens) + losses(model, tokens)

    with pytest.raises(ValueError, match="called more than once"):
        head_importance(model, batches, heads, twice)
    with pytest.raises(ValueError, match="has no part in the loss"):
        head_importance(model, batches, heads, unread)
    with pytest.raises(ValueError, match="at least 2, got"):
        next_token_losses(model, TOKENS[:, :1])
    other = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="did not call"):
        head_importance(other, [torch.rand(3, 2)], {"0": 2}, lambda m, x: F.relu(m[1](x)).sum(1))
