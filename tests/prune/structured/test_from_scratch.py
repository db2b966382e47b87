import pytest
import torch
from torch import nn

from mlcomp.prune import (
    dependency_groups,
    filter_norms,
    from_scratch,
    least_channels,
    reinitialize,
    remove_channels,
    scratch_epochs,
    training_bill,
)
from mlcomp.train import train
from tests.prune.structured.nets import Joined, seeded
from tests.prune.structured.test_remove_channels import IMAGES

OPTIONS = {"lr": 1e-2, "batch_size": 16, "progress": False}


def net(a=4, b=6):
    layers = [nn.Conv2d(1, a, 3, bias=False), nn.BatchNorm2d(a), nn.ReLU(), nn.Conv2d(a, b, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * b, 3))


def built(seed, *widths):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return net(*widths)


def data(n=48):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 6, 6, generator=g), torch.arange(n) % 3


def half(model):
    """Remove channels 1 and 3 of the first group, and the last three of the second one."""
    first, second = dependency_groups(model, data()[0][:1])
    return {first: [1, 3], second: [3, 4, 5]}


# FLOPs of one image, by hand: 2 · output pixels · weights.
BIG = 2 * (16 * 4 * 9 + 4 * 6 * 4 * 9 + 3 * 24)
SMALL = 2 * (16 * 2 * 9 + 4 * 3 * 2 * 9 + 3 * 12)


def test_it_is_a_small_network_that_was_never_big_bit_for_bit():
    x, y = data()
    plain = built(3, 2, 3)
    train(plain, x, y, epochs=2, seed=3, **OPTIONS)
    for start in (0, 1):  # the big network's weights do not matter
        big = built(start)
        got = from_scratch(big, x, y, half(big), epochs=2, seed=3, **OPTIONS)
        for name, value in plain.state_dict().items():
            assert torch.equal(got.model.state_dict()[name], value), name
        assert (got.bill.epochs, got.bill.flops) == (2, 3 * SMALL * 48 * 2) and len(got.history.loss) == 2
        assert got.bill.flops_with_big == got.bill.flops


def test_computation_as_of_the_big_network():
    x, y = data()
    big = built(0)
    epochs = 2 * BIG // SMALL
    assert epochs == 5  # 2 · 3024 // 1080: not 6, since training stops below the budget
    got = from_scratch(big, x, y, half(big), epochs=2, budget="compute", **OPTIONS)
    assert got.bill.epochs == epochs and len(got.history.loss) == epochs
    assert got.bill.flops <= 3 * BIG * 48 * 2 < got.bill.flops + 3 * SMALL * 48
    small = built(0, 2, 3)
    assert scratch_epochs(big, small, x[:1], epochs=2, cap=2) == 4
    assert scratch_epochs(big, small, x[:7], epochs=2, cap=100) == 5
    assert scratch_epochs(small, big, x[:1], epochs=10) == 10 * SMALL // BIG


def test_bills_are_those_of_a_calculator():
    x, _ = data()
    big, small = built(0), built(0, 2, 3)
    alone = training_bill(small, x[:1], samples=10, epochs=7)
    assert (alone.epochs, alone.flops, alone.flops_with_big) == (7, 3 * SMALL * 70, 3 * SMALL * 70)
    tuned = training_bill(small, x[:1], samples=10, epochs=2, big=big, big_epochs=5)
    assert (tuned.epochs, tuned.flops) == (2, 3 * SMALL * 20)
    assert tuned.flops_with_big == 3 * SMALL * 20 + 3 * BIG * 50
    assert training_bill(small, x[:1], samples=1, epochs=0).flops == 0


def test_a_new_start_is_that_of_a_new_network():
    used = built(0)
    train(used, *data(), epochs=1, **OPTIONS)
    state = torch.random.get_rng_state()
    weights = [p.clone() for p in used.parameters()]
    again = reinitialize(used, seed=9)
    for name, value in built(9).state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name  # running statistics, too
    assert all(torch.equal(p, q) for p, q in zip(used.parameters(), weights, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(reinitialize(used, seed=8)[0].weight, again[0].weight)


def test_filter_norms_are_sums_over_rows():
    model = built(0)
    first, second = dependency_groups(model, data()[0][:1])
    norms = filter_norms(model, (first, second))
    for group, layer in ((first, model[0]), (second, model[3])):
        for channel in range(group.channels):
            expected = sum(abs(v) for v in layer.weight[channel].flatten().tolist())
            assert float(norms[group][channel]) == pytest.approx(expected, rel=1e-6)  # float32 weights
    removed = least_channels(norms, share=0.5)
    kept = set(range(4)) - set(removed[first])
    assert min(float(norms[first][c]) for c in kept) >= max(float(norms[first][c]) for c in removed[first])


def test_rows_of_all_layers_that_make_a_channel_count():
    model = seeded(Joined)
    groups = dependency_groups(model, IMAGES[:1])
    for group, norms in filter_norms(model, groups).items():
        expected = torch.zeros(group.channels, dtype=torch.float64)
        for member in group.members:
            weight = getattr(model.get_submodule(member.name), "weight", None)
            if member.axis == "out" and weight is not None and weight.ndim > 1:
                for channel, places in enumerate(member.indices):
                    expected[channel] += weight[list(places)].abs().sum().item()
        torch.testing.assert_close(norms, expected)


def test_bad_arguments_are_refused():
    x, y = data()
    big = built(0)
    with pytest.raises(ValueError, match="budget"):
        from_scratch(big, x, y, half(big), epochs=2, budget="flops", **OPTIONS)
    with pytest.raises(ValueError, match="epochs"):
        from_scratch(big, x, y, half(big), epochs=0, **OPTIONS)
    with pytest.raises(ValueError, match="cap"):
        scratch_epochs(big, big, x[:1], epochs=2, cap=0.5)
    with pytest.raises(ValueError, match="no FLOPs"):
        scratch_epochs(big, nn.Flatten(), x[:1], epochs=2)
    with pytest.raises(ValueError, match="samples"):
        training_bill(big, x[:1], samples=0, epochs=1)

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(ValueError, match="'1' \\(Own\\) has parameters and no reset_parameters"):
        reinitialize(nn.Sequential(nn.Linear(2, 2), Own()))
    assert remove_channels(big, half(big))[0].out_channels == 2
