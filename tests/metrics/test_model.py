import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mlcomp.metrics import (
    accuracy,
    embedding_similarity,
    hessian_error,
    kl_divergence,
    perplexity,
    relative_error,
    snr_db,
)
from tests.examples import examples


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_relative_error_by_hand():
    w, c, x = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    # WX = (1, 6), ŴX = (1, 3): 9 / 37
    assert relative_error(w, c, x) == pytest.approx(9 / 37, rel=1e-15)


def test_hessian_error_is_relative_error():
    w, c, x = random(5, 7), random(5, 7, seed=1), random(7, 20, seed=2)
    assert hessian_error(w, c, 2 * x @ x.T) == pytest.approx(relative_error(w, c, x), rel=1e-12)


def test_relative_error_of_zero_and_of_nothing_lost():
    w, x = random(5, 7), random(7, 20, seed=2)
    assert relative_error(w, torch.zeros_like(w), x) == pytest.approx(1, rel=1e-12)
    assert relative_error(w, w, x) == 0


@pytest.mark.parametrize("measure", [relative_error, hessian_error])
def test_zero_output_has_no_relative_error(measure):
    with pytest.raises(ValueError, match="zero"):
        measure(random(2, 3), random(2, 3, seed=1), torch.zeros(3, 3))


def test_snr_by_hand():
    x = torch.tensor([3.0, 4.0])
    assert snr_db(x, torch.tensor([3.0, 3.5])) == pytest.approx(20.0, abs=1e-12)  # 25 / 0.25 = 100
    assert snr_db(x, x) == math.inf
    with pytest.raises(ValueError, match="zero"):
        snr_db(torch.zeros(2), x)


def test_accuracy_counts_and_keeps_the_mode():
    model = nn.Sequential(nn.Identity(), nn.Dropout(0.9)).train()
    logits = torch.eye(4)
    assert accuracy(model, logits, torch.tensor([0, 1, 2, 0]), batch_size=3) == 0.75
    assert model.training


class Bigram(nn.Module):
    """A language model with a known answer: the next token's logits are a row of a table."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, tokens):
        return SimpleNamespace(logits=self.table[tokens])


def test_perplexity_against_a_product_of_probabilities():
    table = random(3, 3)
    p = table.softmax(1)
    batches = [torch.tensor([[0, 1, 2, 2]]), torch.tensor([[2, 0, 0, 1], [1, 1, 1, 0]])]
    product, n = 1.0, 0
    for sequence in (row.tolist() for batch in batches for row in batch):
        for now, following in itertools.pairwise(sequence):
            product, n = product * float(p[now, following]), n + 1
    assert perplexity(Bigram(table), batches) == pytest.approx(product ** (-1 / n), rel=1e-6)  # float32 inside


def test_perplexity_of_a_uniform_model_is_its_vocabulary():
    model = Bigram(torch.zeros(50, 50)).train()
    assert perplexity(model, [torch.arange(50)[None]]) == pytest.approx(50, rel=1e-6)
    assert model.training


def test_perplexity_of_bad_input():
    with pytest.raises(ValueError, match="at least one sequence"):
        perplexity(Bigram(torch.zeros(2, 2)), [])
    with pytest.raises(ValueError, match="at least one sequence"):
        perplexity(Bigram(torch.zeros(2, 2)), [torch.tensor([[1]])])
    with pytest.raises(ValueError, match="logits"):
        perplexity(Bigram(torch.full((2, 2), math.nan)), [torch.tensor([[0, 1]])])


def test_kl_by_hand():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    assert kl_divergence(p.log()[None], q.log()[None]) == pytest.approx(0.25 * math.log(2), rel=1e-6)


def test_kl_against_torch_is_from_the_reference_to_the_compressed():
    a, b = random(6, 5, 9), random(6, 5, 9, seed=1)
    p, q = torch.distributions.Categorical(logits=a), torch.distributions.Categorical(logits=b)
    assert kl_divergence(a, b) == pytest.approx(float(torch.distributions.kl_divergence(p, q).mean()), rel=1e-12)
    assert kl_divergence(a, b) != pytest.approx(kl_divergence(b, a), rel=1e-3)


@examples(50)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e2), st.floats(-50, 50))
def test_kl_is_never_negative_and_ignores_a_constant(seed, scale, constant):
    a, b = scale * random(4, 6, seed=seed), scale * random(4, 6, seed=seed + 1)
    assert kl_divergence(a, b) >= -1e-14  # float64 rounding of log_softmax
    assert abs(kl_divergence(a, a + constant)) <= 1e-13 * (1 + abs(constant) + scale)


def test_kl_of_nan():
    with pytest.raises(ValueError, match="reference"):
        kl_divergence(torch.tensor([[math.nan, 0.0]]), torch.zeros(1, 2))


def test_embedding_similarity_by_hand():
    a, b = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [5.0, 5.0]])
    assert embedding_similarity(a, b) == pytest.approx(0.5, rel=1e-12)  # cosines 0 and 1
    assert embedding_similarity(a, -a) == pytest.approx(-1, rel=1e-12)


def test_embedding_similarity_of_bad_input():
    with pytest.raises(ValueError, match="no direction"):
        embedding_similarity(torch.eye(2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="embeddings"):
        embedding_similarity(torch.eye(2), torch.full((2, 2), math.inf))
