r"""Is a model right as often as it says? Reliability, expected calibration error, and the temperature that mends it.

Notation: the i-th of n predictions was made with confidence $c_i \in [0, 1]$ and is right or wrong. Bin m of M holds
those with $(m-1)/M < c_i \le m/M$, and 0 belongs to the first; T temperature, z logits.
Source: Guo et al. 2017, arXiv:1706.04599, sections 2 (reliability, ECE, MCE) and 4.2 (temperature).   Syllabus: 5.11
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mlcomp.checks import check_codes, check_tensor, check_values, check_whole
from mlcomp.context import isolated

STEPS = 100  # halvings of a bracket: float64 has no more to tell apart


@dataclass(frozen=True)
class Reliability:
    """What each bin of confidence holds; an empty bin has count, confidence and accuracy 0.

    Attributes:
        counts: predictions in each bin, (bins,).
        confidence: their mean confidence, float64.
        accuracy: the share of them that is right, float64.
    """

    counts: Int64[Tensor, " bins"]
    confidence: Float[Tensor, " bins"]
    accuracy: Float[Tensor, " bins"]

    @property
    def expected_error(self) -> float:
        r"""The expected calibration error (ECE), $\sum_m \frac{n_m}{n} |\mathrm{acc}_m - \mathrm{conf}_m|$."""
        share = self.counts.double() / self.counts.sum()
        return float((share * (self.accuracy - self.confidence).abs()).sum())

    @property
    def largest_error(self) -> float:
        """The maximum calibration error (MCE), the largest gap of a bin that is not empty."""
        return float((self.accuracy - self.confidence).abs().max())


@isolated
def reliability(confidence: Float[Tensor, " n"], correct: Bool[Tensor, " n"], *, bins: int = 15) -> Reliability:
    """Sort predictions into bins of equal width by their confidence.

    Args:
        confidence: probabilities in [0, 1]. They are compared in float64 with m/bins, so a float32 number that should
            be an edge lies on the side to which float32 has rounded it.
        correct: whether each prediction is right.
        bins: M.
    Raises:
        ValueError: no prediction, NaN, a confidence outside [0, 1], another shape of ``correct``, bins below 1.
    Guarantee: each prediction is in one bin; counts add up to n, and accuracies weighted by them to the accuracy.
    """
    check_values("confidence", confidence)
    check_whole("bins", bins, 1)
    if confidence.ndim != 1 or not len(confidence):
        raise ValueError(f"confidence must be (n,) with at least one entry, got {tuple(confidence.shape)}")
    c = confidence.detach().double()
    low, high = map(float, c.aminmax())
    if low < 0 or high > 1:
        raise ValueError(f"confidence must lie in [0, 1], got {low:.3g} … {high:.3g}")
    check_tensor("correct", correct)
    if correct.dtype != torch.bool or correct.shape != confidence.shape:
        raise ValueError(
            f"correct must be boolean, {tuple(confidence.shape)} like confidence, got {correct.dtype} "
            f"{tuple(correct.shape)}"
        )
    inner = torch.arange(1, bins, dtype=torch.float64, device=c.device) / bins
    where = torch.bucketize(c, inner)  # edges[m−1] < c ≤ edges[m]
    counts = torch.bincount(where, minlength=bins)
    each = counts.clamp(min=1)
    return Reliability(
        counts,
        torch.bincount(where, c, minlength=bins) / each,
        torch.bincount(where, correct.double(), minlength=bins) / each,
    )


@isolated
def expected_calibration_error(
    logits: Float[Tensor, "*batch classes"], labels: Int64[Tensor, "*batch"], *, bins: int = 15
) -> float:
    """Return the ECE of the likeliest class: how far confidence and accuracy are apart, on average over predictions.

    It is never negative, so that of a finite sample is above 0 even where all confidences are true: compare it with
    that of labels drawn from the model's own probabilities.

    Args:
        logits: scores before the softmax, which is taken in float64.
        labels: classes, from 0.
        bins: of equal width.
    Raises:
        ValueError: NaN or inf, another shape, a label outside the classes, no sample, bins below 1.
    """
    z, y = _samples(logits, labels)
    confidence, predicted = z.softmax(-1).max(-1)
    return reliability(confidence.clamp(max=1), predicted == y, bins=bins).expected_error


@isolated
def fit_temperature(logits: Float[Tensor, "*batch classes"], labels: Int64[Tensor, "*batch"]) -> float:
    r"""Return the T > 0 that minimizes the cross-entropy of softmax(logits / T); above 1 the model was too sure.

    The cross-entropy is convex in 1/T, with the derivative $\mathbb{E}_{p}[z] - z_y$ averaged over the samples. Its
    zero is found by halving. T changes no prediction.

    Args:
        logits: of samples that were not trained on; computed in float64.
        labels: classes, from 0.
    Raises:
        ValueError: as :func:`expected_calibration_error`; every label has the largest logit (T → 0 is best), or the
            labels' logits are on average no larger than the others' (T → ∞ is).
    """
    z, y = _samples(logits, labels)
    z = z - z.max(-1, keepdim=True).values
    size = float(z.abs().max())
    own = z.gather(-1, y[:, None])[:, 0]
    if not bool((own < 0).any()):
        raise ValueError(
            "every label has the largest logit, so the smaller the temperature, the better: none is best"
        )
    if float((z.mean(-1) - own).mean()) >= 0:
        raise ValueError(
            "the labels' logits are no larger than the others' on average: no finite temperature is best"
        )
    z, own = z / size, own / size

    def slope(inverse: float) -> float:
        return float((((z * inverse).softmax(-1) * z).sum(-1) - own).mean())

    high = 1.0
    while slope(high) < 0:
        high *= 2
    low = 0.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return size / high


def _samples(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (n, classes) in float64, without gradient, and labels (n,)."""
    check_values("logits", logits)
    if logits.ndim < 1 or not logits.numel():
        raise ValueError(f"logits must be (…, classes) with at least one sample, got {tuple(logits.shape)}")
    check_tensor("labels", labels)
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels must be {tuple(logits.shape[:-1])} like the logits, got {tuple(labels.shape)}")
    check_codes("labels", labels, logits.shape[-1] - 1)
    return logits.detach().double().reshape(-1, logits.shape[-1]), labels.long().reshape(-1)
