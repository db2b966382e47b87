"""Layers that read the same tensors share one product, one H and one factor, and get what they would get alone."""

from functools import partial

import pytest
import torch
from torch import nn

from mlcomp.layerwise import collect_hessians, compress, hessian_sum
from mlcomp.layerwise.hessian_sum import HessianSum
from mlcomp.layerwise.inputs import add_hessians, whole_runs
from mlcomp.layerwise.matrix import input_matrices
from mlcomp.quant import gptq

NAMES = ("query", "key", "value")


class Attention(nn.Module):
    """Three layers that read one tensor; in batch ``odd`` the key reads another, or is left out, or comes first."""

    def __init__(self, width=8, change=None, odd=1):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.change, self.odd, self.calls = change, odd, 0

    def forward(self, x):
        change = self.change if self.calls == self.odd else None
        self.calls += 1
        early = self.key(x) if change == "first" else None
        q = self.query(x)
        if change == "left out":
            k = q
        elif change == "written into":
            k = self.key(x.mul_(2))
        else:
            k = self.key(x + 1 if change == "another" else x) if early is None else early
        return self.out(q * k + self.value(x))


def batches(count=4):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, 5, 8, generator=g) for _ in range(count)]


def alone(model, name):
    """What the layer's own calls add up to."""
    layer = model.get_submodule(name)
    total = HessianSum(name, layer, torch.float32)
    layer.register_forward_pre_hook(lambda module, args: total.add(module, args[0].clone()))
    model.calls = 0
    with torch.no_grad():
        for x in batches():
            model(x)
    return total


@pytest.mark.parametrize("odd", [0, 1, 3])
@pytest.mark.parametrize("change", [None, "another", "left out", "written into", "first"])
def test_each_sum_is_that_of_the_layers_own_calls_bit_for_bit(change, odd):
    torch.manual_seed(0)
    model = Attention(change=change, odd=odd).eval()
    layers = {name: model.get_submodule(name) for name in (*NAMES, "out")}
    sums = {name: HessianSum(name, layer, torch.float32) for name, layer in layers.items()}
    with torch.no_grad():
        add_hessians(model, whole_runs(model, batches(), None), layers, sums, stop=False)
    for name, total in sums.items():
        expected = alone(model, name)
        assert torch.equal(total.hessian, expected.hessian) and total.samples == expected.samples, name
    if change is None:
        assert sums["query"].hessian is sums["key"].hessian is sums["value"].hessian
    assert sums["out"].hessian is not sums["query"].hessian


def test_a_sum_by_panels_is_the_whole_matrix(monkeypatch):
    monkeypatch.setattr(hessian_sum, "PANEL", 3)
    g = torch.Generator().manual_seed(0)
    for layer, calls in (
        (nn.Linear(8, 2), torch.randn(4, 5, 8, generator=g)),
        (nn.Conv2d(4, 4, 2, groups=2), torch.randn(4, 1, 4, 3, 3, generator=g)),
    ):
        total = HessianSum("layer", layer, torch.float32)
        for x in calls:
            total.add(layer, x)
        total.finish()
        parts = [columns for x in calls for columns in input_matrices(layer, x)]
        for group, found in enumerate(total.hessian):
            columns = torch.cat([part[group] for part in parts], dim=1).double()
            torch.testing.assert_close(found.double(), 2 * columns @ columns.T, rtol=1e-5, atol=1e-5)


def test_the_run_for_a_stage_ends_at_the_first_of_its_layers(monkeypatch):
    events = []
    add = HessianSum.add
    monkeypatch.setattr(HessianSum, "add", lambda *args: (events.append("sum"), add(*args)))

    def method(weight, hessian):
        events.append("method")
        seen.append(hessian)
        return weight

    model, seen = Attention().eval(), []
    for name in (*NAMES, "out"):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: events.append(name))
    _, report = compress(model, batches(), method, progress=False)
    stage = events[events.index("sum") : events.index("method")]
    assert stage == ["sum"] * len(batches())  # nothing is computed that the stage itself replaces
    hessians = collect_hessians(model, batches())
    for name, hessian in zip((*NAMES, "out"), seen, strict=True):
        assert torch.equal(hessian, hessians[name])
    assert {row.samples for row in report.rows} == {40}


class Mixed(nn.Module):
    """Two layers that read one image, whose patches are as large and others; and one that reads what they make."""

    def __init__(self):
        super().__init__()
        self.tall, self.wide = nn.Conv2d(4, 4, (3, 1), padding=(1, 0)), nn.Conv2d(4, 4, (1, 3), padding=(0, 1))
        self.out = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.out(self.tall(x) + self.wide(x))


@pytest.mark.parametrize("sequential", [True, False])
def test_layers_of_one_stage_with_sums_of_their_own(sequential, monkeypatch):
    monkeypatch.setattr(hessian_sum, "PANEL", 5)
    model = Mixed().eval()
    images = [torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    plain = collect_hessians(model, images)
    seen = {}

    def method(weight, hessian, *, name):
        seen[name] = hessian
        return weight

    def norms(weight, input_norm):
        seen["query"] = input_norm
        return weight

    compress(
        model, images, {name: partial(method, name=name) for name in plain}, sequential=sequential, progress=False
    )
    for name, hessian in plain.items():
        assert torch.equal(seen[name], hessian), name
        torch.testing.assert_close(hessian, hessian.T)  # up to float32 rounding
    # A layer that wants norms beside layers that want H, and before them.
    attention = Attention().eval()
    methods = {"query": norms} | {name: partial(method, name=name) for name in ("key", "value")}
    compress(attention, batches(), methods, sequential=sequential, progress=False)
    hessian = collect_hessians(attention, batches())["key"]
    assert torch.equal(seen["key"], hessian) and torch.equal(seen["value"], hessian)
    torch.testing.assert_close(seen["query"], (hessian.diagonal() / 2).sqrt())


def test_one_product_for_three_layers_and_results_of_their_own(monkeypatch):
    count = 0
    add = HessianSum.add

    def counted(self, *args):
        nonlocal count
        count += 1
        add(self, *args)

    monkeypatch.setattr(HessianSum, "add", counted)
    found = collect_hessians(Attention(), batches())
    assert count == 2 * len(batches())  # of the three, and of "out"
    found["query"].zero_()
    assert torch.equal(found["key"], found["value"]) and float(found["key"].abs().max()) > 0


def test_one_factorization_for_three_layers(monkeypatch):
    count = 0
    factor = torch.linalg.cholesky_ex

    def counted(*args, **kwargs):
        nonlocal count
        count += 1
        return factor(*args, **kwargs)

    model = Attention()
    method = partial(gptq, bits=4, group_size=4)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", counted)
    compressed, _ = compress(model, batches(), method, sequential=False, progress=False)
    assert count == 2
    hessians = collect_hessians(model, batches())
    for name, hessian in hessians.items():
        expected = method(model.get_submodule(name).weight, hessian).dequantize()
        assert torch.equal(compressed.get_submodule(name).weight, expected)
    assert count == 2 + 4


@pytest.mark.parametrize("write", [lambda h: h.mul_(3), lambda h: h.data.mul_(3)])
def test_a_method_that_writes_into_h_changes_no_other_layers(write):
    def method(weight, hessian):
        result = gptq(weight, hessian, bits=3, damp=1.0).dequantize()
        write(hessian.diagonal()[:2])  # what is computed of H is another matrix now
        return result + gptq(weight, hessian, bits=3, damp=1.0).dequantize()

    model = Attention()
    compressed, _ = compress(model, batches(), method, sequential=False, progress=False)
    for name, hessian in collect_hessians(model, batches()).items():
        expected = method(model.get_submodule(name).weight.detach(), hessian)
        assert torch.equal(compressed.get_submodule(name).weight, expected)
