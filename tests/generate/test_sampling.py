"""Sampling against probabilities that are enumerated, and greedy texts against a loop without a cache."""

import itertools

import pytest
import torch

from mlcomp.generate import sample
from mlcomp.models import token_decoder

STOP = 3


@pytest.fixture(scope="module")
def net():
    model = token_decoder(4, 16, 2, seed=0)
    with torch.no_grad():
        model.embedding.weight.mul_(4)  # so that probabilities differ
    return model


def text_probability(net, prompt, text):
    """Return the probability that exactly this text is written, up to its stop."""
    tokens = torch.cat((prompt, torch.tensor(text)))
    log_p = net(tokens[None])[0].double().log_softmax(-1)
    return float(sum(log_p[len(prompt) - 1 + i, token] for i, token in enumerate(text)).exp().detach())


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_texts_come_as_often_as_they_are_likely(net, temperature):
    prompt, count = torch.tensor([0, 1]), 20_000
    texts = sample(net, prompt.expand(count, 2), stop=STOP, max_new=3, temperature=temperature, seed=1)
    seen = {}
    for text in texts.tolist():
        seen[tuple(text)] = seen.get(tuple(text), 0) + 1
    ends = [t for n in (1, 2, 3) for t in itertools.product(range(4), repeat=n) if STOP not in t[:-1]]
    whole = [t for t in ends if t[-1] == STOP or len(t) == 3]
    if temperature == 1.0:
        expected = {t: text_probability(net, prompt, t) for t in whole}
        assert sum(expected.values()) == pytest.approx(1, abs=1e-6)
        for text, p in expected.items():
            padded = text + (STOP,) * (texts.shape[1] - len(text))
            # five standard deviations of a binomial, and one text for the rare
            assert abs(seen.get(padded, 0) - count * p) < 5 * (count * p * (1 - p)) ** 0.5 + 1
    else:
        first = (net(prompt[None])[0, -1].double() / temperature).softmax(-1)
        shares = torch.bincount(texts[:, 0], minlength=4) / count
        torch.testing.assert_close(shares.double(), first, atol=0.02, rtol=0)


def test_temperature_zero_takes_the_likeliest_token_as_a_loop_without_a_cache_does(net):
    prompts = torch.tensor([[0, 1, 2], [2, 2, 1], [1, 0, 0]])
    got = sample(net, prompts, stop=STOP, max_new=6, temperature=0)
    for row, prompt in zip(got.tolist(), prompts, strict=True):
        tokens = prompt.tolist()
        for token in row:
            if STOP in tokens[3:]:
                assert token == STOP
                continue
            assert token == int(net(torch.tensor([tokens]))[0, -1].argmax())
            tokens.append(token)


def test_the_mode_and_the_seed_are_kept(net):
    net.train()
    before = torch.random.get_rng_state()
    first, again = (sample(net, torch.tensor([[0]]), stop=STOP, max_new=5, seed=7) for _ in range(2))
    assert torch.equal(first, again) and net.training and torch.equal(before, torch.random.get_rng_state())
    net.eval()


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompts": torch.tensor([[4]])},
        {"prompts": torch.zeros(1, 0, dtype=torch.long)},
        {"stop": 4},
        {"max_new": 0},
        {"temperature": -1},
    ],
)
def test_bad_input(net, wrong):
    options = {"prompts": torch.tensor([[0]]), "stop": STOP, "max_new": 2} | wrong
    with pytest.raises(ValueError, match=next(iter(wrong))):
        sample(net, options.pop("prompts"), **options)
