import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.models import convnet
from mlcomp.prune import dependency_groups, fixed_channels, group_weights, remove_channels
from tests.prune.structured.nets import Attention, Grouped, Joined, run, seeded, with_zeros

IMAGES = torch.rand(2, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TOKENS = torch.arange(10).reshape(2, 5)
# Sums of a few hundred terms of size 1 to 10, in another order, in float64.
EXACT = {"rtol": 0, "atol": 1e-11}


def some(group, share=3):
    """Return every third channel of a group, never all; of blocks the same number each."""
    if not group.blocks:
        return list(range(0, group.channels, share))[: group.channels - 1]
    (block,) = group.blocks
    return [block.index(b) + b % block.count(b) for b in sorted(set(block))]


def check_cut(model, batch, groups, tolerance=EXACT):
    """Cut each group alone and all together; each gives what the whole model with zeros gives."""
    before = run(model, batch)
    for chosen in [{g: some(g)} for g in groups] + [{g: some(g) for g in groups}]:
        small = remove_channels(model, chosen)
        expected = run(with_zeros(model, chosen), batch)
        torch.testing.assert_close(run(small, batch), expected, **tolerance)
        assert (expected - before).abs().max() > 1e-6  # else the check would see nothing
        ones = copy.deepcopy(model)
        for parameter in ones.parameters():
            parameter.data.fill_(1)
        kept = sum(int(p.count_nonzero()) for p in with_zeros(ones, chosen).parameters())
        assert sum(p.numel() for p in small.parameters()) == kept


@pytest.mark.parametrize(("kind", "batch"), [(Joined, IMAGES), (Grouped, IMAGES), (Attention, TOKENS)])
def test_the_small_net_is_the_big_one_with_zeros(kind, batch):
    model = seeded(kind)
    groups = dependency_groups(model, batch)
    if kind is Attention:  # its own code splits at a quarter of what the matrix gives, so any cut of heads will do
        assert len(groups) == 2
    check_cut(model, batch, groups)


def test_every_single_channel_by_brute_force():
    """Each candidate at zero in the whole net, against the net without it."""
    model = seeded(Joined)
    for group in dependency_groups(model, IMAGES):
        for number in range(group.channels):
            chosen = {group: [number]}
            small, big = remove_channels(model, chosen), with_zeros(model, chosen)
            torch.testing.assert_close(run(small, IMAGES), run(big, IMAGES), **EXACT)


@pytest.mark.slow
def test_the_courses_convnet():
    model, x = convnet().double(), torch.rand(2, 1, 28, 28).double()
    check_cut(model, x, dependency_groups(model, x))


def test_sizes_that_modules_state():
    model = seeded(Joined)
    groups = dependency_groups(model, IMAGES)
    small = remove_channels(model, {g: some(g) for g in groups})
    assert (small.stem.out_channels, small.bn.num_features, small.right.in_channels) == (4, 4, 4)
    assert (small.depth.groups, small.depth.in_channels, small.depth.out_channels) == (3, 3, 6)
    assert (small.line.in_features, small.line.out_features, small.norm.normalized_shape) == (18, 4, (4,))
    for name, module in small.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            again = copy.deepcopy(module)
            again.reset_parameters()  # as new, from the sizes that it states
            assert {k: v.shape for k, v in again.state_dict().items()} == {
                k: v.shape for k, v in module.state_dict().items()
            }, name
    groups = dependency_groups(small, IMAGES)  # it can be cut again
    run(remove_channels(small, {groups[0]: [1]}), IMAGES)


def test_what_was_given_stays():
    model = seeded(Joined).train()
    model.line.weight.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    group = dependency_groups(model, IMAGES)[-1]
    small = remove_channels(model, {group: [0]}, fold=[IMAGES])
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert small.training and not small.line.weight.requires_grad and small.head.weight.requires_grad
    same = remove_channels(model, {})
    assert all(torch.equal(v, state[k]) for k, v in same.state_dict().items())


class Constant(nn.Module):
    """Channels 0 and 2 after the first norm are relu(β), whatever comes in."""

    def __init__(self, pad: int = 0):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.next, self.norm = nn.Conv2d(4, 6, 3, padding=pad, groups=2, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.next(F.relu(self.bn(self.conv(x))))))
        return self.head(x.mean((2, 3)))


def constant(pad=0):
    model = seeded(lambda: Constant(pad))
    model.bn.weight.data[[0, 2]] = 0
    return model


def test_folding_moves_a_constant_exactly_into_the_next_layer():
    model = constant()
    group = dependency_groups(model, IMAGES)[0]
    small = remove_channels(model, {group: [0, 2]}, fold=IMAGES.split(1))
    torch.testing.assert_close(run(small, IMAGES), run(model, IMAGES), **EXACT)
    dropped = remove_channels(model, {group: [0, 2]})
    assert (run(dropped, IMAGES) - run(model, IMAGES)).abs().max() > 1e-3
    assert small.next.bias is not None and dropped.next.bias is None


def test_folding_ends_at_a_padded_border():
    model = constant(pad=1)
    group = dependency_groups(model, IMAGES)[0]
    small = remove_channels(model, {group: [0, 2]}, fold=[IMAGES])
    inner = []
    for net in (small, model):
        out = net.next(F.relu(net.bn(net.conv(IMAGES)))).detach()
        inner.append((out[..., 1:-1, 1:-1], out))
    torch.testing.assert_close(inner[0][0], inner[1][0], **EXACT)
    assert (inner[0][1] - inner[1][1]).abs().max() > 1e-3


def test_folding_the_mean_of_what_is_no_constant():
    """The mean of a linear layer's output stays what it was: a literal sum over the samples."""
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    x = torch.rand(9, 5, dtype=torch.float64)
    small = remove_channels(model, {dependency_groups(model, x)[0]: [1, 3]}, fold=x.split(2))
    torch.testing.assert_close(run(small, x).mean(0), run(model, x).mean(0), **EXACT)


def test_rmsnorm_gives_what_it_gave_with_zeros():
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 8), nn.RMSNorm(8, eps=0.1), nn.Linear(8, 3)))
    x = torch.rand(3, 5, dtype=torch.float64)
    (group,) = dependency_groups(model, x)
    small = remove_channels(model, {group: [0, 5]})
    torch.testing.assert_close(run(small, x), run(with_zeros(model, {group: [0, 5]}), x), **EXACT)
    torch.testing.assert_close(small[1].weight, model[1].weight[[1, 2, 3, 4, 6, 7]] * math.sqrt(8 / 6))
    assert small[1].eps == pytest.approx(0.1 * 8 / 6)


def test_tied_weights_stay_tied():
    model = seeded(Attention)
    model.head.weight = model.embed.weight
    groups = dependency_groups(model, TOKENS)
    small = remove_channels(model, {g: some(g) for g in groups})
    assert small.head.weight is small.embed.weight and small.embed.embedding_dim == small.head.in_features == 8
    keys = [key for key in group_weights(model, groups[0]) if key[0].startswith(("head", "embed"))]
    assert keys == [("embed.weight", 1)]


def test_weights_of_a_group_and_other_values_in_their_places():
    model = seeded(Grouped)
    group = dependency_groups(model, IMAGES)[0]
    found = group_weights(model, group)
    assert [(key, tuple(rows.shape)) for key, rows in found.items()] == [
        (("first.weight", 0), (6, 2)),
        (("first.bias", 0), (6, 1)),
        (("grouped.weight", 1), (6, 27)),
    ]
    weight = model.grouped.weight
    for channel in range(6):  # channel 3 is the second input of the second group, whose rows are 3, 4, 5
        rows = slice(channel // 2 * 3, channel // 2 * 3 + 3)
        assert torch.equal(
            found["grouped.weight", 1][channel].sort()[0], weight[rows, channel % 2].flatten().sort()[0]
        )
    values = {"grouped.weight": 2 * weight.detach()}
    assert torch.equal(group_weights(model, group, values)["grouped.weight", 1], 2 * found["grouped.weight", 1])
    assert list(group_weights(model, group, values)) == [("grouped.weight", 1)]


def transformer(name: str):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "hidden_size": 48, "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 1}
    heads = {"intermediate_size": 40, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8}
    config = {
        "Llama": lambda: transformers.LlamaConfig(**sizes, **heads, tie_word_embeddings=True),
        "Qwen2": lambda: transformers.Qwen2Config(**sizes, **heads),
        "GPT2": lambda: transformers.GPT2Config(**sizes, n_head=4, n_positions=16),
        "Bert": lambda: transformers.BertConfig(**sizes, num_attention_heads=4, intermediate_size=40),
    }[name]()
    kind = {"GPT2": "GPT2LMHeadModel", "Bert": "BertModel"}.get(name, f"{name}ForCausalLM")
    return seeded(lambda: getattr(transformers, kind)(config))


@pytest.mark.parametrize(
    ("name", "heads", "hidden", "stream"),
    [("Llama", 2, 40, True), ("Qwen2", 2, 40, True), ("GPT2", 4, 192, True), ("Bert", 4, 40, False)],
)
def test_transformers(name, heads, hidden, stream):
    model, batch = transformer(name), {"input_ids": TOKENS}
    groups = dependency_groups(model, batch)
    assert sorted(g.channels for g in groups) == sorted([heads, hidden] * 2 + [48] * stream)
    exact = [g for g in groups if not g.averaged or name in ("Llama", "Qwen2")]
    check_cut(model, batch, exact, {"rtol": 0, "atol": 1e-6})  # transformers' RMSNorm computes in float32
    if stream and len(exact) < len(groups):  # LayerNorm: the small model runs, and is another one
        (group,) = [g for g in groups if g.averaged]
        assert run(remove_channels(model, {group: [3, 7]}), batch).isfinite().all()
    if not stream:
        assert "returns" in fixed_channels(model, batch)["embeddings.word_embeddings.out"]


def test_a_configuration_that_can_state_the_new_sizes_does():
    model, batch = transformer("Llama"), {"input_ids": TOKENS}
    groups = dependency_groups(model, batch)
    small = remove_channels(model, {g: some(g) for g in groups})
    config = small.config
    assert (config.hidden_size, config.intermediate_size, config.num_key_value_heads) == (32, 26, 1)
    assert (config.num_attention_heads, config.head_dim, model.config.hidden_size) == (3, 8, 48)
    again = type(small)(config).double().eval()
    again.load_state_dict(small.state_dict())
    torch.testing.assert_close(run(again, batch), run(small, batch), rtol=0, atol=1e-6)
    text = small.generate(TOKENS, max_new_tokens=3, do_sample=False)
    assert text.shape == (2, 8)
    one = remove_channels(model, {next(g for g in groups if g.channels == 2): [0]})
    assert one.config.num_key_value_heads == 2 and one.generate(TOKENS, max_new_tokens=3).shape == (2, 8)


def test_bad_input(as_user):
    model = seeded(Grouped)
    group = dependency_groups(model, IMAGES)[0]
    for numbers in ([6], [-1], [True], [1.0], ["0"]):
        with pytest.raises(ValueError, match=r"'first' \(6 channels\) are whole numbers from 0 to 5"):
            remove_channels(model, {group: numbers})
    with pytest.raises(ValueError, match="stands twice"):
        remove_channels(model, {group: [0, 0]})
    with pytest.raises(ValueError, match="has to stay"):
        remove_channels(model, {group: range(6)})
    with pytest.raises(ValueError, match=r"3 blocks, and \[2, 0, 0\] would be removed"):
        remove_channels(model, {group: [0, 1]})
    with pytest.raises(ValueError, match="not of this model: 'first' has no axis 'out'"):
        remove_channels(seeded(Joined), {group: [0, 2, 4]})
    smaller = remove_channels(model, {group: [0, 2, 4]})
    with pytest.raises(ValueError, match="not of this model: 'first' has 3 positions along 'out'"):
        group_weights(smaller, group)
    turned = dependency_groups(model, IMAGES)[2]
    with pytest.raises(ValueError, match="'turned' is a transposed convolution"):
        remove_channels(model, {turned: [0, 2]}, fold=[IMAGES])
    with pytest.raises(ValueError, match="batches is empty"):
        remove_channels(model, {group: [0, 2, 4]}, fold=[])
    with pytest.raises(TypeError, match="one Tensor"):
        remove_channels(model, {group: [0, 2, 4]}, fold=IMAGES)
