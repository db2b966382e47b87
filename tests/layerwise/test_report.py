import math

import pytest
import torch
from torch import nn

from mlcomp.layerwise import CompressionReport, LayerRow, output_error
from mlcomp.layerwise.report import skipped_row


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
