r"""Bias correction: the bias that gives a compressed layer's outputs their mean back.

Notation: f(W, X) = WX, E the mean over samples, $m = E(X)$, $\hat m$ the mean of the inputs that the layer gets in
the compressed network; $b_{corr} = b + E(f(W, X)) - E(f(W_{corr}, X)) = b + Wm - W_{corr}\,\hat m$.
Source: Lazarevich, Kozlov, Malinin 2021, arXiv:2104.15023, eq. (5), with $\hat m = m$; Nagel et al. 2019,
arXiv:1906.04721, section 4.2, for layer after layer.   Syllabus: 1.21
"""

from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_finite, check_weight


def bias_correction(
    weight: Float[Tensor, "out inp"],
    corrected: Float[Tensor, "out inp"],
    input_mean: Float[Tensor, " inp"],
    *,
    corrected_input_mean: Float[Tensor, " inp"] | None = None,
) -> Float[Tensor, " out"]:
    r"""Return what to *add* to the layer's bias: $Wm - W_{corr}\hat m$.

    A layer is linear, so the mean of its outputs is its output for the mean input: no output has to be computed.

    Args:
        weight: (out, inp), dense, any float dtype, computed in float64; not modified.
        corrected: (out, inp), what the layer computes with now: pruned, quantized, corrected.
        input_mean: (inp,), mean of the dense network's inputs (for a convolution: of its patches, padding included).
        corrected_input_mean: (inp,), that of the compressed network's inputs; None: the same, as eq. (5) has it.
    Returns:
        (out,) in float64.
    Raises:
        ValueError: NaN or inf, other shapes.
    Guarantee: with the bias moved by the result, each output's mean over those samples is that of the dense layer.
        Of all biases this one also has the least squared error of the outputs on those samples.
    """
    check_weight(weight)
    if corrected.shape != weight.shape:
        raise ValueError(f"corrected must be {tuple(weight.shape)} like weight, got {tuple(corrected.shape)}")
    means = {"input_mean": input_mean, "corrected_input_mean": corrected_input_mean}
    for name, mean in means.items():
        if mean is not None and mean.shape != weight.shape[1:]:
            raise ValueError(f"{name} must be ({weight.shape[1]},) like the weight's inputs, got {tuple(mean.shape)}")
        if mean is not None:
            check_finite(name, mean)
    check_finite("corrected", corrected)
    seen = input_mean if corrected_input_mean is None else corrected_input_mean
    return weight.double() @ input_mean.double() - corrected.double() @ seen.double()
