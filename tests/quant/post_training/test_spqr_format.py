import pytest
import torch

from mlcomp.formats import pack
from mlcomp.obs import SpQR, spqr
from mlcomp.quant.post_training.spqr_format import Bilevel, Plain
from tests.quant.post_training.test_spqr import small


def test_size_is_to_the_bit():
    weight, _, hessian = small(out=40, inp=64, samples=200)
    q = spqr(weight, hessian, bits=3, group_size=16, statistic_bits=3, statistic_rows=16, threshold=0.2)
    count = int(q.outliers.sum())
    assert count > 0
    blocks = 3 * 4  # 40 rows are three runs of at most 16; 64 columns are four groups
    expected = {
        "codes": 40 * 64 * 3 // 8,
        "steps": 40 * 4 * 3 // 8 + blocks * 2 * 2,
        "zero points": 40 * 4 * 3 // 8 + blocks * 2 * 2,
        "outlier values": 2 * count,
        "outlier columns": 2 * count,
        "row pointers": 4 * 41,
        "column order": 0,
        "unit": 4,
    }
    assert q.parts == expected and q.nbytes == sum(expected.values())
    stored = [pack(q.codes, 3), pack(q.step.codes, 3), pack(q.zero.codes, 3)]
    stored += [q.step.low, q.step.step, q.zero.low, q.zero.step, q.values, q.columns.to(torch.int16), q.pointers]
    assert q.nbytes == sum(part.nbytes for part in stored) + 4
    # The paper's formula, where everything divides: b + 2·b_s/β₁ + 64/(β₁β₂) + 32 r, and the row pointers.
    weight, _, hessian = small(out=32, inp=64, samples=200)
    q = spqr(weight, hessian, bits=3)
    share = float(q.outliers.double().mean())
    formula = 3 + 2 * 3 / 16 + 64 / (16 * 16) + 32 * share
    assert q.bits_per_weight == pytest.approx(formula + 8 * (4 * 33 + 4) / (32 * 64), rel=1e-12)


def test_bilevel_statistic_decodes_by_its_definition():
    b = Bilevel(
        torch.tensor([[0, 3], [2, 1], [7, 0]], dtype=torch.uint8),
        torch.tensor([[1.0, -2.0], [0.5, 4.0]]).half(),
        torch.tensor([[0.25, 1.0], [0.125, 2.0]]).half(),
        bits=3,
        rows=2,
    )
    assert b.decode().tolist() == [[1.0, 1.0], [1.5, -1.0], [1.375, 4.0]]
    assert b.nbytes == 3 + 4 * 2 + 4 * 2  # 6 codes of 3 bits are 18 bits


def test_plain_statistic_takes_its_bits():
    p = Plain(torch.tensor([[0.5, 1.0, 2.0]]), bits=3)
    assert torch.equal(p.decode(), p.values) and p.nbytes == 2  # 9 bits


def test_decodes_by_its_definition():
    # Two rows of four columns in groups of two; column order 2, 0, 3, 1; one outlier in the second row.
    q = SpQR(
        codes=torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]], dtype=torch.uint8),
        step=Plain(torch.tensor([[1.0, 2.0], [0.5, 0.25]]), bits=32),
        zero=Plain(torch.tensor([[0.0, 1.0], [1.0, 2.0]]), bits=2),
        pointers=torch.tensor([0, 0, 1], dtype=torch.int32),
        columns=torch.tensor([3], dtype=torch.int32),
        values=torch.tensor([8.0]).half(),
        unit=0.5,
        bits=2,
        order=torch.tensor([2, 0, 3, 1], dtype=torch.int32),
    )
    stored = [[0.0, 0.5, 1.0, 2.0], [0.5, 0.25, -0.125, 4.0]]
    placed = [[row[1], row[3], row[0], row[2]] for row in stored]
    assert q.dequantize().tolist() == placed
    assert q.outliers.tolist() == [[False] * 4, [False, True, False, False]]
    assert q.nbytes == 2 + 16 + 1 + 2 + 2 + 12 + 8 + 4 and q.bits_per_weight == 47
