import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.metrics import add_noise, fgsm, hotflip, random_tokens
from mlcomp.models import byte_lm


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(inp, out):
    layer = nn.Linear(inp, out)
    with torch.no_grad():
        layer.weight.copy_(drawn(out, inp))
        layer.bias.copy_(drawn(out, seed=1))
    return layer


def test_noise_is_one_draw_within_the_limits():
    x = torch.full((100, 100), 0.5)
    noisy = add_noise(x, std=0.1, seed=3, limits=None)
    assert float((noisy - x).std()) == pytest.approx(0.1, rel=0.03)  # 10 000 draws: 0.7 % is one standard deviation
    assert float((noisy - x).mean()) == pytest.approx(0, abs=0.004)
    torch.testing.assert_close(noisy, add_noise(x, std=0.1, seed=3, limits=None), rtol=0, atol=0)
    assert not torch.equal(noisy, add_noise(x, std=0.1, seed=4, limits=None))
    cut = add_noise(x, std=0.5, seed=3)
    assert float(cut.min()) == 0 and float(cut.max()) == 1
    torch.testing.assert_close(add_noise(x, std=0.0), x, rtol=0, atol=0)


def test_fgsm_is_the_worst_corner_of_two_classes():
    model, x, y = linear(4, 2), drawn(5, 4, seed=2), torch.tensor([0, 1, 0, 1, 1])
    attacked = fgsm(model, x, y, epsilon=0.3, limits=None)
    got = F.cross_entropy(model(attacked), y, reduction="none")
    corners = [x + 0.3 * torch.tensor(s) for s in itertools.product((-1.0, 1.0), repeat=4)]
    worst = torch.stack([F.cross_entropy(model(c), y, reduction="none") for c in corners]).max(0).values
    torch.testing.assert_close(got, worst)


def test_fgsm_stays_within_epsilon_and_limits_and_touches_nothing():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    model[1].eval()
    x, y = torch.rand(7, 6, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 3
    before, statistics = x.clone(), model[1].running_mean.clone()
    attacked = fgsm(model, x, y, epsilon=0.2)
    assert float((attacked - x).abs().max()) <= 0.2 + 1e-6 and attacked.min() >= 0 and attacked.max() <= 1
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    torch.testing.assert_close(model[1].running_mean, statistics, rtol=0, atol=0)
    assert model.training and not model[1].training
    assert all(p.grad is None for p in model.parameters()) and not attacked.requires_grad
    torch.testing.assert_close(attacked, fgsm(model, x, y, epsilon=0.2, batch_size=3), rtol=0, atol=0)
    torch.testing.assert_close(fgsm(model, x, y, epsilon=0.0), x, rtol=0, atol=0)


def test_a_saturated_softmax_hides_from_its_own_gradient():
    model, x = linear(4, 2), drawn(5, 4, seed=2)
    y = model(x).argmax(1)
    with torch.no_grad():
        model.weight.mul_(1e4)
        model.bias.mul_(1e4)
    torch.testing.assert_close(fgsm(model, x, y, epsilon=0.3, limits=None), x, rtol=0, atol=0)


def test_random_tokens_are_others_equally_likely():
    allowed = torch.tensor([True, True, False, True, True])
    tokens = torch.tensor([[0, 2, 4]]).repeat(6000, 1)
    new = random_tokens(tokens, share=1.0, allowed=allowed)
    for column, others in ((0, [1, 3, 4]), (1, [0, 1, 3, 4]), (2, [0, 1, 3])):
        counts = torch.bincount(new[:, column], minlength=5)
        assert counts.nonzero()[:, 0].tolist() == others
        # Each of k is drawn 6000/k times; four standard deviations.
        expected = 6000 / len(others)
        assert (counts[others] - expected).abs().max() < 4 * expected**0.5
    some = random_tokens(tokens, share=0.25, allowed=allowed, seed=1)
    assert float((some != tokens).double().mean()) == pytest.approx(0.25, abs=0.013)  # four standard deviations
    torch.testing.assert_close(random_tokens(tokens, share=0.0, allowed=allowed), tokens)


class Bag(nn.Module):
    """Scores that are linear in the embeddings, each position with its own weight."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 3)
        with torch.no_grad():
            self.words.weight.copy_(drawn(7, 3))
        self.mix = drawn(4, 3, seed=1)

    def forward(self, tokens):
        return (self.words(tokens) * self.mix).sum((1, 2))


def every_change(tokens, allowed):
    """Yield all sequences that differ from (length,) tokens in one place."""
    for place, new in itertools.product(range(len(tokens)), allowed.nonzero()[:, 0].tolist()):
        if new != tokens[place]:
            changed = tokens.clone()
            changed[place] = new
            yield changed


def test_hotflip_is_the_best_change_of_a_linear_loss():
    model, tokens = Bag(), torch.randint(7, (6, 4), generator=torch.Generator().manual_seed(2))
    allowed = torch.arange(7) != 3
    signs = torch.tensor([1.0, -1, 1, -1, 1, -1])
    flipped = hotflip(
        model, tokens, signs, embedding="words", allowed=allowed, losses=lambda out, y: out * y, batch_size=4
    )
    assert ((flipped != tokens).sum(1) == 1).all()
    for row, got, sign in zip(tokens, flipped, signs, strict=True):
        with torch.no_grad():
            best = max(float(sign * model(other[None])) for other in every_change(row, allowed))
            assert float(sign * model(got[None])) == pytest.approx(best, abs=1e-5)
    assert model.words.weight.grad is None


def next_bytes(logits, labels):
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)


def test_hotflip_that_tries_all_is_the_worst_of_all_and_one_that_tries_more_is_no_weaker():
    model = byte_lm(16)  # its head is its embedding: only what is read may be attacked
    text = torch.tensor([list(b"area e"), list(b"rear a")])
    tokens, labels = text[:, :-1], text[:, 1:]
    allowed = torch.zeros(256, dtype=torch.bool)
    allowed[list(b"area e")] = True

    def flipped(candidates):
        options = {"embedding": "embedding", "allowed": allowed, "losses": next_bytes, "candidates": candidates}
        return hotflip(model, tokens, labels, **options)

    everything, few, one = flipped(15), flipped(4), flipped(1)
    with torch.no_grad():
        for row in range(2):
            others = torch.stack(list(every_change(tokens[row], allowed)))
            all_losses = next_bytes(model(others), labels[row].expand(len(others), -1))
            got = [next_bytes(model(x[row][None]), labels[row][None])[0] for x in (everything, few, one)]
            torch.testing.assert_close(got[0], all_losses.max())
            assert got[0] >= got[1] >= got[2] and (everything[row] != tokens[row]).sum() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding": "mix"}, "must name an nn.Embedding"),
        ({"allowed": torch.ones(6) > 0}, "tokens must lie in|like the embedding"),
        ({"allowed": torch.arange(7) < 1}, "at least two tokens"),
        ({"labels": torch.ones(2)}, "same length"),
        ({"candidates": 25}, "candidates must be a whole number from 1 to 24"),
        ({"tokens": torch.full((1, 4), 7)}, "tokens must lie in"),
    ],
)
def test_bad_flips(change, message, as_user):
    good = {
        "tokens": torch.zeros(1, 4, dtype=torch.int64),
        "labels": torch.ones(1),
        "embedding": "words",
        "allowed": torch.ones(7) > 0,
        "losses": lambda out, y: out * y,
    }
    call = good | change
    with pytest.raises(ValueError, match=message):
        hotflip(Bag(), call.pop("tokens"), call.pop("labels"), **call)


def test_bad_attacks(as_user):
    model, x, y = linear(4, 2), drawn(3, 4), torch.zeros(3, dtype=torch.int64)
    for options, message in (
        ({"epsilon": -0.1}, "epsilon must lie in"),
        ({"epsilon": 0.1, "limits": (1.0, 0.0)}, "limits must be"),
        ({"epsilon": 0.1, "batch_size": 0}, "batch_size must be"),
    ):
        with pytest.raises(ValueError, match=message):
            fgsm(model, x, y, **options)
    with pytest.raises(ValueError, match="same length"):
        fgsm(model, x, y[:2], epsilon=0.1)
    with pytest.raises(ValueError, match="std must lie in"):
        add_noise(x, std=-1.0)
