"""What the checks of Lecture 5's exercises compare with agrees with the library, or with a shorter way to it."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.distill import soft_target_loss
from mlcomp.generate import voting_accuracy
from mlcomp.grading import by_trying_minillm as minillm
from mlcomp.grading import by_trying_pruner as pruner
from mlcomp.grading import by_trying_trust as trust
from mlcomp.prune import coupled_nodes, dependency_groups, structure_importance
from mlcomp.prune.structured.group_importance import AGGREGATIONS
from mlcomp.quant import onebit_decompose


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(8))
def test_gone_nodes_are_those_of_the_library(seed):
    reads = (normal(seed, 9, 9) > 0.6).tril(-1)
    products = reads.sum(1) > 1
    graph = {i: reads[i].nonzero()[:, 0].tolist() for i in range(9)}
    for start in range(9):
        gone = coupled_nodes(graph, start, products=products.nonzero()[:, 0].tolist())
        assert set(pruner.gone_nodes(reads, products, start).nonzero()[:, 0].tolist()) == gone


def test_heads_are_repeated_as_grouped_query_attention_repeats_them():
    heads, kv_heads, size = 6, 2, 3
    keys = torch.arange(kv_heads * size).reshape(kv_heads, size)
    read = keys.repeat_interleave(heads // kv_heads, 0).flatten() // size  # the key-value head of each row of q
    for index in range(heads * size):
        kv = read[index]
        wanted = [*(read == kv).nonzero()[:, 0].tolist(), *keys[kv].tolist()]
        assert pruner.head_rows("q", index, heads, kv_heads, size).tolist() == wanted


def test_sizes_of_smollm2():
    shape = 576, 1536, 9, 3, 64, 30, 26
    assert pruner.pruned_size(*shape, 0).tolist() == [0, 0, 106_168_320]
    # A third of the heads needs more than a third of the rows to go.
    assert pruner.pruned_size(*shape, 34).tolist() == [523, 1, 106_168_320 - 26 * (523 * 1728 + 294_912)]
    assert pruner.pruned_size(*shape, 20).tolist() == [308, 0, 106_168_320 - 26 * 308 * 1728]


@pytest.mark.parametrize("element", [False, True])
def test_importances_are_those_of_the_library(element):
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False)).double()
    examples = [normal(seed, 4, 3) for seed in range(6)]

    def loss(output, batch):
        return (output - batch[:, :2]).square().mean()

    groups = dependency_groups(model, examples[0])
    expansion = "element" if element else "vector"
    ((_, found),) = structure_importance(
        model, examples, groups, expansion=expansion, order="both", loss=loss
    ).items()
    first, last = model[0].weight, model[2].weight
    gradients = [torch.autograd.grad(loss(model(x), x), (first, last)) for x in examples]
    rows, columns = (torch.stack(parts) for parts in zip(*gradients, strict=True))
    truth = torch.stack(
        [
            pruner.importance(rows, first.detach(), element),
            pruner.importance(columns.transpose(1, 2), last.detach().T, element),
        ]
    )
    torch.testing.assert_close(found, truth)


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_orders_are_those_of_the_library(how):
    scores = normal(0, 4, 12).exp()
    scores[:, 3:5] = 0
    assert pruner.removal_order(scores, how).tolist() == AGGREGATIONS[how](scores).argsort(stable=True).tolist()


def test_the_smaller_norm_is_the_whole_one_with_zeros():
    gain, x = normal(1, 7), normal(2, 3, 7)
    keep = torch.tensor([1, 0, 1, 1, 0, 0, 1]) > 0
    found = pruner.smaller_norm(gain, 0.3, keep)
    whole = F.rms_norm(x * keep, (7,), gain, 0.3)
    torch.testing.assert_close(F.rms_norm(x[:, keep], (4,), found[:-1], float(found[-1])), whole[:, keep])


def test_signs_and_values_are_those_of_the_library():
    weight = normal(3, 12, 8) * normal(4, 12, 1).exp()
    weight[2, 3] = 0
    stored = onebit_decompose(weight, dtype=torch.float32)
    torch.testing.assert_close(pruner.sign_value(weight), stored.dequantize().double(), rtol=1e-6, atol=1e-6)
    bits = pruner.onebit_bits([(12, 8)], 0)[0]
    assert float(bits) * 96 == 8 * onebit_decompose(weight).nbytes
    a_parameter = 16_908_288 / 16_785_408
    assert pruner.onebit_bits([(4096, 4096)], 0).tolist() == [16_908_288 / 4096**2, a_parameter, a_parameter]


def test_packed_products_are_those_of_matrices():
    weight, a, b, x = normal(5, 4, 13), normal(6, 4).exp(), normal(7, 13).exp(), normal(8, 3, 13)
    weight[1, 2] = 0
    packed = torch.from_numpy(np.packbits((weight >= 0).numpy(), axis=1, bitorder="little"))
    assert torch.equal(pruner.packed_signs(weight), packed.double())
    signs = torch.where(weight >= 0, 1.0, -1.0).double()
    product = x @ (a[:, None] * signs * b).T
    torch.testing.assert_close(pruner.packed_product(packed, a, b, x), product)
    torch.testing.assert_close(pruner.onebit_outputs(x, signs, a, b), F.layer_norm(product, (4,)))


def test_gradients_of_both_directions():
    z, teacher = normal(9, 3, 5).requires_grad_(), normal(10, 3, 5)
    forward, reverse = minillm.kl_gradients(z.detach(), teacher.softmax(1))
    torch.testing.assert_close(forward, torch.autograd.grad(soft_target_loss(z, teacher, temperature=1.0), z)[0] * 3)
    loss = F.kl_div(teacher.log_softmax(1), z.log_softmax(1), reduction="sum", log_target=True)
    torch.testing.assert_close(reverse, torch.autograd.grad(loss, z)[0])


def test_minima_of_a_mixture_on_both_sides_of_the_table():
    """Two modes at ±2 with σ 0.5: at a mode the divergence is ln 2, and a wide minimum lies between."""
    x = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    parts = [-(((x - m) / 0.5) ** 2) / 2 - math.log(0.5 * math.sqrt(2 * math.pi)) - math.log(2) for m in (-2, 2)]
    mu = torch.linspace(-3, 3, 61, dtype=torch.float64)
    sigma = torch.linspace(0.3, 3, 28, dtype=torch.float64)
    found = minillm.reverse_minima(x, torch.logaddexp(*parts), mu, sigma).long()
    places = [(round(float(mu[i]), 3), round(float(sigma[j]), 3)) for i, j in found]
    assert places[0] == (-2, 0.5) and places[-1] == (2, 0.5) and len(places) == 3
    assert places[1][0] == 0 and places[1][1] > 1


def sequences(length, vocabulary):
    return [torch.tensor(tokens) for tokens in itertools.product(range(vocabulary), repeat=length)]


def test_the_mean_gradient_is_that_of_the_divergence_of_sentences():
    """Tokens at each place have their own logits, whatever came before: then the sum over sentences is exact."""
    z, log_p = normal(11, 3, 4), normal(12, 3, 4).log_softmax(1)
    leaf = z.clone().requires_grad_()
    log_q = leaf.log_softmax(1)
    truth, mean = torch.zeros(()), torch.zeros_like(z)
    for tokens in sequences(3, 4):
        own, theirs = (table.gather(1, tokens[:, None]).sum() for table in (log_q, log_p))
        truth = truth + own.exp() * (own - theirs)
        mean += own.detach().exp() * minillm.minillm_gradient(z, log_p, tokens)
    torch.testing.assert_close(mean, torch.autograd.grad(truth, leaf)[0])


def test_weights_make_the_mixture_the_student():
    """For each t the mean of w_t over sentences drawn from the mixture is 1, and w_t times the mixture is q."""
    p, q, alpha = normal(13, 3, 4).softmax(1), normal(14, 3, 4).softmax(1), 0.3
    places = torch.arange(3)
    for tokens in sequences(3, 4):
        drawn = [table[places, tokens][None].log() for table in (p, q)]
        mixed = (alpha * p + (1 - alpha) * q)[places, tokens].cumprod(0)
        wanted = q[places, tokens].cumprod(0) / mixed
        torch.testing.assert_close(minillm.mixture_weights(*drawn, alpha)[0], wanted)


def test_rewards_of_a_short_sentence():
    found = minillm.future_rewards(torch.tensor([[0.0, 1, 3, 9]]), torch.zeros(1, 4), torch.tensor([3]))
    assert found.tolist() == [[2, 3, 0, 0]]


def test_losses_of_tokens_are_those_of_torch():
    student, teacher = normal(15, 2, 5, 6), normal(16, 2, 5, 6)
    tokens = torch.randint(6, (2, 5), generator=torch.Generator().manual_seed(0))
    kind = torch.tensor([[0, 1, 0, 2, 1], [0, 2, 2, 0, 1]])
    targets = [torch.where(kind == k, tokens, -100)[:, 1:].flatten() for k in (1, 2)]
    logits = student[:, :-1].flatten(0, 1)
    hard = [F.cross_entropy(logits, target) for target in targets]
    found = minillm.in_context_loss(student, teacher, tokens, kind, 0.0, 0.4)[0]
    torch.testing.assert_close(found, hard[0] + 0.4 * hard[1])
    at = [(kind[:, 1:] == k).flatten() for k in (1, 2)]
    taught = teacher[:, :-1].flatten(0, 1)
    soft = [soft_target_loss(logits[m], taught[m], temperature=1.0) for m in at]
    found = minillm.in_context_loss(student, teacher, tokens, kind, 1.0, 0.4)[0]
    torch.testing.assert_close(found, soft[0] + 0.4 * soft[1])


def test_targets_of_two_rows():
    found = minillm.instruction_targets([[5, 6], [7]], [[8], [9, 9, 9]], 0, 3)
    assert found.tolist() == [[-100, 8, 0], [9, 9, 9]]  # the second one is cut before its end


@pytest.mark.parametrize("n", [1, 2, 5])
def test_votes_are_those_of_the_library(n):
    shares = normal(17, 3).softmax(0)
    assert float(trust.vote_accuracy(shares, n)) == pytest.approx(voting_accuracy(shares, n))
    with_none = 0.8 * shares
    # Without coefficients: the number of voters is binomial, and they vote as if there were no others.
    of_voters = [math.comb(n, k) * 0.8**k * 0.2 ** (n - k) for k in range(n + 1)]
    wanted = sum(chance * voting_accuracy(shares, k) for k, chance in enumerate(of_voters) if k)
    assert float(trust.vote_accuracy(with_none, n)) == pytest.approx(wanted)


def test_calibration_by_hand():
    confidence = torch.tensor([0.0, 0.5, 0.6, 1.0], dtype=torch.float64)
    right = torch.tensor([False, True, False, True])
    # The lower bin holds 0 and 0.5, half of them right; the upper one 0.6 and 1.
    assert float(trust.calibration_error(confidence, right, 2)) == pytest.approx(0.25 * 2 / 4 + 0.3 * 2 / 4)


def test_the_attack_raises_the_loss_most_to_first_order():
    first, second, x = normal(18, 6, 4), normal(19, 3, 6), normal(20, 5, 4).sigmoid()
    labels, epsilon = torch.tensor([0, 1, 2, 0, 1]), 1e-4
    moved = trust.attacked(first, second, x, labels, epsilon)

    def loss(images):
        return F.cross_entropy((images @ first.T).relu() @ second.T, labels)

    corners = [epsilon * (2.0 * torch.tensor(c) - 1) for c in itertools.product((0, 1), repeat=4)]
    # Below the first order there is a rest of the order ε².
    assert float(loss(moved)) > max(float(loss(x + corner)) for corner in corners) - 10 * epsilon**2
    assert float((moved - x).abs().max()) == pytest.approx(epsilon)


def test_subgroups_by_hand():
    before, after = torch.tensor([0, 1, 1, 0, 0, 1]), torch.tensor([0, 1, 0, 0, 1, 0])
    labels, groups = torch.tensor([0, 1, 1, 0, 1, 0]), torch.tensor([1, 1, 1, 3, 3, 3])
    # Group 1 falls from 3 to 2 of 3, group 3 rises from 1 to 3; 0 and 2 have nobody.
    assert trust.beyond_accuracy(before, after, labels, groups).tolist() == pytest.approx([2 / 3, 1 / 3, 0.5])


def test_rationales_by_hand():
    texts = [[0, "x #### 4"], [0, "x #### 4"], [1, "x #### 4"], [0, "4 #### 5"], [0, "y #### 5 so #### 4.0"]]
    assert trust.kept_rationales(texts, [4, 4], 2).tolist() == [1, 0, 1, 0, 1]
