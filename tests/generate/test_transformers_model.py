"""Drawing texts: transformers' own greedy search, the distribution by counting, and seeds that hang on the item."""

import pytest
import torch

from mlcomp.generate import Sampling, TransformersModel
from mlcomp.generate.transformers_model import choose
from tests.generate.tiny_model import LETTERS, tiny_model

PROMPTS = ["abc", "A longer prompt of many words", "x"]


def test_greedy_search_is_that_of_transformers():
    own = tiny_model()
    replies = own.generate(PROMPTS, seeds=[0, 0, 0], sampling=Sampling(max_tokens=8, temperature=0))
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        tokens = own.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        theirs = own.model.generate(**tokens, do_sample=False, max_new_tokens=8, pad_token_id=0)
        new = theirs[0, tokens["input_ids"].shape[1] :]
        assert reply.text == own.tokenizer.decode(new, skip_special_tokens=True)
        assert reply.ended == (new[-1] == own.tokenizer.eos_token_id)


def test_a_reply_hangs_on_its_own_seed_and_prompt():
    own, sampling = tiny_model(), Sampling(max_tokens=8)
    seeds = [5, 6, 7]
    together = own.generate(PROMPTS, seeds=seeds, sampling=sampling)
    assert own.generate(PROMPTS, seeds=seeds, sampling=sampling) == together
    for number, prompt in enumerate(PROMPTS):
        assert own.generate([prompt], seeds=[seeds[number]], sampling=sampling) == [together[number]]
    assert own.generate(PROMPTS[::-1], seeds=seeds[::-1], sampling=sampling) == together[::-1]
    assert own.generate(PROMPTS, seeds=[8, 9, 10], sampling=sampling) != together


def test_the_callers_generator_and_modes_stay():
    own = tiny_model()
    own.model.train()
    before = torch.get_rng_state()
    own.generate(["a"], seeds=[1], sampling=Sampling(max_tokens=2))
    assert torch.equal(before, torch.get_rng_state()) and own.model.training


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.6), (1.0, 0.05)])
def test_tokens_come_as_often_as_their_probability_says(temperature, top_p):
    logits = torch.tensor([[1.0, 3.0, 0.0, 2.5, -1.0]])
    p = (logits.double() / temperature).softmax(1)[0]
    order, kept, mass = p.argsort(descending=True), torch.zeros(5, dtype=torch.float64), 0.0
    for token in order:  # the likeliest, until they have top_p together
        if mass < top_p:
            kept[token] = p[token]
        mass += float(p[token])
    want = kept / kept.sum()
    count = 20_000
    uniforms = (torch.arange(count, dtype=torch.float64) + 0.5) / count  # evenly spread: no luck is needed
    tokens = choose(logits.expand(count, 5), uniforms, Sampling(temperature=temperature, top_p=top_p))
    got = torch.bincount(tokens, minlength=5) / count
    # each of the five steps of the distribution lies within one place of its own
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2 / count)


@pytest.mark.parametrize("scale", [1e-3, 8.0])
def test_top_p_of_more_tokens_than_are_looked_at_first(scale):
    """Of nearly even probabilities top_p needs two thirds of 3000 tokens, of uneven ones a few."""
    logits = scale * torch.randn(2, 3000, generator=torch.Generator().manual_seed(0))
    p, order = logits.double().softmax(1).sort(dim=1, descending=True)
    left = p * (p.cumsum(1) - p < 2 / 3)
    for u in (0.0, 0.3, 0.999):
        place = (left.cumsum(1) <= u * left.sum(1, keepdim=True)).sum(1, keepdim=True)
        got = choose(logits, torch.full((2,), u, dtype=torch.float64), Sampling(top_p=2 / 3))
        assert torch.equal(got, order.gather(1, place)[:, 0])


def test_top_p_leaves_what_transformers_leaves():
    warper = pytest.importorskip("transformers").TopPLogitsWarper(0.7)
    logits = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)) * 2
    left = warper(None, logits).isfinite()
    tokens = torch.stack([choose(logits, torch.full((40,), u / 200), Sampling(top_p=0.7)) for u in range(200)], 1)
    seen = torch.zeros_like(left).scatter(1, tokens, True)
    assert not (seen & ~left).any()
    # What was not seen has less than 1/200 of what is left.
    p = logits.softmax(1) * left
    assert ((p / p.sum(1, keepdim=True))[left & ~seen] < 1 / 200 + 1e-6).all()


def test_stop_strings_end_a_text_before_them():
    own = tiny_model()
    (whole,) = own.generate(["abc"], seeds=[3], sampling=Sampling(max_tokens=30))
    mark = whole.text[5:7]
    (cut,) = own.generate(["abc"], seeds=[3], sampling=Sampling(max_tokens=30, stop=(mark,)))
    assert cut.ended and cut.text == whole.text[: whole.text.index(mark)]


def test_a_text_ends_where_the_model_ends_it():
    own = tiny_model()
    with torch.no_grad():
        own.model.lm_head.weight[len(LETTERS)] = 0
        own.model.lm_head.weight[len(LETTERS)] += 50 * own.model.lm_head.weight[:-1].norm(dim=1).max()
    replies = own.generate(["ab"] * 4, seeds=range(4), sampling=Sampling(max_tokens=20))
    assert any(reply.ended for reply in replies)
    assert all(len(reply.text) == 20 for reply in replies if not reply.ended)


def test_a_chat_is_put_into_the_models_own_format():
    template = "{% for m in messages %}U {{ m.content }}.{% endfor %}{% if add_generation_prompt %} A {% endif %}"
    own = tiny_model(chat=template)
    greedy = {"max_tokens": 8, "temperature": 0}
    chat = own.generate(["hello"], seeds=[0], sampling=Sampling(chat=True, **greedy))
    assert chat == own.generate(["U hello. A "], seeds=[0], sampling=Sampling(**greedy))
    assert chat != own.generate(["hello"], seeds=[0], sampling=Sampling(**greedy))


def test_the_identity_is_that_of_weights_and_tokenizer():
    assert tiny_model().identity == tiny_model().identity
    assert len({tiny_model().identity, tiny_model(1).identity, tiny_model(chat="x").identity}) == 3


def test_bad_input():
    own = tiny_model()
    with pytest.raises(ValueError, match="both a model and its tokenizer"):
        TransformersModel(own.model)
    with pytest.raises(ValueError, match="at least one string"):
        own.generate([], seeds=[], sampling=Sampling())
