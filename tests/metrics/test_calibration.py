import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from torch.nn import functional as F

from mlcomp.metrics import expected_calibration_error, fit_temperature, reliability
from tests.examples import examples


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def literal_error(confidence, correct, bins):
    """The definition, prediction by prediction, with whole numbers for the edges."""
    total = 0.0
    for m in range(1, bins + 1):
        inside = [
            (c, r)
            for c, r in zip(confidence, correct, strict=True)
            if (m - 1) / bins < c <= m / bins or (m == 1 and c == 0)
        ]
        if inside:
            accuracy = sum(r for _, r in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - sum(c for c, _ in inside) / len(inside))
    return total


def test_three_predictions_by_hand():
    # Bins (0, 0.5] and (0.5, 1]: one of 0.4, wrong; two of 0.8 and 1, one right.
    found = reliability(torch.tensor([0.4, 0.8, 1.0]).double(), torch.tensor([False, True, False]), bins=2)
    assert found.counts.tolist() == [1, 2]
    assert found.expected_error == pytest.approx(1 / 3 * 0.4 + 2 / 3 * 0.4)
    assert found.largest_error == pytest.approx(0.4)


@examples(40)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 60))
def test_against_the_definition(seed, bins, n):
    generator = np.random.default_rng(seed)
    # Half of the confidences lie on an edge, 0 and 1 among them.
    edges, inside = generator.integers(0, bins + 1, n) / bins, generator.random(n)
    confidence = np.where(generator.random(n) < 0.5, edges, inside)
    correct = generator.random(n) < confidence
    found = reliability(torch.from_numpy(confidence), torch.from_numpy(correct), bins=bins)
    assert found.expected_error == pytest.approx(literal_error(confidence, correct, bins), abs=1e-12)
    assert found.counts.sum() == n
    assert float((found.accuracy * found.counts).sum()) == pytest.approx(correct.sum())


def test_against_scikit_learn():
    generator = np.random.default_rng(3)
    confidence = generator.random(400) ** 0.3  # few below 0.3: some bins are empty
    correct = generator.random(400) < confidence
    found = reliability(torch.from_numpy(confidence), torch.from_numpy(correct), bins=20)
    there = found.counts > 0
    assert not there.all()
    accuracy, mean = calibration_curve(correct, confidence, n_bins=20)
    np.testing.assert_allclose(found.accuracy[there], accuracy, rtol=1e-12)
    np.testing.assert_allclose(found.confidence[there], mean, rtol=1e-12)


def test_logits_give_the_likeliest_class_and_its_probability():
    p = torch.tensor([[0.75, 0.15, 0.1], [0.1, 0.35, 0.55]], dtype=torch.float64)
    # 0.75 right, 0.55 wrong, in bins of their own
    assert expected_calibration_error(p.log(), torch.tensor([0, 1]), bins=10) == pytest.approx((0.25 + 0.55) / 2)
    shaped = expected_calibration_error(p.log().view(2, 1, 3), torch.tensor([[0], [1]]), bins=10)
    assert shaped == pytest.approx(0.4)


def test_a_confidence_of_one():
    assert expected_calibration_error(torch.tensor([[1e4, 0.0]]), torch.tensor([0])) == 0
    assert expected_calibration_error(torch.tensor([[1e4, 0.0]]), torch.tensor([1])) == 1


def test_true_confidences_leave_the_error_of_the_sample():
    z = 2 * drawn(20_000, 4)
    y = torch.multinomial(z.softmax(1), 1, generator=torch.Generator().manual_seed(5))[:, 0]
    # Each of 15 bins of about n/15 samples is off by about sqrt(p(1 − p) · 15/n) ≤ 0.014.
    assert 0 < expected_calibration_error(z, y) < 0.014
    assert expected_calibration_error(3 * z, y) > 0.1
    assert fit_temperature(3 * z, y) == pytest.approx(3, rel=0.05)


def test_temperature_of_two_classes_in_closed_form():
    # Logit difference a, right in 4 of 5: sigmoid(a/T) = 4/5, so T = a / ln 4.
    z = torch.tensor([[3.0, 0.0]]).repeat(5, 1)
    assert fit_temperature(z, torch.tensor([0, 0, 0, 0, 1])) == pytest.approx(3 / math.log(4), rel=1e-12)


def test_temperature_against_a_search():
    z, y = 5 * drawn(300, 6), torch.randint(6, (300,), generator=torch.Generator().manual_seed(1))
    y[:150] = z[:150].argmax(1)
    best = minimize_scalar(
        lambda log_t: float(F.cross_entropy(z / math.exp(log_t), y)), bounds=(-3, 6), method="bounded"
    )
    # A search sees a minimum only to the square root of what it sees of the value.
    assert fit_temperature(z, y) == pytest.approx(math.exp(best.x), rel=1e-4)
    assert fit_temperature(1e30 * z, y) == pytest.approx(1e30 * fit_temperature(z, y), rel=1e-10)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[1.0, 0.0]], [0], "every label has the largest"),
        ([[0.0, 0.0]], [0], "every label has the largest"),
        ([[1.0, 0.0]], [1], "no finite temperature"),
        ([[math.nan, 0.0]], [1], "NaN"),
        ([[1.0, 0.0]], [2], "labels must lie in 0 … 1"),
        ([[1.0, 0.0]], [0, 1], r"labels must be \(1,\)"),
    ],
)
def test_no_temperature(logits, labels, message, as_user):
    with pytest.raises(ValueError, match=message):
        fit_temperature(torch.tensor(logits), torch.tensor(labels))


@pytest.mark.parametrize(
    ("confidence", "correct", "options", "message"),
    [
        ([1.1], [True], {}, "confidence must lie in"),
        ([-0.1], [True], {}, "confidence must lie in"),
        ([math.nan], [True], {}, "NaN"),
        ([], [], {}, "at least one"),
        ([0.5], [1], {}, "correct must be boolean"),
        ([0.5], [True, False], {}, "correct must be boolean"),
        ([0.5], [True], {"bins": 0}, "bins must be a whole number"),
    ],
)
def test_bad_input(confidence, correct, options, message, as_user):
    with pytest.raises(ValueError, match=message):
        reliability(torch.tensor(confidence), torch.tensor(correct), **options)
