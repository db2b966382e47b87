import math

import pytest
import torch
from torch import nn

from mlcomp.generate import search_outputs
from tests.generate.models import END, VOCABULARY, Table, by_hand, every_output, filled

PROMPTS = torch.tensor([[0, 1], [2, 2], [1, 0]])
LENGTH = 4
ALL = every_output(LENGTH)


def ranked(model, prompt, power):
    """All outputs of a prompt with their log p, the best score first."""
    found = [(by_hand(model, prompt, y), y) for y in ALL]
    return sorted(found, key=lambda pair: -pair[0] / len(pair[1]) ** power)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_wide_beam_finds_all_outputs_in_their_order(seed, power):
    model = Table(seed)
    got = search_outputs(model, PROMPTS, beam=300, length=LENGTH, end=END, length_power=power)
    for prompt, tokens, value in zip(PROMPTS.tolist(), got.tokens, got.log_probability, strict=True):
        want = ranked(model, prompt, power)
        assert value[: len(ALL)].tolist() == pytest.approx([p for p, _ in want], rel=1e-12)
        assert tokens[: len(ALL)].tolist() == [filled(y, LENGTH) for _, y in want]
        assert torch.isinf(value[len(ALL) :]).all() and (tokens[len(ALL) :] == END).all()
        assert float(value.exp().sum()) == pytest.approx(1.0)  # all that can be said


class Trap(nn.Module):
    """The likeliest first token, 0 with 0.6, leads to three equal ways; after 1 the end is certain."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.tensor([0.6, 0.4, 1e-9, 1e-9]).log())

    def forward(self, tokens):
        after = torch.tensor([[1, 1, 1, 1], [1e-9, 1e-9, 1e-9, 1], [1, 1, 1, 1], [1, 1, 1, 1.0]]).log()
        logits = after[tokens]
        logits[:, 0] = self.first
        return logits


def test_greedy_decoding_is_not_the_mode_and_a_beam_of_two_is():
    prompt = torch.tensor([[2]])
    greedy, two = (search_outputs(Trap(), prompt, beam=b, length=2, end=END) for b in (1, 2))
    assert greedy.tokens[0, 0].tolist()[0] == 0
    assert float(greedy.log_probability[0, 0].exp()) == pytest.approx(0.6 / 4)
    assert two.tokens[0, 0].tolist() == [1, END]
    assert float(two.log_probability[0, 0].exp()) == pytest.approx(0.4)


def test_a_beam_of_one_takes_the_largest_logit_each_time():
    model = Table(3)
    got = search_outputs(model, PROMPTS, beam=1, length=LENGTH, end=END)
    for prompt, tokens in zip(PROMPTS.tolist(), got.tokens[:, 0].tolist(), strict=True):
        row = list(prompt)
        while len(row) < len(prompt) + LENGTH and row[len(prompt) :].count(END) == 0:
            row.append(int(model(torch.tensor([row]))[0, -1].argmax()))
        assert tokens == filled(row[len(prompt) :], LENGTH)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_it_finds_it_says_how_likely_that_is(seed):
    model = Table(seed)
    got = search_outputs(model, PROMPTS, beam=3, length=LENGTH, end=END)
    for i, prompt in enumerate(PROMPTS.tolist()):
        values, rows = got.log_probability[i].tolist(), got.tokens[i].tolist()
        assert values == sorted(values, reverse=True) and values[0] <= ranked(model, prompt, 0)[0][0] + 1e-12
        assert len({tuple(row) for row in rows}) == 3
        for row, value in zip(rows, values, strict=True):
            own = row[: row.index(END) + 1] if END in row else row
            assert value == pytest.approx(by_hand(model, prompt, own), rel=1e-12)


def test_an_end_that_came_early_stays_in_the_race_and_can_be_overtaken():
    """p(end at once) = 0.3; the only other output that counts has 0.7 · 0.9."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, tokens):
            table = torch.tensor([[1e-9, 1e-9, 0.1, 0.9], [1, 1, 1, 1], [0.7, 1e-9, 1e-9, 0.3], [1, 1, 1, 1.0]])
            return self.scale * table.log()[tokens]

    got = search_outputs(Two(), torch.tensor([[2]]), beam=2, length=5, end=END)
    assert got.tokens[0].tolist() == [[0, END, END, END, END], [END] * 5]
    assert got.log_probability[0].exp().tolist() == pytest.approx([0.63, 0.3], rel=1e-6)


def test_the_models_mode_is_kept_and_logits_may_have_a_name():
    class Named(Table):
        def forward(self, tokens):
            assert not self.training
            return type("Answer", (), {"logits": super().forward(tokens)})

    model = Named(1).train()
    got = search_outputs(model, PROMPTS, beam=2, length=3, end=END)
    assert model.training and not got.log_probability.requires_grad
    want = search_outputs(Table(1), PROMPTS, beam=2, length=3, end=END)
    assert torch.equal(got.tokens, want.tokens)


def test_bad_input_is_refused(as_user):
    call = {"beam": 2, "length": 3, "end": END}
    for change in (
        {"beam": 0},
        {"length": 0},
        {"end": -1},
        {"end": VOCABULARY},
        {"length_power": -0.1},
        {"beam": 1.5},
    ):
        with pytest.raises(ValueError, match=next(iter(change))):
            search_outputs(Table(), PROMPTS, **call | change)
    with pytest.raises(ValueError, match="prompts"):
        search_outputs(Table(), PROMPTS[:0], **call)
    with pytest.raises(ValueError, match="prompts"):
        search_outputs(Table(), PROMPTS[0], **call)
    with pytest.raises(TypeError, match="prompts"):
        search_outputs(Table(), PROMPTS.float(), **call)
    broken = Table()
    broken.table.data[:] = math.nan
    with pytest.raises(ValueError, match="logits"):
        search_outputs(broken, PROMPTS, **call)
