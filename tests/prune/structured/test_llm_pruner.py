import pytest
import torch
from torch.testing import assert_close

from mlcomp.models import convnet, minilm, smollm2
from mlcomp.prune import dependency_groups, group_importance, group_weights, least_channels, llm_pruner
from tests.prune.structured.nets import Grouped, run, seeded, with_zeros
from tests.prune.structured.test_remove_channels import IMAGES, TOKENS, transformer


def generated(model, tokens=TOKENS):
    """Return tokens generated with a cache, greedily, and the logits of each."""
    out = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        pad_token_id=0,
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        use_cache=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences, torch.stack(out.logits)


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "GPT2"])
def test_pruned_is_masked_and_generates(name):
    model = transformer(name)
    groups = [g for g in dependency_groups(model, {"input_ids": TOKENS}) if not g.averaged]
    pruned = llm_pruner(model, [TOKENS], share=0.3, groups=groups[1:])  # one layer's attention stays: not uniform
    assert [len(v) for v in pruned.removed.values()] == {"GPT2": [58, 1, 58]}.get(name, [12, 1, 12])
    assert set(pruned.scores) == set(groups[1:]) == set(pruned.removed)
    masked = with_zeros(model, pruned.removed)
    # Rounding of transformers' RMSNorm, which computes in float32.
    assert_close(run(pruned.model, TOKENS), run(masked, TOKENS), rtol=0, atol=1e-6)
    (small, logits), (big, theirs) = generated(pruned.model), generated(masked)
    assert torch.equal(small, big) and small.shape == (2, 11)
    assert_close(logits, theirs, rtol=0, atol=1e-6)
    assert (run(masked, TOKENS) - run(model, TOKENS)).abs().max() > 1e-4
    left = sum(p.numel() for p in pruned.model.parameters())
    cut = sum(
        rows[list(pruned.removed[group])].numel()
        for group in pruned.removed
        for rows in group_weights(model, group).values()
    )
    assert left == sum(p.numel() for p in model.parameters()) - cut


def test_the_least_go():
    model = seeded(Grouped)
    free, grouped = dependency_groups(model, IMAGES)[2], dependency_groups(model, IMAGES)[0]
    scores = torch.arange(free.channels).flip(0).double()
    count = round(0.5 * free.channels)
    last = tuple(range(free.channels - count, free.channels))
    if not free.blocks:
        assert least_channels({free: scores}, share=0.5) == {free: last}
    assert least_channels({grouped: torch.tensor([3.0, 1, 2, 5, 4, 4])}, share=0.5) == {grouped: (1, 2, 4)}
    assert least_channels({grouped: torch.zeros(6)}, share=0.4) == {}  # two of six cannot come from three blocks
    assert least_channels({grouped: torch.tensor([0, -torch.inf] * 3)}, share=0.99) == {grouped: (1, 3, 5)}


def test_counts_are_rounded_and_one_stays():
    model = transformer("Llama")
    (heads, hidden) = [g for g in dependency_groups(model, {"input_ids": TOKENS}) if not g.averaged][:2]
    assert (heads.channels, hidden.channels) == (2, 40)
    for share, expected in ((0.0, (0, 0)), (0.2, (0, 8)), (0.25, (1, 10)), (0.99, (1, 39))):
        found = least_channels({heads: torch.ones(2), hidden: torch.arange(40.0)}, share=share)
        assert (len(found.get(heads, ())), len(found.get(hidden, ()))) == expected
        assert found.get(hidden, ()) == tuple(range(expected[1]))


def test_without_groups_all_but_the_residual_stream():
    model = transformer("Llama")
    found = llm_pruner(model, [TOKENS], share=0.5, expansion="element", aggregation="max")
    assert [len(v) for v in found.removed.values()] == [1, 20, 1, 20]
    groups = list(found.scores)
    direct = group_importance(model, [TOKENS], groups, expansion="element", aggregation="max")
    assert all(torch.equal(direct[g], found.scores[g]) for g in groups)


def test_bad_input():
    model = transformer("Llama")
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="share is that of the channels"):
            llm_pruner(model, [TOKENS], share=share)
    with pytest.raises(ValueError, match="examples is empty"):
        llm_pruner(model, [], share=0.2)
    with pytest.raises(TypeError, match="one Tensor"):
        llm_pruner(model, TOKENS, share=0.2)
    with pytest.raises(ValueError, match="groups is empty"):
        llm_pruner(model, [TOKENS], share=0.2, groups=[])
    (group, *_) = dependency_groups(model, {"input_ids": TOKENS})
    with pytest.raises(ValueError, match="one entry a channel"):
        least_channels({group: torch.ones(3)}, share=0.2)
    with pytest.raises(ValueError, match="hold NaN"):
        least_channels({group: torch.full((group.channels,), torch.nan)}, share=0.2)


@pytest.mark.slow
def test_an_encoder_and_a_convnet():
    model, tokenizer = minilm()
    batch = dict(tokenizer(["A sentence.", "Another one."], return_tensors="pt", padding=True))
    options = {"loss": lambda out, given: out.last_hidden_state.square().mean()}
    pruned = llm_pruner(model, [batch], share=0.25, **options)
    assert [len(v) for v in pruned.removed.values()] == [3, 384] * 6
    masked = with_zeros(model, pruned.removed)
    # float32 through six layers with LayerNorm
    assert_close(run(pruned.model, batch), run(masked, batch), rtol=0, atol=2e-5)
    net, x = convnet(), torch.rand(4, 1, 28, 28)
    slim = llm_pruner(net, [x], share=0.5, loss=lambda out, given: out.logsumexp(1).mean())
    assert_close(run(slim.model, x), run(with_zeros(net, slim.removed), x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_smollm2_loses_what_is_asked():
    model, _ = smollm2()
    tokens = torch.arange(1000, 1016)[None]
    middle = tuple(f"model.layers.{n}." for n in range(3, 29))
    groups = [g for g in dependency_groups(model, tokens) if g.members[0].name.startswith(middle)]
    pruned = llm_pruner(model, [tokens], share=0.2, groups=groups)
    assert {(g.channels, len(v)) for g, v in pruned.removed.items()} == {(1536, 307), (3, 1)}
    left = sum(p.numel() for p in pruned.model.parameters())
    assert left == 134_515_008 - 26 * (307 * 1_728 + 294_912) == 113_054_400
    masked = with_zeros(model, pruned.removed)
    # float32 through 30 layers; logits of up to 30
    assert_close(run(pruned.model, tokens), run(masked, tokens), rtol=0, atol=1e-4)
    assert torch.equal(generated(pruned.model, tokens)[0], generated(masked, tokens)[0])
