import pytest
import torch
from torch import nn

from mlcomp.models import convnet
from mlcomp.models.mobilenet_v2 import InvertedResidual
from mlcomp.prune import (
    channel_permutation,
    dependency_groups,
    find_group,
    group_weights,
    kept_magnitude,
    permute_channels,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shuffled(group, seed=0):
    """A random order of a group's channels that leaves each in its block."""
    g = torch.Generator().manual_seed(seed)
    if not group.blocks:
        return torch.randperm(group.channels, generator=g)
    (block,) = group.blocks
    order = torch.arange(group.channels)
    for b in set(block):
        own = torch.tensor([k for k, other in enumerate(block) if other == b])
        order[own] = own[torch.randperm(len(own), generator=g)]
    return order


def all_the_same(model, x, groups):
    """Each group in a random order: the same outputs, other weights, the model as before."""
    model = model.double().eval()
    x = x.double() if x.is_floating_point() else x
    before = {name: value.clone() for name, value in model.state_dict().items()}
    want = model(x)
    for group in groups:
        order = shuffled(group)
        moved = permute_channels(model, group, order)
        first = group.members[0].name
        assert any(not torch.equal(moved.state_dict()[n], v) for n, v in before.items()), first
        # Sums in float64 in another order, over the layers.
        torch.testing.assert_close(moved(x), want, rtol=0, atol=1e-10, msg=lambda text, n=first: f"{n}: {text}")
        back = permute_channels(moved, group, order.argsort())
        assert all(torch.equal(back.state_dict()[n], v) for n, v in before.items()), first
    assert all(torch.equal(model.state_dict()[n], v) for n, v in before.items())


def test_the_courses_network_with_its_shortcuts_depthwise_and_grouped_layers():
    model, images = convnet(), torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    groups = dependency_groups(model, images)
    assert {m.name for g in groups for m in g.members} >= {"stem.conv", "block3.conv2.conv", "depthwise.conv", "head"}
    assert any(g.blocks for g in groups)
    all_the_same(model, images, groups)


def test_depthwise_layers_of_mobilenet_pass_the_order_on():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = [InvertedResidual(8, 8, stride=1, expand=4), InvertedResidual(8, 12, stride=2, expand=2)]
        model = nn.Sequential(nn.Conv2d(3, 8, 1), *blocks, nn.Conv2d(12, 4, 1)).eval()
    images = drawn(2, 3, 8, 8)
    groups = dependency_groups(model, images)
    hidden = find_group(groups, "1.conv.2", "in")
    assert {(m.name, m.axis) for m in hidden.members} == {
        ("1.conv.0.0", "out"), ("1.conv.0.1", "out"), ("1.conv.1.0", "out"), ("1.conv.1.0", "in"),
        ("1.conv.1.1", "out"), ("1.conv.2", "in"),
    }  # fmt: skip
    all_the_same(model, images, groups)


def test_a_flattened_image_and_a_feed_forward_pair_and_heads():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flat = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.PReLU(8), nn.Flatten(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 3)
        )
        turned = nn.Sequential(
            nn.Conv2d(2, 8, 1), nn.ConvTranspose2d(8, 12, 2, groups=4), nn.ReLU(), nn.Conv2d(12, 4, 1)
        )
        block = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    for model, x in ((flat, drawn(2, 1, 4, 4)), (turned, drawn(2, 2, 5, 5)), (block, drawn(2, 5, 16))):
        groups = dependency_groups(model.eval(), x)
        assert groups
        all_the_same(model, x, groups)


def test_whole_numbers_give_the_same_outputs_to_the_bit():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    for parameter in model.parameters():
        parameter.data = (parameter.data * 40).round()
    x = (drawn(5, 8) * 9).round()
    (group,) = dependency_groups(model, x)
    order = channel_permutation(model[2].weight)
    moved = permute_channels(model, group, order)
    assert torch.equal(moved(x), model(x))
    assert torch.equal(moved[2].weight, model[2].weight[:, order]) and torch.equal(
        moved[0].bias, model[0].bias[order]
    )


def test_after_a_search_pruning_keeps_more():
    model, images = convnet(), torch.zeros(1, 1, 28, 28)
    group = find_group(dependency_groups(model, images), "head", "in")
    weight = group_weights(model, group)["head.weight", 1].T
    assert torch.equal(weight, model.head.weight)
    order = channel_permutation(weight)
    assert kept_magnitude(permute_channels(model, group, order).head.weight) == kept_magnitude(weight, order)
    assert kept_magnitude(weight, order) > kept_magnitude(weight)


def test_bad_input(as_user):
    model, images = convnet(), torch.zeros(1, 1, 28, 28)
    groups = dependency_groups(model, images)
    group = find_group(groups, "stem.conv")
    for bad in (torch.arange(8), torch.zeros(16, dtype=torch.long)):
        with pytest.raises(ValueError, match="permutation must hold each of 0 … 15 once"):
            permute_channels(model, group, bad)
    grouped = next(g for g in groups if g.blocks)
    with pytest.raises(ValueError, match="mixes its blocks"):
        permute_channels(model, grouped, torch.arange(grouped.channels).roll(1))
    with pytest.raises(ValueError, match=r"not of this model: 'stem\.conv' has no such axis 'out'"):
        permute_channels(nn.Sequential(nn.Linear(3, 3)), group, torch.arange(16))
