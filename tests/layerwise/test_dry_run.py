import functools

import pytest
import torch
from torch import nn

from mlcomp.layerwise import compress
from mlcomp.layerwise.dry_run import refusal
from mlcomp.obs import exact_obs, gptq, obq
from mlcomp.prune import wanda
from mlcomp.quant import rtn

MEMORY: list = []
COUNT = 0


def test_methods_say_what_they_would_not_take():
    shapes = [(6, 24), (24, 24)]
    for method, words in (
        (functools.partial(gptq, bits=4, group_size=16), "group_size must divide the 24 inputs, got 16"),
        (functools.partial(obq, bits=9), "bits must be a whole number from 1 to 8, got 9"),
        (functools.partial(exact_obs, sparsity=1.5), r"sparsity"),
        (lambda w, h: gptq(w, h, bits=4, group_size=5), "group_size must divide the 24 inputs, got 5"),
        (lambda w, h: gptq(w.float(), h.double(), bits=4, group_size=5), "got 5"),
    ):
        said = refusal(method, shapes, torch.float32)
        assert said is not None and words in said
    for fits in (functools.partial(gptq, bits=4, group_size=8), lambda w, h: gptq(w, h, bits=2), lambda w, h: w):
        assert refusal(fits, shapes, torch.float32) is None
    assert refusal(functools.partial(rtn, bits=4, group_size=7), shapes[:1], torch.float32) is not None
    assert refusal(functools.partial(wanda, sparsity=2.0), [(6, 24), (24,)], torch.float32) is not None


def test_asking_leaves_no_trace(tmp_path):
    seen, log = [], tmp_path / "log"

    def keeps(w, h):
        seen.append(w)
        MEMORY.append(h)
        return gptq(w, h, bits=4, group_size=5)

    def counts(w, h):
        global COUNT
        COUNT += 1
        return gptq(w, h, bits=4, group_size=5)

    def writes(w, h):
        log.write_text("called")
        return gptq(w, h, bits=4, group_size=5)

    class Method:
        calls = 0

        def __call__(self, w, h):
            self.calls += 1
            raise ValueError("never asked")

    shapes = [(2, 6), (6, 6)]
    assert "got 5" in refusal(keeps, shapes, torch.float32) and seen == [] and MEMORY == []
    assert "got 5" in refusal(counts, shapes, torch.float32) and COUNT == 0
    assert refusal(writes, shapes, torch.float32) is None and not log.exists()
    method = Method()
    assert refusal(method, shapes, torch.float32) is None and method.calls == 0


def test_all_misfits_are_named_before_any_work():
    net = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 10), nn.Linear(10, 8), nn.Linear(8, 3))
    done = []

    def method(w, h):
        result = gptq(w, h, bits=4, group_size=4)
        done.append(w)
        return result

    with pytest.raises(ValueError, match=r"layer '2': group_size must divide the 10 inputs, got 4"):
        compress(net, [torch.randn(30, 8)], method, progress=False)
    assert not done
    with torch.no_grad():
        net[1].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layer '1': its weight holds 1 NaN.*; layer '2': group_size"):
        compress(net, [torch.randn(30, 8)], method, progress=False)
    net = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 10), nn.Linear(10, 8))
    _, report = compress(net, [torch.randn(30, 8)], method, progress=False, on_error="skip")
    assert [row.name for row in report.skipped] == ["2"] and len(done) == 2


def test_batches_are_checked_for_all_layers_before_any_work():
    class Late(nn.Module):
        """What is odd about a batch shows at the last layer only."""

        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x, mask):
            y = self.first(x)
            return self.last(y.exp() if (x < 9).all() else y * float("inf"))

    good = {"x": torch.randn(3, 5, 4), "mask": torch.ones(3, 5)}
    bad, done = {**good, "x": torch.full((3, 5, 4), 10.0)}, []

    def method(w, h):
        done.append(w)
        return w

    for batches, held_out in (([good, bad], None), ([good], [good, bad])):
        with pytest.raises(ValueError, match="layer 'last': its input holds"):
            compress(Late(), batches, method, held_out=held_out, progress=False)
    cut = {**good, "mask": torch.ones(3, 6)}
    for batches, held_out in (([good, cut], None), ([good], [good, cut])):
        with pytest.raises(ValueError, match="and the mask of valid positions"):
            compress(Late(), batches, method, held_out=held_out, valid="mask", progress=False)
    assert not done
