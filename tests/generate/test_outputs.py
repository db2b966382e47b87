import math

import pytest
import torch

from mlcomp.generate import output_log_probability, sample_outputs, search_outputs
from mlcomp.generate.outputs import output_mask
from mlcomp.models import token_decoder
from tests.generate.models import END, VOCABULARY, Table, by_hand, every_output, filled


class Forgetful(torch.nn.Module):
    """A model that cannot go on from what it has computed."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens)


PROMPTS = torch.tensor([[0, 1], [2, 2]])


def test_the_log_probability_is_the_sum_over_its_own_tokens():
    model, outputs = Table(), every_output(3)
    rows = torch.tensor([filled(y, 3) for y in outputs])
    for prompt in PROMPTS:
        got = output_log_probability(model, prompt.expand(len(rows), -1), rows, end=END)
        assert got.tolist() == pytest.approx([by_hand(model, prompt.tolist(), y) for y in outputs], rel=1e-12)
        assert float(got.exp().sum()) == pytest.approx(1.0)


def test_what_stands_behind_the_end_does_not_count():
    model = Table()
    a, b = (
        output_log_probability(model, PROMPTS, torch.tensor([[1, END, *t]] * 2), end=END) for t in ([0, 1], [2, 0])
    )
    assert torch.equal(a, b)
    got = output_mask(torch.tensor([[0, END, 1, END], [END, END, 0, 0], [0, 1, 2, 0]]), end=END)
    assert got.tolist() == [[True, True, False, False], [True, False, False, False], [True] * 4]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_outputs_are_drawn_as_often_as_they_are_likely(temperature):
    model = Table(size=1.0)
    hotter = Table(size=1.0 / temperature)
    count, length = 20_000, 3
    drawn = sample_outputs(model, PROMPTS[:1].expand(count, -1), length=length, end=END, temperature=temperature)
    seen = {}
    for row in map(tuple, drawn.tolist()):
        seen[row] = seen.get(row, 0) + 1
    for y in every_output(length):
        p = math.exp(by_hand(hotter, PROMPTS[0].tolist(), y))
        got = seen.pop(tuple(filled(y, length)), 0) / count
        assert abs(got - p) < 5 * math.sqrt(p * (1 - p) / count) + 1e-9  # five standard errors
    assert not seen


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_what_a_model_keeps_of_the_row_changes_nothing(temperature):
    model = token_decoder(VOCABULARY, 32, 2, seed=4).double()
    prompts = torch.randint(VOCABULARY, (60, 3), generator=torch.Generator().manual_seed(0))
    run = {"length": 7, "end": END, "temperature": temperature, "seed": 2}
    quick = sample_outputs(model, prompts, **run)
    assert torch.equal(quick, sample_outputs(Forgetful(model), prompts, **run))
    if temperature == 0:
        assert torch.equal(quick, search_outputs(model, prompts, beam=1, length=7, end=END).tokens[:, 0])


def test_a_sequence_of_modules_is_a_model_like_another():
    """``nn.Sequential.extend`` appends modules: it is not the way to go on from what has been computed."""
    model = torch.nn.Sequential(Table())
    options = {"length": 3, "end": END, "seed": 1}
    assert torch.equal(sample_outputs(model, PROMPTS, **options), sample_outputs(Table(), PROMPTS, **options))
    assert len(model) == 1


def test_draws_depend_on_the_seed_alone():
    model = Table()
    before = torch.get_rng_state()
    one, same, other = (sample_outputs(model, PROMPTS.repeat(20, 1), length=4, end=END, seed=s) for s in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


def test_bad_input_is_refused(as_user):
    with pytest.raises(ValueError, match="one output for each prompt"):
        output_log_probability(Table(), PROMPTS, torch.zeros(3, 2, dtype=torch.long), end=END)
    with pytest.raises(ValueError, match="outputs"):
        output_log_probability(Table(), PROMPTS, torch.zeros(2, 0, dtype=torch.long), end=END)
    for change in ({"length": 0}, {"end": -1}, {"temperature": -1.0}, {"temperature": math.inf}):
        with pytest.raises(ValueError, match=next(iter(change))):
            sample_outputs(Table(), PROMPTS, **{"length": 3, "end": END} | change)
