import math

import pytest
import torch
from torch.nn import functional as F

from mlcomp.prune import TokenPredictor, gumbel_keep, masked_attention, ratio_loss
from mlcomp.prune.dynamic.token_keeping import at_least_one


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_draw_and_its_gradient_are_torchs_own(temperature):
    ours, theirs = (drawn(7, 5, 2).requires_grad_() for _ in range(2))
    weight = drawn(7, 5, seed=1)
    generator = torch.Generator().manual_seed(3)
    got = gumbel_keep(ours, generator=generator, temperature=temperature)
    torch.manual_seed(3)
    want = F.gumbel_softmax(theirs, tau=temperature, hard=True)[..., 0]
    assert set(got.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(got, want, rtol=0, atol=1e-15)  # torch's 1 may be 1 − 2e-16
    (got * weight).sum().backward()
    (want * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=0)


def test_the_gradient_is_that_of_a_sigmoid():
    """softmax of two is σ of their difference; its derivative is σ(1 − σ)/τ, with the opposite sign for drop."""
    logits, tau = drawn(50, 2).requires_grad_(), 2.0
    gumbel_keep(logits, generator=torch.Generator().manual_seed(1), temperature=tau).sum().backward()
    noise = -torch.empty(50, 2).double().exponential_(generator=torch.Generator().manual_seed(1)).log()
    difference = (logits + noise).detach().diff(dim=1)[:, 0].neg() / tau
    slope = difference.sigmoid() * (1 - difference.sigmoid()) / tau
    torch.testing.assert_close(logits.grad, torch.stack((slope, -slope), 1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.5, 0.95])
def test_tokens_are_kept_as_often_as_softmax_says(keep):
    """40 000 draws of one seed: within four standard deviations of a binomial, which 6 in 100 000 seeds leave."""
    n = 40_000
    logits = torch.tensor([math.log(keep), math.log(1 - keep)]).expand(n, 2)
    share = gumbel_keep(logits, generator=torch.Generator().manual_seed(0), temperature=0.1).mean()
    assert abs(float(share) - keep) < 4 * math.sqrt(keep * (1 - keep) / n)


def test_no_generator_draws_from_the_global_one():
    logits = drawn(30, 2)
    torch.manual_seed(5)
    first = gumbel_keep(logits)
    assert not torch.equal(first, gumbel_keep(logits))
    torch.manual_seed(5)
    assert torch.equal(first, gumbel_keep(logits))


def test_kept_rows_are_attention_over_the_kept_tokens_alone():
    q, k, v = drawn(3, 3, 2, 8, 4)
    kept = torch.tensor([[1, 1, 0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0, 0, 0], [1] * 8]).double()
    got = masked_attention(q, k, v, kept=kept)
    for image in range(3):
        rows = kept[image].nonzero()[:, 0]
        subset = F.scaled_dot_product_attention(*(t[image, :, rows] for t in (q, k, v)))
        # float64: sums of at most eight terms in another order
        torch.testing.assert_close(got[image, :, rows], subset, rtol=0, atol=1e-14)


def test_masked_attention_is_the_formula_written_out():
    q, k, v = drawn(3, 1, 2, 5, 3)
    kept = torch.tensor([[1.0, 0.0, 0.3, 1.0, 0.0]]).double()  # between 0 and 1, too: gradients need it
    got = masked_attention(q, k, v, kept=kept)
    for head in range(2):
        for i in range(5):
            terms = [
                math.exp(float(q[0, head, i] @ k[0, head, j]) / math.sqrt(3)) * (1.0 if i == j else float(kept[0, j]))
                for j in range(5)
            ]
            row = sum(t * v[0, head, j] for j, t in enumerate(terms)) / sum(terms)
            torch.testing.assert_close(got[0, head, i], row, rtol=1e-12, atol=1e-12)


def test_the_gradient_of_the_decisions_is_the_numerical_one():
    q, k, v = drawn(3, 1, 2, 5, 3)
    kept = torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0]]).double().requires_grad_()
    # 0 is an end of what the formula takes, but it goes on smoothly below
    assert torch.autograd.gradcheck(lambda kept: masked_attention(q, k, v, kept=kept), (kept,), eps=1e-6, atol=1e-6)


def test_far_scores_and_no_token_but_oneself_give_no_nan():
    q, k, v = (t.float() for t in drawn(3, 1, 1, 4, 4))
    far = k.clone()
    far[0, 0, 1] = 1e4 * q[0, 0, 0]  # a dropped key that outshines all kept ones by more than exp can hold
    kept = torch.tensor([[1.0, 0.0, 1.0, 1.0]]).requires_grad_()
    got = masked_attention(q, far, v, kept=kept)
    rows = [0, 2, 3]
    want = F.scaled_dot_product_attention(q[:, :, rows], far[:, :, rows], v[:, :, rows])
    torch.testing.assert_close(got[:, :, rows], want, rtol=1e-5, atol=1e-6)
    got.sum().backward()
    assert torch.isfinite(kept.grad).all()
    alone = masked_attention(q, k, v, kept=torch.zeros(1, 4))
    torch.testing.assert_close(alone, v, rtol=0, atol=0)


def test_ratio_loss_in_closed_form():
    first = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])  # shares ½ and 1
    second = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])  # shares ¼ and ½
    got = ratio_loss([first, second], [0.75, 0.25])
    assert float(got) == pytest.approx((0.25**2 + 0.25**2 + 0 + 0.25**2) / 4, abs=1e-7)
    kept = first.clone().requires_grad_()
    ratio_loss([kept], [0.25]).backward()
    want = torch.tensor([[2 * 0.25 / 4 / 2] * 4, [2 * 0.75 / 4 / 2] * 4])  # 2(share − ρ)/N, over two images
    torch.testing.assert_close(kept.grad, want)
    assert float(ratio_loss([second], [0.375])) == pytest.approx(0.125**2)


def test_the_predictor_sees_its_token_and_the_mean_of_what_is_kept():
    predictor = TokenPredictor(8).double()
    tokens, kept = drawn(2, 5, 8), torch.tensor([[1, 0, 1, 1, 0], [0, 0, 1, 0, 0]]).double()
    got = predictor(tokens, kept)
    features = predictor.features(tokens)
    for image in range(2):
        mean = torch.stack([features[image, i, 4:] for i in range(5) if kept[image, i]]).mean(0)
        for i in range(5):
            both = torch.cat((features[image, i, :4], mean))
            torch.testing.assert_close(got[image, i], predictor.logits(predictor.decide(both)))
    other = tokens.clone()
    other[0, 1] = drawn(8, seed=4)  # dropped: nobody else sees it
    changed = (predictor(other, kept) != got).any(-1)
    assert changed.nonzero().tolist() == [[0, 1]]


def test_an_image_that_would_lose_all_keeps_the_best_of_those_it_has():
    before = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    scores = torch.tensor([[0.1, 0.2, 9.0], [3.0, 2.0, 1.0]])
    got = at_least_one(torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]), scores, before)
    assert got.tolist() == [[0.0, 1.0, 0.0], [0.0, 1.0, 1.0]]


def test_bad_input(as_user):
    for bad, words in (
        (drawn(3, 3), r"logits must be \(…, 2\)"),
        (drawn(()), r"logits must be \(…, 2\)"),
        (torch.tensor([0.0, math.nan]), "logits holds 1 NaN"),
    ):
        with pytest.raises(ValueError, match=words):
            gumbel_keep(bad)
    with pytest.raises(ValueError, match="temperature must be positive"):
        gumbel_keep(drawn(3, 2), temperature=0.0)
    with pytest.raises(TypeError, match="logits must be floating point"):
        gumbel_keep(torch.ones(3, 2, dtype=torch.int64))
    kept = torch.ones(2, 4)
    for decisions, ratios, words in (
        ([], [], "at least one"),
        ([kept], [0.5, 0.2], "one ratio for each stage"),
        ([kept], [1.5], r"ratios\[0\] must lie in"),
        ([kept, kept[:, :3]], [0.5, 0.2], r"decisions\[1\] must be"),
        ([kept[0]], [0.5], r"decisions\[0\] must be \(n, tokens\)"),
        ([2 * kept], [0.5], r"decisions\[0\] must lie in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=words):
            ratio_loss(decisions, ratios)
