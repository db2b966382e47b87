import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.prune import (
    Group,
    Member,
    dependency_groups,
    network_slimming,
    remove_channels,
    slimming_channels,
    train_gammas,
)
from mlcomp.train.loop import learning_rate_share
from tests.prune.structured.nets import Grouped, Joined, run, seeded

OPTIONS = {"batch_size": 16, "progress": False}


def net() -> nn.Sequential:
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, bias=False), nn.BatchNorm2d(12)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.fill_(0.5)
    return model


def data(n=64):
    """Images with one of three stripes, in noise."""
    g = torch.Generator().manual_seed(2)
    x, y = 0.3 * torch.randn(n, 1, 8, 8, generator=g, dtype=torch.float64), torch.arange(n) % 3
    for image, label in zip(x, y, strict=True):
        image[0, 2 * label + 1] += 1
    return x, y


def by_hand(step, strength, steps=3, lr=0.1, momentum=0.9):
    """Full-batch SGD on the loss with the penalty, written out."""
    model, (x, y) = seeded(net).train(), data(48)
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for number in range(steps):
        rate = lr * learning_rate_share(steps)(number)
        parameters = dict(model.named_parameters())
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(parameters.values()))
        for (name, p), g in zip(parameters.items(), gradients, strict=True):
            gamma = name in ("1.weight", "4.weight")
            if gamma and step == "subgradient":
                g = g + strength * torch.tensor([(v > 0) - (v < 0) for v in p.tolist()], dtype=p.dtype)
            velocity[name] = momentum * velocity[name] + g
            p.data -= rate * velocity[name]
            if gamma and step == "proximal":
                p.data = torch.tensor(
                    [max(abs(v) - rate * strength, 0.0) * (1 if v > 0 else -1) for v in p.tolist()], dtype=p.dtype
                )
    return model


@pytest.mark.parametrize("step", ["subgradient", "proximal"])
def test_steps_are_those_written_out(step):
    x, y = data(48)
    model = seeded(net)
    got, history = train_gammas(model, x, y, strength=8.0, epochs=3, step=step, batch_size=48, progress=False)
    for p, q in zip(got.parameters(), by_hand(step, 8.0).parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-10)  # the batch in another order
    assert len(history.loss) == 3 and not got.training
    if step == "proximal":  # exactly zero, which a subgradient step never hits
        assert int((got[4].weight == 0).sum()) > 0


def test_other_hooks_are_called_too():
    x, y = data(32)
    calls = []
    options = {
        "before_step": lambda n, optimizer: calls.append(("before", n)),
        "after_step": lambda n: calls.append(("after", n)),
    }
    train_gammas(seeded(net), x, y, strength=0.1, epochs=1, **OPTIONS, **options)
    assert calls == [("before", 1), ("after", 1), ("before", 2), ("after", 2)]


def fake(*gammas, blocks=()):
    """A model of BatchNorms with these γ, and a group for each."""
    model = nn.ModuleList(nn.BatchNorm2d(len(g)) for g in gammas)
    for norm, gamma in zip(model, gammas, strict=True):
        norm.weight.data = torch.tensor(gamma)
    groups = [
        Group((Member(str(i), "out", tuple((j,) for j in range(len(g)))),), blocks=blocks)
        for i, g in enumerate(gammas)
    ]
    return model, groups


def test_one_threshold_for_all_layers_and_one_channel_stays():
    model, groups = fake([0.5, -0.1, 0.3], [0.01, 0.02], [0.9, 0.8, -0.7])
    first, second, third = groups
    assert slimming_channels(model, groups, share=3 / 8) == {first: (1, 2), second: (0,)}
    assert slimming_channels(model, groups, share=0.0) == {}
    everything = slimming_channels(model, groups, share=1.0)  # all but the largest of each
    assert everything == {first: (1, 2), second: (0,), third: (1, 2)}
    assert slimming_channels(model, groups, threshold=0.31) == {first: (1, 2), second: (0,)}
    assert slimming_channels(model, groups, threshold=0.0) == {}
    tied, groups = fake([0.0, 0.0, 1.0], [0.0, 1.0])
    assert slimming_channels(tied, groups, threshold=0.0) == {groups[0]: (0, 1), groups[1]: (0,)}
    assert slimming_channels(tied, groups, share=0.4) == {groups[0]: (0, 1)}


def test_blocks_lose_equally_many():
    model, (group,) = fake([0.1, 0.9, 0.5, 0.4, 0.2, 0.8], blocks=((0, 0, 0, 1, 1, 1),))
    # the least of each block go together: 0.1 with 0.2, then 0.5 with 0.4
    assert slimming_channels(model, [group], share=0.5) == {group: (0, 4)}
    assert slimming_channels(model, [group], share=0.7) == {group: (0, 2, 3, 4)}
    assert slimming_channels(model, [group], share=1.0) == {group: (0, 2, 3, 4)}
    assert slimming_channels(model, [group], threshold=0.45) == {group: (0, 4)}
    two, (group,) = fake([0.1, 0.9], blocks=((0, 1), (1, 0)))
    assert slimming_channels(two, [group], share=1.0) == {}


def test_a_channel_with_several_norms_counts_as_its_largest():
    model = seeded(
        lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1))
    )
    model[1].weight.data = torch.tensor([0.1, 0.2, 0.3]).double()
    model[2].weight.data = torch.tensor([0.5, 0.1, -0.4]).double()
    groups = dependency_groups(model, torch.rand(1, 2, 2, 2).double())
    assert slimming_channels(model, groups, share=1 / 3) == {groups[0]: (1,)}


def test_the_small_net_is_the_whole_one_with_gamma_and_beta_at_zero():
    model, (x, _) = seeded(net), data()
    groups = dependency_groups(model, x)
    removed = slimming_channels(model, groups, share=0.5)
    whole = copy.deepcopy(model)
    for group, numbers in removed.items():
        for member in group.members:
            norm = whole.get_submodule(member.name)
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.data[list(numbers)] = 0
                norm.bias.data[list(numbers)] = 0
    small = remove_channels(model, removed)
    torch.testing.assert_close(run(small, x), run(whole, x), rtol=0, atol=1e-12)  # float64 sums of 72 terms
    assert sum(map(len, removed.values())) == 10


def test_from_training_to_a_smaller_net():
    x, y = data(96)
    model = seeded(net).train()
    state = copy.deepcopy(model.state_dict())
    options = {"share": 0.5, "strength": 0.02, "epochs": 20, "finetune_epochs": 10, **OPTIONS}
    found = network_slimming(model, x, y, **options)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert sum(map(len, found.removed.values())) == 10 and found.model.training
    assert sum(p.numel() for p in found.model.parameters()) < 0.55 * sum(p.numel() for p in model.parameters())
    assert (run(found.model, x).argmax(1) == y).double().mean() > 0.9
    again = network_slimming(model, x, y, **options)
    assert all(map(torch.equal, found.model.state_dict().values(), again.model.state_dict().values()))
    bare = network_slimming(model, x, y, **options | {"finetune_epochs": 0, "fold": True})
    whole = remove_channels(bare.whole, bare.removed, fold=x.split(16))
    torch.testing.assert_close(run(bare.model, x), run(whole, x), rtol=0, atol=0)


def test_the_penalty_pushes_gamma_to_zero():
    x, y = data(96)
    smallest = {}
    for strength in (1e-6, 0.05):
        got, _ = train_gammas(seeded(net), x, y, strength=strength, epochs=20, **OPTIONS)
        smallest[strength] = int(sum((m.weight.abs() < 0.01).sum() for m in (got[1], got[4])))
    assert smallest[1e-6] == 0 and smallest[0.05] >= 8


def test_bad_input(as_user):
    x, y = data(32)
    good = {"strength": 0.1, "epochs": 1, **OPTIONS}
    with pytest.raises(ValueError, match="strength must be positive"):
        train_gammas(seeded(net), x, y, **good | {"strength": 0.0})
    with pytest.raises(ValueError, match="step must be one of subgradient, proximal"):
        train_gammas(seeded(net), x, y, **good, step="newton")
    with pytest.raises(ValueError, match="no BatchNorm whose weight"):
        train_gammas(seeded(Grouped), x, y, **good)
    with pytest.raises(ValueError, match="share is that of the channels"):
        network_slimming(seeded(net), x, y, share=1.5, finetune_epochs=1, **good)
    with pytest.raises(ValueError, match="two: call train_gammas"):
        network_slimming(seeded(net), x, y, share=0.5, finetune_epochs=1, checkpoint="file", **good)
    model, groups = fake([0.5, 0.1])
    for both in ({}, {"share": 0.5, "threshold": 0.1}):
        with pytest.raises(ValueError, match="exactly one of share and threshold"):
            slimming_channels(model, groups, **both)
    for bad in ({"share": -0.1}, {"share": "half"}, {"threshold": -1.0}, {"threshold": float("nan")}):
        with pytest.raises(ValueError, match="must lie in"):
            slimming_channels(model, groups, **bad)
    with pytest.raises(ValueError, match="no group holds a BatchNorm"):
        slimming_channels(model, [], share=0.5)
    joined = seeded(Joined)
    groups = dependency_groups(joined, torch.rand(1, 2, 6, 6).double())
    assert slimming_channels(joined, groups, share=0.5).keys() == {groups[0]}
