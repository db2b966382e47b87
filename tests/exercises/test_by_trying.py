import json
from pathlib import Path

import pytest
import torch

from mlcomp.grading import by_trying

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("size", [1, 4, 9])
def test_the_triangles_that_checks_compare_with(size):
    generator = torch.Generator().manual_seed(size)
    root = torch.randn(size, 3 * size, generator=generator, dtype=torch.float64)
    hessian = root @ root.T
    unit = by_trying.unit_upper(hessian)
    middle = torch.linalg.solve(unit, torch.linalg.solve(unit, hessian).T)
    assert torch.equal(unit, unit.triu()) and torch.equal(unit.diagonal(), torch.ones(size, dtype=torch.float64))
    torch.testing.assert_close(middle, middle.diagonal().diag(), rtol=1e-9, atol=1e-9)
    weight = 3 * torch.randn(5, size, generator=generator, dtype=torch.float64)
    feedback = unit - torch.eye(size, dtype=torch.float64)
    # QuIP's theorem: linear feedback is the same as least squares on all columns that are still free.
    expected = by_trying.round_in_turn(weight, root)
    assert torch.equal(by_trying.feed_back(weight, feedback, start=weight), expected)


def test_removing_in_turn_without_a_choice_is_least_squares():
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(5, 20, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, generator=generator, dtype=torch.float64)
    gone, row = by_trying.remove_in_turn(weight, inputs, 2, lambda gone, p: p == len(gone))
    assert gone == [0, 1] and torch.allclose(row, by_trying.refit(weight, inputs, [2, 3, 4]))
    _, best = by_trying.remove_in_turn(weight, inputs, 2)
    assert by_trying.output_loss(weight, best, inputs) <= by_trying.output_loss(weight, row, inputs)


@pytest.mark.parametrize("path", sorted((ROOT / "exercises").glob("*/*.ipynb")), ids=lambda path: path.stem)
def test_checks_are_folded_and_answers_are_not(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        mark = cell["metadata"].get("nbgrader", {})
        folded = cell["metadata"].get("jupyter", {}).get("source_hidden", False)
        assert folded == (cell["metadata"].get("cellView") == "form")
        if mark.get("solution"):
            assert not folded
        elif mark.get("grade"):
            assert folded
