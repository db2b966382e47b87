"""How far a compressed layer or model is from the original.

Notation: W weight (out, inp), Ŵ its compressed form, X inputs (inp, samples); p, q the distributions over classes or
tokens of the original and the compressed model.
Syllabus: 2.01
"""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from mlcomp.checks import (
    check_finite,
    check_hessian,
    check_like,
    check_matrix,
    check_size,
    check_values,
    check_weight,
)
from mlcomp.context import isolated, isolated_run
from mlcomp.layerwise.hessian import output_loss
from mlcomp.modes import evaluating, home


@isolated
def relative_error(
    weight: Float[Tensor, "out inp"], compressed: Float[Tensor, "out inp"], inputs: Float[Tensor, "inp samples"]
) -> float:
    r"""Return $\lVert WX - \hat WX \rVert^2 / \lVert WX \rVert^2$, computed in float64. 0 is perfect, 1 is Ŵ = 0."""
    check_weight(weight)
    check_like("compressed", compressed, weight.shape, "weight")
    check_matrix("inputs", inputs)
    if len(inputs) != weight.shape[1]:
        raise ValueError(f"inputs must be ({weight.shape[1]}, samples), got {tuple(inputs.shape)}")
    x = inputs.double()
    reference = (weight.double() @ x).square().sum()
    if reference == 0:
        raise ValueError("the layer's output is zero on these inputs, so a relative error has no meaning")
    return float(((weight.double() - compressed.double()) @ x).square().sum() / reference)


@isolated
def hessian_error(
    weight: Float[Tensor, "out inp"], compressed: Float[Tensor, "out inp"], hessian: Float[Tensor, "inp inp"]
) -> float:
    r"""Return the same ratio from $H = 2XX^\top$: $\mathrm{tr}(\delta H \delta^\top)/\mathrm{tr}(W H W^\top)$."""
    check_weight(weight)
    check_like("compressed", compressed, weight.shape, "weight")
    check_hessian(hessian, weight.shape[1])
    h, w = hessian.double(), weight.double()
    reference = output_loss(w, h).sum()
    if reference == 0:
        raise ValueError("the layer's output is zero on these inputs, so a relative error has no meaning")
    return float(output_loss(compressed.double() - w, h).sum() / reference)


@isolated
def snr_db(reference: Tensor, approximation: Tensor) -> float:
    """Return the signal-to-noise ratio 10·log₁₀(‖x‖²/‖x − x̂‖²) in decibels; infinite when they are equal."""
    check_values("reference", reference)
    check_like("approximation", approximation, reference.shape, "the reference")
    check_size("approximation", approximation)
    signal = float(reference.double().square().sum())
    noise = float((reference.double() - approximation.double()).square().sum())
    if signal == 0:
        raise ValueError("the reference is zero everywhere, so a signal-to-noise ratio has no meaning")
    return math.inf if noise == 0 else 10 * math.log10(signal / noise)


@isolated_run
def accuracy(model: torch.nn.Module, inputs: Tensor, labels: Tensor, *, batch_size: int = 500) -> float:
    """Return the share of ``inputs`` (samples first) whose largest logit is the label; every module's mode is kept.

    Raises:
        ValueError: no sample, or not as many labels as inputs.
    """
    if len(inputs) != len(labels) or len(inputs) == 0:
        raise ValueError(f"inputs and labels must have the same length ≥ 1, got {len(inputs)} and {len(labels)}")
    right = 0
    with evaluating(model):
        for x, y in zip(inputs.split(batch_size), labels.split(batch_size), strict=True):
            right += int((model(x).argmax(-1) == y).sum())
    return right / len(labels)


@isolated_run
def perplexity(model: torch.nn.Module, batches: Iterable[Int64[Tensor, "_ _"]]) -> float:
    r"""Return $\exp(-\frac1N\sum \log p(x_t \mid x_{<t}))$ of a causal language model; every module's mode is kept.

    Args:
        model: ``model(tokens).logits`` is (b, length, vocabulary), as in transformers.
        batches: token sequences (see :func:`mlcomp.data.token_batches`); each sequence stands alone, and its first
            token, which nothing predicts, is not counted: N = b·(length − 1) a batch.
    Raises:
        ValueError: no sequence of at least two tokens, or logits that hold NaN or infinity.
    Cost: SmolLM2-135M on two cores: see the model card.
    """
    device = home(model)
    total, tokens = 0.0, 0
    with evaluating(model):
        for batch in batches:
            batch = batch.to(device)
            logits = model(batch).logits[:, :-1]
            check_finite("logits", logits)
            total += float(F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="sum"))
            tokens += batch[:, 1:].numel()
    if tokens == 0:
        raise ValueError("perplexity needs at least one sequence of two tokens or more, got none")
    return math.exp(total / tokens)


@isolated
def kl_divergence(reference: Float[Tensor, "*batch classes"], logits: Float[Tensor, "*batch classes"]) -> float:
    r"""Return the mean over the batch of $\mathrm{KL}(p \Vert q) = \sum_i p_i \log(p_i / q_i)$ in nats.

    Args:
        reference: logits of the original model, p = softmax(reference).
        logits: logits of the compressed model, q = softmax(logits).
    Raises:
        ValueError: NaN or infinity in either, another shape, no entry.
    Guarantee: ≥ 0, and 0 when the logits are equal or differ by a constant (up to float64 rounding).
    """
    check_values("reference", reference)
    check_like("logits", logits, reference.shape, "the reference")
    if reference.numel() == 0 or reference.ndim == 0:
        raise ValueError(f"reference must be (…, classes) with at least one entry, got {tuple(reference.shape)}")
    log_p, log_q = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@isolated
def embedding_similarity(reference: Float[Tensor, "n dim"], embeddings: Float[Tensor, "n dim"]) -> float:
    """Return the mean cosine between the original's and the compressed model's vector of the same sentence.

    1 is perfect agreement; it is the measure of an encoder that has no labels to be right about.

    Raises:
        ValueError: NaN, infinity, or a vector of zeros, which has no direction.
    """
    for name, x in (("reference", reference), ("embeddings", embeddings)):
        check_matrix(name, x)
        if (x == 0).all(1).any():
            raise ValueError(f"{name} holds a vector of zeros, which has no direction")
    return float(F.cosine_similarity(reference.double(), embeddings.double(), dim=1).mean())
