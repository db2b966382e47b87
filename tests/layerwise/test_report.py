import functools
import math
import re

import pytest
import torch
from torch import nn

from mlcomp.layerwise import CompressionReport, LayerRow, compress, output_error
from mlcomp.layerwise.report import LeftOut, skipped_row
from mlcomp.prune import magnitude, wanda
from mlcomp.quant import rtn


def row(name="a", status="compressed", before=64, after=16) -> LayerRow:
    return LayerRow(name, (4, 4), status, 0.25, None, 10, before, after, 0.5, 1.0)


def test_sums_and_rows():
    skipped = skipped_row("b", nn.Linear(2, 2, bias=False).half(), "tied")
    report = CompressionReport((row(), skipped))
    assert (report.nbytes_before, report.nbytes_after) == (64 + 8, 16 + 8)
    assert report.skipped == (skipped,) and skipped.status == "skipped: tied" and skipped.shape == (2, 2)
    assert report["a"].bits_per_weight == 8 * 16 / 16
    with pytest.raises(KeyError, match="c"):
        report["c"]
    assert "72 → 24 bytes; 1 layer(s) skipped" in str(report)


def test_error_is_a_ratio_of_squared_outputs():
    g = torch.Generator().manual_seed(0)
    w, c = torch.randn(2, 2, 3, 4, generator=g, dtype=torch.float64)
    x = torch.randn(2, 4, 9, generator=g, dtype=torch.float64)
    literal = ((w - c) @ x).square().sum() / (w @ x).square().sum()
    assert output_error(w, c, 2 * x @ x.mT) == pytest.approx(float(literal), rel=1e-12)
    zero = torch.zeros(1, 3, 4)
    h = torch.eye(4)[None]
    assert output_error(zero, zero, h) == 0 and output_error(zero, zero + 1, h) == math.inf


def network():
    return nn.Sequential(
        nn.Embedding(5, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.LSTM(4, 3, batch_first=True)
    )


def test_every_parameter_that_was_left_has_a_line():
    net = network()
    _, report = compress(
        net, [torch.tensor([[0, 1, 4]])], functools.partial(rtn, bits=4), layers=["1"], progress=False
    )
    assert [row.status for row in report.rows] == ["compressed", "skipped: not chosen"]
    lines = {left.name: left.reason for left in report.left}
    assert set(lines) == {"0.weight", "4.weight_ih_l0", "4.weight_hh_l0"}
    assert "embedding" in lines["0.weight"] and "LSTM" in lines["4.weight_ih_l0"]
    total = sum(p.numel() for p in net.parameters())
    assert report.parameters == total and report.covered == 48 / total
    assert str(report).startswith(f"compressed {48 / total:.1%} of {total} weights")


def test_a_report_in_a_notebook_is_short_and_escaped():
    rows = [LayerRow(f"<b>{i}</b>", (4, 4), "compressed", i / 100, None, 10, 64, 16, 0.5, 1.0) for i in range(30)]
    left = tuple(LeftOut(f"e{i}", (9, 9), 324, "an embedding") for i in range(12))
    page = CompressionReport(tuple(rows), left, 5000)._repr_html_()
    assert "<b>" not in page and page.count("<tr>") == 1 + 5 + 1 + 5 and "and 7 more" in page
    shown = [int(i) for i in re.findall(r"&lt;b&gt;(\d+)", page)]
    assert shown == [29, 28, 27, 26, 25] and "compressed 9.6% of 5 000 weights" in page


def test_a_report_as_a_frame():
    pytest.importorskip("pandas")
    frame = CompressionReport((row("a"), row("b", after=32))).to_frame()
    assert list(frame["name"]) == ["a", "b"] and list(frame["bits_per_weight"]) == [8.0, 16.0]


@pytest.mark.parametrize("sequential", [True, False])
def test_methods_of_the_weight_alone_and_of_the_norms_of_the_inputs(sequential):
    net, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(50, 6)
    for method, expected in (
        (functools.partial(rtn, bits=3), lambda w, x: rtn(w, bits=3).dequantize()),
        (functools.partial(magnitude, sparsity=0.5), lambda w, x: magnitude(w, sparsity=0.5)),
        (functools.partial(wanda, pattern=(1, 2)), lambda w, x: wanda(w, x.norm(dim=0), pattern=(1, 2))),
        (lambda weight: weight * 2, lambda w, x: w * 2),
    ):
        result, _ = compress(net, [x], method, sequential=sequential, progress=False)
        first = expected(net[0].weight.detach(), x)
        torch.testing.assert_close(result[0].weight.detach(), first, rtol=0, atol=0)
        inputs = torch.relu((result if sequential else net)[0](x)).detach()
        second = expected(net[2].weight.detach(), inputs)
        torch.testing.assert_close(result[2].weight.detach(), second, rtol=0, atol=0)
