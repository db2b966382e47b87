from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.modes import evaluating
from mlcomp.train import loop, net_aug, train
from mlcomp.train.net_aug import AugmentedNet, augmented_loss, leading_blocks

OPTIONS = {"lr": 1e-2, "batch_size": 16, "progress": False}


def build(widths):
    """Two convolutions with BatchNorm and dropout, one of them depthwise, and a linear layer behind a flatten."""
    a, b = widths
    layers = [nn.Conv2d(1, a, 3, bias=False), nn.BatchNorm2d(a), nn.ReLU(), nn.Conv2d(a, a, 3, groups=a)]
    layers += [nn.Conv2d(a, b, 1), nn.BatchNorm2d(b), nn.ReLU(), nn.Dropout(0.3), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * b, 10))


def data(n=48):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 6, 6, generator=g), torch.arange(n) % 3


def at_start(seed, widths=(2, 3), most=3):
    """Build the tiny network that NetAug starts from, each slice written out."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        wide, tiny = build(tuple(most * w for w in widths)), build(widths)
    a, b = widths
    for module in (0, 1, 3, 4, 5, 9):
        for name, value in tiny[module].named_parameters():
            rows = {0: a, 1: a, 3: a, 4: b, 5: b, 9: 10}[module]
            columns = {0: 1, 3: 1, 4: a, 9: 4 * b}.get(module)
            source = wide[module].get_parameter(name).detach()[:rows]
            value.data.copy_(source if value.ndim == 1 else source[:, :columns])
    return tiny


@pytest.mark.parametrize(("seed", "widths", "batch_size"), [(0, (2, 3), 16), (5, (2, 3), 48), (5, (4, 8), 128)])
def test_without_the_wider_loss_it_is_plain_training_bit_for_bit(seed, widths, batch_size):
    x, y = data(128)
    options = {"epochs": 3, "seed": seed} | OPTIONS | {"batch_size": batch_size}
    plain = at_start(seed, widths)
    train(plain, x, y, **options)
    got = net_aug(build, x, y, widths=widths, alpha=0.0, **options).model
    assert got.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(got.state_dict()[name], value), name
    augmented = net_aug(build, x, y, widths=widths, **options).model
    assert not torch.equal(augmented[0].weight, plain[0].weight)


def double(widths):
    """Without dropout, in float64."""
    return nn.Sequential(*(m for m in build(widths) if not isinstance(m, nn.Dropout))).double()


def test_gradients_are_those_of_separate_networks_added_slice_by_slice():
    x, y = data(16)
    x = x.double()
    both = AugmentedNet(double, (2, 3), (1, 2, 3), 4).train()
    both.steps += 7
    (a, b), _ = both.draw()
    assert (a, b) != (2, 3)
    augmented_loss(both(x), y, loss=F.cross_entropy, alpha=0.7).backward()
    expected = {name: torch.zeros_like(p) for name, p in both.wide.named_parameters()}
    for widths, weight in (((2, 3), 1.0), ((a, b), 0.7)):
        net = double(widths)  # a network of its own
        for name, p in net.named_parameters():
            source = both.wide.get_parameter(name).detach()
            for place in torch.cartesian_prod(*map(torch.arange, p.shape)).reshape(p.numel(), -1).tolist():
                p.data[tuple(place)] = source[tuple(place)]
        (weight * F.cross_entropy(net(x), y)).backward()
        for name, p in net.named_parameters():
            for place in torch.cartesian_prod(*map(torch.arange, p.shape)).reshape(p.numel(), -1).tolist():
                expected[name][tuple(place)] += p.grad[tuple(place)]
    for name, p in both.wide.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-12, atol=1e-14)  # float64, another order of sums
    # What lies beyond the wider part has no gradient.
    assert not both.wide[0].weight.grad[a:].any() and both.wide[0].weight.grad[:a].any()


def test_the_exported_network_is_the_part_that_ran():
    x, y = data()
    done = net_aug(build, x, y, widths=(2, 3), epochs=2, **OPTIONS)
    with evaluating(done.model):
        got = done.model(x)
    sliced = build((2, 3))
    sliced.load_state_dict(dict(leading_blocks(done.wide, sliced)), strict=False)
    for module in (1, 5):
        sliced[module].running_mean, sliced[module].running_var = (
            done.model[module].running_mean,
            done.model[module].running_var,
        )
    with evaluating(sliced):
        assert torch.equal(got, sliced(x))
    assert done.model[0].weight.untyped_storage().data_ptr() != done.wide[0].weight.untyped_storage().data_ptr()
    assert all(p.requires_grad for p in done.model.parameters()) and done.wide[0].out_channels == 6


def test_statistics_are_those_of_the_tiny_network_alone():
    x, _ = data(16)
    both = AugmentedNet(double, (2, 3), (1, 3), 0).train()
    for _ in range(12):  # the tiny widths are drawn, too
        both(x.double())
    first = F.conv2d(x.double(), both.wide[0].weight[:2])
    mean = first.mean((0, 2, 3)) * (1 - 0.9**12)
    torch.testing.assert_close(both.tiny[1].running_mean, mean.detach())
    assert int(both.tiny[1].num_batches_tracked) == 12 == int(both.steps)


def test_every_width_is_drawn_alike_and_layers_are_independent():
    both = AugmentedNet(build, (2, 3), (1, 2, 3), 0)
    seen = {}
    for _ in range(900):
        widths, _ = both.draw()
        seen[widths] = seen.get(widths, 0) + 1
        both.steps += 1
    assert set(seen) == {(a, b) for a in (2, 4, 6) for b in (3, 6, 9)}
    assert min(seen.values()) > 60 and max(seen.values()) < 140  # 100 expected, four standard deviations


def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path, monkeypatch):
    x, y = data()
    state = torch.random.get_rng_state()
    run = partial(net_aug, build, x, y, widths=(2, 3), epochs=4, **OPTIONS)
    whole = run()
    save = loop._State.save

    def stop(self, path, which):
        save(self, path, which)
        if len(self.loss) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop._State, "save", stop)
        run(checkpoint=tmp_path / "run")
    again = run(checkpoint=tmp_path / "run")
    assert again.history == whole.history
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": -1.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"widths": ()}, "number of widths"),
        ({"widths": (0, 3)}, "each of widths"),
        ({"multiples": ()}, "number of multiples"),
        ({"multiples": (1, 0)}, "each of multiples"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    options = {"widths": (2, 3), "epochs": 1, **OPTIONS} | changes
    with pytest.raises(ValueError, match=message):
        net_aug(build, *data(), **options)


def test_networks_that_are_no_part_of_each_other_are_refused():
    x, y = data()
    call = partial(net_aug, inputs=x, labels=y, widths=(2,), epochs=1, **OPTIONS)
    with pytest.raises(ValueError, match="differ in"):
        call(lambda w: nn.Sequential(*(nn.Linear(6, 3) for _ in range(w[0]))))
    with pytest.raises(ValueError, match="is \\(3, 3\\) in the narrow network and \\(3, 1\\)"):
        call(lambda w: nn.Linear(6 // w[0], 3))
