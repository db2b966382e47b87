"""How far a compressed layer or model is from the original.

Notation: W weight (out, inp), Ŵ its compressed form, X inputs (inp, samples).
Syllabus: 2.01
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def relative_error(
    weight: Float[Tensor, "out inp"], compressed: Float[Tensor, "out inp"], inputs: Float[Tensor, "inp samples"]
) -> float:
    r"""Return $\lVert WX - \hat WX \rVert^2 / \lVert WX \rVert^2$, computed in float64. 0 is perfect, 1 is Ŵ = 0."""
    x = inputs.double()
    reference = (weight.double() @ x).square().sum()
    if reference == 0:
        raise ValueError("the layer's output is zero on these inputs, so a relative error has no meaning")
    return float(((weight.double() - compressed.double()) @ x).square().sum() / reference)


def hessian_error(
    weight: Float[Tensor, "out inp"], compressed: Float[Tensor, "out inp"], hessian: Float[Tensor, "inp inp"]
) -> float:
    r"""Return the same ratio from $H = 2XX^\top$: $\mathrm{tr}(\delta H \delta^\top)/\mathrm{tr}(W H W^\top)$."""
    h, w = hessian.double(), weight.double()
    delta = compressed.double() - w
    reference = ((w @ h) * w).sum()
    if reference == 0:
        raise ValueError("the layer's output is zero on these inputs, so a relative error has no meaning")
    return float(((delta @ h) * delta).sum() / reference)


def snr_db(reference: Tensor, approximation: Tensor) -> float:
    """Return the signal-to-noise ratio 10·log₁₀(‖x‖²/‖x − x̂‖²) in decibels; infinite when they are equal."""
    signal = float(reference.double().square().sum())
    noise = float((reference.double() - approximation.double()).square().sum())
    if signal == 0:
        raise ValueError("the reference is zero everywhere, so a signal-to-noise ratio has no meaning")
    return math.inf if noise == 0 else 10 * math.log10(signal / noise)


@torch.no_grad()
def accuracy(model: torch.nn.Module, inputs: Tensor, labels: Tensor, *, batch_size: int = 500) -> float:
    """Return the share of ``inputs`` (samples first) whose largest logit is the label; the mode is kept."""
    training = model.training
    model.eval()
    right = 0
    for x, y in zip(inputs.split(batch_size), labels.split(batch_size), strict=True):
        right += int((model(x).argmax(-1) == y).sum())
    model.train(training)
    return right / len(labels)
