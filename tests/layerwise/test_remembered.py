"""A block that runs again takes the outputs of its finished layers from the run before; nothing else changes."""

from contextlib import suppress
from functools import partial

import pytest
import torch
from torch import nn

from mlcomp.layerwise import compress
from mlcomp.layerwise.remembered import HERE, End, Part, Remembered, Room, can_remember
from mlcomp.layerwise.running import StopForward, hooked
from mlcomp.quant import gptq


class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.query, self.key, self.out = (nn.Linear(width, width) for _ in range(3))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        x = x + self.out(self.query(x).tanh() * self.key(x))
        return x + self.down(self.up(x).relu_())  # written into


def model(blocks=3):
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(blocks)))


def batches():
    g = torch.Generator().manual_seed(1)
    return [torch.randn(2, 6, 8, generator=g) for _ in range(3)]


def compressed(monkeypatch, share):
    """Return the weights after compression, and how often a linear layer was computed."""
    count = 0
    linear = nn.functional.linear

    def counted(*args):
        nonlocal count
        count += 1
        return linear(*args)

    with monkeypatch.context() as patch:
        patch.setattr("mlcomp.layerwise.walk.SHARE", share)
        patch.setattr(nn.functional, "linear", counted)
        method = partial(gptq, bits=3, damp=0.1)
        result, _ = compress(model(), batches(), method, progress=False, held_out=batches()[:1])
    return result.state_dict(), count


def test_fewer_layers_are_computed_and_the_weights_are_the_same(monkeypatch):
    plain, often = compressed(monkeypatch, 0.0)
    for share in (0.25, 1000.0):  # room for some, room for all
        kept, count = compressed(monkeypatch, share)
        assert all(torch.equal(kept[name], plain[name]) for name in plain)
        assert count < often
        often = count


def test_room_is_kept_to_and_given_back():
    layer, room = nn.Linear(4, 4), Room(2 * 4 * 4 * 3)
    runs = [Remembered(room) for _ in range(3)]
    for run in runs:
        with run.used({"layer": Part(layer)}), torch.no_grad():
            layer(torch.randn(3, 4))
    assert room.left == 0
    for run in runs:
        run.clear()
    assert room.left == 2 * 4 * 4 * 3


@pytest.mark.parametrize("change", ["nothing", "input", "weight", "bias", "output"])
def test_an_output_is_used_again_only_where_nothing_has_changed(change):
    layer, run, x = nn.Linear(4, 4), Remembered(Room(10**6)), torch.randn(3, 4)
    with torch.no_grad():
        with run.used({"layer": Part(layer)}):
            first = layer(x)
        if change == "input":
            x[2, 1] += 1e-3
        elif change in ("weight", "bias"):
            getattr(layer, change).mul_(2)
        elif change == "output":
            first.add_(1)
        with run.used({"layer": Part(layer)}):
            second = layer(x)
        assert (second is first) == (change == "nothing")
        assert torch.equal(second, layer(x))
    assert "forward" not in vars(layer)


class Attention(nn.Module):
    """Takes its arguments in several ways, and returns more than one tensor."""

    def __init__(self):
        super().__init__()
        self.value, self.out = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("scale", torch.tensor(2.0))
        self.calls = 0

    def forward(self, x, places, mask=None, *, keep=None, causal=True):
        self.calls += 1
        y = self.out((self.value(x) * self.scale + places[0]).tanh())
        return y if mask is None else y.masked_fill(mask[..., None], 0), None, {"causal": causal}


def arguments():
    g = torch.Generator().manual_seed(0)
    x, place = torch.randn(2, 3, 4, generator=g), torch.randn(3, 4, generator=g)
    return [x, (place,)], {"mask": torch.tensor([[False, True, False]] * 2), "keep": None, "causal": True}


CHANGES = {
    "nothing": lambda a, args, kwargs: None,
    "another tensor of the same numbers": lambda a, args, kwargs: args.__setitem__(0, args[0].clone()),
    "input": lambda a, args, kwargs: args[0].__setitem__((1, 2, 3), 9.0),
    "inner input": lambda a, args, kwargs: args[1][0].add_(1e-3),
    "mask": lambda a, args, kwargs: kwargs["mask"].logical_not_(),
    "another mask": lambda a, args, kwargs: kwargs.update(mask=kwargs["mask"].clone()),
    "no mask": lambda a, args, kwargs: kwargs.update(mask=None),
    "word": lambda a, args, kwargs: kwargs.update(causal=False),
    "one more": lambda a, args, kwargs: kwargs.pop("keep"),
    "weight": lambda a, args, kwargs: a.value.weight.mul_(2),
    "buffer": lambda a, args, kwargs: a.scale.mul_(2),
    "infinite marks": lambda a, args, kwargs: args[0].__setitem__((0, 0, 0), torch.inf),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_larger_part_is_spared_only_where_nothing_has_changed(change):
    attention, run = Attention(), Remembered(Room(10**6))
    args, kwargs = arguments()
    parts = {"a": Part(attention), "a.value": Part(attention.value), "a.out": Part(attention.out)}
    with torch.no_grad(), run.used(parts):
        first = attention(*args, **kwargs)
        CHANGES[change](attention, args, kwargs)
        second = attention(*args, **kwargs)
        same = change in ("nothing", "another tensor of the same numbers")
        assert (second is first) == same and attention.calls == (1 if same else 2)
        if change == "infinite marks":  # which might be those of another input
            attention(args[0].clone(), *args[1:], **kwargs)
            assert attention.calls == 3
    assert "forward" not in vars(attention) and "forward" not in vars(attention.value)
    truth = attention(*args, **kwargs)
    assert torch.equal(second[0], truth[0]) and second[1:] == truth[1:]


def test_a_part_takes_the_place_of_its_layers_where_there_is_room():
    attention = Attention()
    parts = {"a.value": Part(attention.value), "a.out": Part(attention.out)}
    args, kwargs = arguments()
    size = args[0].nbytes
    for room, left in ((2 * size, size), (size, 0), (size - 1, size - 1)):
        run = Remembered(Room(room))
        with torch.no_grad(), run.used(parts):
            attention(*args, **kwargs)  # as much of its layers as fits
            assert run._room.left == room - min(room // size, 2) * size
            with run.used({"a": Part(attention)}):
                attention(*args, **kwargs)
        assert run._room.left == left
        run.clear()
        assert run._room.left == room


class Half(nn.Module):
    """Ends with its last layer."""

    def __init__(self):
        super().__init__()
        self.value, self.out = nn.Linear(4, 4), nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x, scale=1.0):
        self.calls += 1
        return None, [self.out(self.value(x).tanh() * scale)]


def as_part(half):
    return Part(half, End("h.out", (None, [HERE])), half.out)


WHAT_ENDS = {
    "nothing": lambda h, x: None,
    "the last layer's weight": lambda h, x: h.out.weight.mul_(2),
    "input": lambda h, x: x.mul_(2),
    "another weight": lambda h, x: h.value.weight.mul_(2),
    "another bias": lambda h, x: h.value.bias.add_(1),
}


@pytest.mark.parametrize("change", WHAT_ENDS)
def test_of_a_part_that_is_ending_only_the_last_layer_is_called(change):
    half, run, x = Half(), Remembered(Room(10**6)), torch.randn(2, 4)
    part, given = {"h": as_part(half)}, []
    with torch.no_grad():
        with (
            run.used({}, part),
            hooked([half.out.register_forward_pre_hook(stop)]),
            suppress(StopForward),
        ):
            half(x)  # the run ends before the last layer
        assert half.calls == 1 and run._room.left == 10**6 - x.nbytes
        WHAT_ENDS[change](half, x)
        with run.used({}, part), hooked([half.out.register_forward_pre_hook(lambda m, args: given.extend(args))]):
            found = half(x)
        last = change in ("nothing", "the last layer's weight")
        assert half.calls == (1 if last else 2) and len(given) == 1
        assert found[0] is None and torch.equal(found[1][0], half(x)[1][0])
        before = half.calls
        with run.used(part):
            kept = half(x)
            assert torch.equal(kept[1][0], found[1][0]) and half(x)[1][0] is kept[1][0]
        assert half.calls == before and run._room.left == 10**6 - x.nbytes  # the output is there, its input is not
        with run.used(part):
            half(x, scale=2.0)
        assert half.calls == before + 1
    assert "forward" not in vars(half) and not half.out._forward_pre_hooks


def stop(*_):
    raise StopForward


@pytest.mark.parametrize("fits", [True, False])
def test_what_the_last_layer_was_given_is_kept_where_there_is_room_until_it_is_written_into(fits):
    half, x, seen = Half(), torch.randn(2, 4), []
    run, part = Remembered(Room(x.nbytes if fits else x.nbytes - 1)), {"h": as_part(half)}
    with torch.no_grad(), hooked([half.out.register_forward_pre_hook(lambda m, args: seen.extend(args))]):
        for _ in range(2):
            with run.used({}, part):
                half(x)
        assert half.calls == (1 if fits else 2)
        seen[-1].zero_()
        with run.used({}, part):
            found = half(x)
        assert half.calls == (2 if fits else 3) and torch.equal(found[1][0], half(x)[1][0])


class Counts(nn.Module):
    """Returns another number each time, as it writes into a buffer of its own."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.out(x * self.calls)


@pytest.mark.parametrize("ending", [True, False])
def test_a_part_that_changes_itself_runs_each_time(ending):
    part, run, x = Counts(), Remembered(Room(10**6)), torch.randn(2, 4)
    given: dict = {"p": Part(part, End("p.out", HERE), part.out)}
    with torch.no_grad(), run.used(*(({}, given) if ending else (given,))):
        found = [part(x) for _ in range(3)]
    assert all(torch.equal(y, part.out(x * i)) for i, y in enumerate(found, 1))


def test_what_is_made_in_inference_mode_is_not_kept():
    attention, run = Attention(), Remembered(Room(10**6))
    args, kwargs = arguments()
    with torch.inference_mode(), run.used({"a": Part(attention)}):
        attention(*args, **kwargs)
        attention(*args, **kwargs)
    assert attention.calls == 2 and run._room.left == 10**6


def test_only_plain_linear_layers_are_remembered():
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.rand(())

    wrapped = nn.Linear(2, 2)
    wrapped.forward = lambda x: x
    assert can_remember(nn.Linear(2, 2))
    assert not any(map(can_remember, (Own(2, 2), wrapped, nn.Conv1d(2, 2, 1), None)))
