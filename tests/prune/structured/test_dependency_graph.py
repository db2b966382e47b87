import pytest
import torch
from torch import nn

from mlcomp.layerwise.running import hooked
from mlcomp.models import convnet, minilm, mlp, mobilenet_v2, smollm2
from mlcomp.prune import dependency_groups, find_group, fixed_channels, group_weights, remove_channels
from tests.prune.structured.nets import Attention, Grouped, Joined, run, seeded, with_zeros

IMAGES = torch.rand(2, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def names(group):
    return {f"{m.name}.{m.axis}" for m in group.members}


def named(groups):
    return {frozenset(names(group)): group for group in groups}


def test_mlp():
    groups = dependency_groups(mlp(), torch.rand(2, 1, 28, 28))
    assert [(g.channels, names(g)) for g in groups] == [(256, {"1.out", "3.in"}), (128, {"3.out", "5.in"})]
    assert groups[0].member("3", "in").indices == tuple((i,) for i in range(256))
    fixed = fixed_channels(mlp(), torch.rand(2, 1, 28, 28))
    assert "given" in fixed.pop("1.in") and "returns" in fixed.pop("5.out") and not fixed


def test_the_courses_convnet():
    groups = dependency_groups(convnet(), torch.rand(1, 1, 28, 28))
    found = {g.members[0].name: g for g in groups}
    assert [(name, g.channels) for name, g in found.items()] == [
        ("stem.conv", 16),
        ("block1.conv1.conv", 32),
        ("block1.conv2.conv", 32),
        ("block2.conv1.conv", 64),
        ("block2.conv2.conv", 64),
        ("block3.conv1.conv", 64),
        ("pointwise.conv", 128),
    ]
    assert names(found["stem.conv"]) == {
        "stem.conv.out",
        "stem.bn.out",
        "block1.conv1.conv.in",
        "block1.shortcut.conv.in",
    }
    stream = names(found["block2.conv2.conv"])
    assert {"block2.shortcut.bn.out", "block3.conv2.conv.out", "depthwise.conv.in", "pointwise.conv.in"} <= stream
    for name in ("block3.conv1.conv", "block2.conv2.conv"):  # the grouped convolution reads one and writes the other
        assert found[name].blocks == (tuple(i // 16 for i in range(64)),)
    assert not found["block2.conv1.conv"].blocks


def direct_influence(model, x):
    """Yield which entries at the inputs of layers change with each bias, if no layer passes on what it reads.

    An independent truth: all weights but those of depthwise layers are zero, so a bias is felt in just the columns
    that read its channel, however sums, products and shapes lie between.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    deep = {n for n, m in layers.items() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels}
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that no ReLU is shut
            module.load_state_dict(nn.BatchNorm2d(module.num_features).state_dict())
            module.bias.data.fill_(3)
    for name, layer in layers.items():
        layer.weight.data = layer.weight.data.abs() if name in deep else layer.weight.data.zero_()
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.empty(layer.weight.shape[0]).double())
        layer.bias.data.copy_(torch.rand(layer.bias.shape, generator=generator) + 0.5)

    def inputs():
        seen = {}
        hooks = [
            m.register_forward_pre_hook(lambda _, args, n=n: seen.update({n: args[0].clone()}))
            for n, m in layers.items()
        ]
        with hooked(hooks):
            run(model, x)
        return seen

    before = inputs()
    for name, layer in layers.items():
        for row in range(len(layer.bias)):
            kept = float(layer.bias.data[row])
            layer.bias.data[row] = kept + 0.25
            for reader, now in inputs().items():
                dim = 1 if now.ndim == 4 else -1
                changed = (now != before[reader]).movedim(dim, 0).flatten(1).any(1)
                yield from (((name, "out", row), (reader, "in", int(i))) for i in changed.nonzero())
            layer.bias.data[row] = kept


@pytest.mark.parametrize("kind", ["joined", pytest.param("convnet", marks=pytest.mark.slow)])
def test_groups_are_the_connected_parts_of_what_is_felt_where(kind):
    model, x = (seeded(Joined), IMAGES) if kind == "joined" else (convnet().double(), torch.rand(1, 1, 8, 8).double())
    if kind == "joined":
        model.norm = nn.Identity()  # an average is felt everywhere, and is no reason to go together
    groups = dependency_groups(model, x)
    channel = {
        (m.name, m.axis, p): (number, c)
        for number, group in enumerate(groups)
        for m in group.members
        for c, places in enumerate(m.indices)
        for p in places
    }
    linked = {}
    for row, column in direct_influence(model, x):
        assert channel.get(row) == channel.get(column), (row, column)
        if row in channel:
            linked.setdefault(channel[row], set()).update((row, column))
    layers = {n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    for place, where in channel.items():
        assert place[0] not in layers or place in linked[where], place


def test_columns_after_a_flatten_a_chunk_and_a_concatenation():
    found = named(dependency_groups(seeded(Joined), IMAGES))
    glu = found[frozenset({"glu.out", "line.in"})]
    assert glu.member("glu").indices == tuple((i, i + 4) for i in range(4))
    assert glu.member("line", "in").indices == tuple(tuple(range(9 * i, 9 * i + 9)) for i in range(4))
    tail = found[frozenset({"right.out", "gate.in", "value.in"})]
    assert tail.member("gate", "in").indices == tuple((6 + i,) for i in range(4))
    gated = found[frozenset({"gate.out", "value.out", "depth.in", "depth.out", "glu.in"})]
    assert gated.member("depth").indices == tuple((2 * i, 2 * i + 1) for i in range(5))
    assert found[frozenset({"line.out", "norm.out", "head.in"})].averaged == ("norm",)


def test_groups_of_convolutions():
    found = named(dependency_groups(seeded(Grouped), IMAGES))
    assert found[frozenset({"first.out", "grouped.in"})].blocks == ((0, 0, 1, 1, 2, 2),)
    assert found[frozenset({"grouped.out", "middle.in"})].blocks == ((0, 0, 0, 1, 1, 1, 2, 2, 2),)
    assert found[frozenset({"middle.out", "turned.in"})].blocks == ((0, 0, 1, 1),)
    deep = found[frozenset({"turned.out", "deep.in", "deep.out", "plain.in"})]
    assert deep.blocks == ((0, 0, 0, 1, 1, 1),) and deep.member("deep").indices[1] == (2, 3)
    assert not found[frozenset({"plain.out", "last.in"})].blocks


def test_heads_of_one_matrix_and_a_residual_stream():
    groups = dependency_groups(seeded(Attention), torch.arange(10).reshape(2, 5))
    found = named(groups)
    heads = found[frozenset({"qkv.out", "out.in"})]
    # key-value head g with its query heads 2g and 2g + 1, of three dimensions each
    assert heads.member("qkv").indices[1] == (*range(6, 12), *range(15, 18), *range(21, 24))
    assert heads.member("out", "in").indices == (tuple(range(6)), tuple(range(6, 12)))
    stream = found[frozenset({"embed.out", "place.2", "norm.out", "qkv.in", "out.out", "head.in"})]
    assert stream.channels == 12 and stream.averaged == ("norm",) and len(groups) == 2
    fixed = fixed_channels(seeded(Attention), torch.arange(10).reshape(2, 5))
    assert "looked up" in fixed["embed.in"] and "returns" in fixed["head.out"]
    assert {"scale.out", "place.1"} <= set(fixed)  # a head's dimensions and the places of a text have one size


class Tokens(nn.Module):
    """Patches as tokens with one more in front, written into a tensor that was made for them; two streams stacked."""

    def __init__(self):
        super().__init__()
        self.patch, self.first = nn.Conv2d(2, 4, 3, stride=3), nn.Parameter(torch.rand(1, 1, 4))
        self.mix, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        tokens = self.patch(x).flatten(2).mT
        x = torch.cat([self.first.expand(len(x), 1, -1), tokens], 1)
        room = torch.empty_like(x)
        room.copy_(x)
        return self.head(torch.stack([room, self.mix(x)], 1).mean((1, 2)))


def test_one_tensor_beside_the_other_keeps_the_channels():
    model = seeded(Tokens)
    (group,) = dependency_groups(model, IMAGES)
    assert group.channels == 4
    assert names(group) == {"patch.out", "first.2", "mix.out", "mix.in", "head.in"}
    small = remove_channels(model, {group: [1]})
    expected = run(with_zeros(model, {group: [1]}), IMAGES)
    torch.testing.assert_close(run(small, IMAGES), expected, rtol=0, atol=1e-12)  # float64


def test_channels_written_into_a_part_of_a_constant_are_fixed():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(4, 3), nn.Linear(5, 2)

        def forward(self, x):
            room = torch.zeros(len(x), 5, dtype=x.dtype)
            room[:, :3] = self.layer(x)
            return self.head(room)

    assert dependency_groups(seeded(Padded), torch.rand(2, 4, dtype=torch.float64)) == ()


def test_the_group_is_the_same_whichever_member_one_starts_from():
    groups = dependency_groups(seeded(Joined), IMAGES)
    for group in groups:
        for member in group.members:
            for places in member.indices:
                assert all(find_group(groups, member.name, member.axis, p) is group for p in places)
    assert dependency_groups(seeded(Joined), IMAGES) == groups and len({hash(g) for g in groups}) == len(groups)
    with pytest.raises(ValueError, match="no group holds"):
        find_group(groups, "head", "out", 0)
    with pytest.raises(ValueError, match="'head' has no 'out'"):
        groups[0].member("head")


class Odd(nn.Module):
    """What stands in the way: a constant, an unknown operation, a layer that is not called, a computed weight."""

    def __init__(self):
        super().__init__()
        layers = {n: nn.Linear(4, 4) for n in ("first", "constant", "sorted", "soft", "unused", "last", "computed")}
        self.layers = nn.ModuleDict(layers)
        self.register_buffer("table", torch.rand(4))
        nn.utils.parametrizations.orthogonal(self.layers["computed"])
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        of = self.layers
        x = of["constant"](of["first"](x)) + self.table
        x = of["sorted"](x).sort(-1).values
        x = of["soft"](x).softmax(-1)
        x = of["computed"](of["last"](x))[:, None]
        return self.attention(x, x, x)[0]


def test_what_is_not_known_is_fixed_and_says_why():
    model, x = seeded(Odd), torch.rand(3, 4, dtype=torch.float64)
    groups, fixed = dependency_groups(model, x), fixed_channels(model, x)
    assert [names(g) for g in groups] == [{"layers.first.out", "layers.constant.in"}]
    reasons = {
        "layers.constant.out": "a constant",
        "layers.sorted.out": "operation sort",
        "layers.soft.out": "softmax runs over them",
        "layers.unused.out": "did not read",
        "layers.last.out": "no channels",
        "attention.out_proj.in": "no channels",
    }
    assert {key: why for key, why in reasons.items() if why not in fixed[key]} == {}


def test_a_depthwise_layer_that_reads_the_input_is_fixed():
    model = seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Conv2d(4, 3, 1), nn.Conv2d(3, 2, 1)))
    assert [names(g) for g in dependency_groups(model, IMAGES)] == [{"1.out", "2.in"}]
    assert "given" in fixed_channels(model, IMAGES)["0.out"]


def test_a_grouped_layer_over_channels_of_two_kinds_is_fixed():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 5, 1)
            self.grouped, self.last = nn.Conv2d(8, 4, 1, groups=2), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.last(self.grouped(torch.cat([self.a(x), self.b(x)], 1)))

    groups = dependency_groups(seeded(Mixed), IMAGES)
    assert [names(g) for g in groups] == [{"grouped.out", "last.in"}]
    assert "equal blocks" in fixed_channels(seeded(Mixed), IMAGES)["a.out"]


def test_the_model_and_its_modes_stay():
    model = seeded(Joined).train()
    model.bn.eval()
    state, modes = {k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()]
    dependency_groups(model, IMAGES)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes and not any(m._forward_hooks for m in model.modules())
    with pytest.raises(RuntimeError):
        dependency_groups(model, IMAGES[:, :1])
    assert not any(m._forward_pre_hooks for m in model.modules())
    with pytest.raises(TypeError, match="a batch is"):
        dependency_groups(model, "images")


@pytest.mark.slow
def test_mobilenet():
    model = mobilenet_v2()
    groups = dependency_groups(model, torch.rand(1, 3, 32, 32))
    # The stem and each of 16 expansions, the 7 streams between shortcuts, and the last 1280 channels.
    assert len(groups) == 25 and sorted({g.channels for g in groups}) == sorted(
        {32, 16, 96, 144, 24, 192, 64, 384, 576, 160, 960, 320, 1280}
    )


@pytest.mark.slow
def test_minilm():
    model, tokenizer = minilm()
    groups = dependency_groups(model, dict(tokenizer(["A sentence."], return_tensors="pt")))
    assert [(g.channels, len(g.members)) for g in groups] == [(12, 4), (1536, 2)] * 6
    head = groups[0].member("encoder.layer.0.attention.self.key").indices[3]
    assert head == tuple(range(96, 128))


@pytest.mark.slow
def test_smollm2_to_the_last_parameter():
    model, _ = smollm2()
    groups = dependency_groups(model, {"input_ids": torch.arange(5)[None]})
    sizes = {}
    for group in groups:
        weights = sum(rows.shape[1] for rows in group_weights(model, group).values())
        sizes.setdefault((group.channels, weights), []).append(group)
    counts = {key: len(found) for key, found in sizes.items()}
    assert counts == {(576, 233_533): 1, (3, 294_912): 30, (1536, 1_728): 30}
    assert 46_080 * 1_728 + 90 * 294_912 == 106_168_320
    assert 576 * 233_533 == sum(p.numel() for p in model.parameters()) == 134_515_008
    kv = find_group(groups, "model.layers.7.self_attn.k_proj", index=100)
    assert kv.member("model.layers.7.self_attn.q_proj").indices[1] == tuple(range(192, 384))
