r"""PV-tuning: learn the codes of a quantized network, too, by gradient steps in small subspaces.

Notation: φ the loss, y the decoded weights; P(y) which weights share a code, V(y) the values that codes stand for.
P step: φ over the values, codes fixed. V step: the set S of the τ groups with the largest gradient, then the codes in
S whose values are nearest to $y_S - \tfrac{1}{L_S} \nabla_S \phi(y)$, with $L_S$ the curvature of φ within S.
Source: Malinovskii et al. 2024, arXiv:2405.14852, Algorithm 2 and section 3.   Syllabus: 1.15
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mlcomp.checks import check_choice, check_dtype, check_interval, check_whole
from mlcomp.context import isolated_run
from mlcomp.formats.additive_codebook import AdditiveCodes
from mlcomp.quant.additive.additive_student import AdditiveBlock, AdditiveStudent, Loss
from mlcomp.quant.additive.aqlm import DTYPES
from mlcomp.quant.additive.continuous_tuning import AdamSteps, check_rounds, tune_in_rounds
from mlcomp.quant.additive.straight_through_tuning import StraightThroughSteps
from mlcomp.quant.additive.v_step import METRICS, VSteps

METHODS = ("pv", "continuous", "ste")


@isolated_run
def pv_tuning(
    block: nn.Module,
    inputs: Tensor,
    layers: Mapping[str, AdditiveCodes],
    *,
    targets: Tensor | None = None,
    loss: Loss | None = None,
    method: str = "pv",
    rounds: int = 10,
    steps: int = 20,
    v_steps: int = 4,
    v_batch_size: int | None = None,
    share: float = 0.003,
    metric: str = "inputs",
    tolerance: float | None = None,
    learning_rate: float = 1e-2,
    batch_size: int = 64,
    beam: int = 4,
    train_rest: bool = True,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> AdditiveBlock:
    r"""Tune codebooks, scales, norms and biases by Adam, and the codes by the rule of ``method``.

    Args:
        block: a module that maps one batch of inputs to one tensor; used in evaluation mode; not modified.
        inputs: (samples, …), samples first.
        layers: the codes to begin from, by the name of their Linear or Conv2d ("" for the block itself).
        targets: (samples, …) of the loss; None: the block's own outputs.
        loss: (output, target) → number, a mean over samples; None: ‖z − ẑ‖²/‖z‖².
        method: "pv"; "continuous", the P steps only (AQLM's block fine-tuning); "ste", the straight-through
            estimator: a latent weight takes the gradient of the decoded one, and after each step every code is that
            of the value nearest to it.
        rounds, steps, v_steps: so many rounds, each of so many Adam steps and, for "pv", so many V steps.
        share: τ over the number of groups, to begin with. A V step that does not lower the loss is tried again
            with a quarter of its groups; the next one gets twice as many if more than half of them changed, else
            half, and as many as this one began with if nothing lowered the loss.
        metric: of the V step, "identity": gradient and distance as they are, as the paper has it; "inputs": the
            gradient of a group divided, and its distance measured, by the group's block of the layer's $2XX^\top$
            (of a grouped convolution, their mean); also tried are the τ groups that promise the largest fall once
            their codes are rounded.
        v_batch_size: random inputs on which a V step is computed and tested; None: all.
        tolerance: stop after a round that lowered the loss by less than this share; None: make all rounds.
        learning_rate: of Adam, times the root mean square of each tensor.
        batch_size: of the batches for Adam; also so many samples at a time where the loss of more is taken.
        seed: of the order of all batches.
        beam: of the search for the nearest sum of entries; with one codebook the search is exact.
        train_rest: tune the parameters that have no codes, too.
        dtype: of the stored codebooks and scales.
    Returns:
        The tuned copy, the codes of each layer, and the loss after each round.
    Raises:
        ValueError: malformed inputs or targets, a layer that is not there or does not fit its codes, bad options.
    Guarantee: of all rounds the best is returned, so that the loss on ``inputs`` does not rise (before the rounding
        to ``dtype``). A V step alone never raises the loss of its own batch. The same seed gives the same result; the
        global generator is not touched.
    Cost: an Adam step is a forward and a backward pass of a batch; a V step two or more backward passes of
        its inputs and four or more forward passes; "ste" searches all codes after each step.
    Deviations: $L_S$ is the curvature along the gradient, by a difference of two gradients, not an upper bound; a
        test of the loss stands in for the bound. Steps of 1, 2 and 4 times 1/L are tried, since most of a short
        step is lost in the rounding to codes. At 1/L the step is never longer than the weights in S.
    """
    check_rounds(rounds=rounds, steps=steps, learning_rate=learning_rate, tolerance=tolerance)
    check_choice("method", method, METHODS)
    check_whole("v_steps", v_steps, 1)
    if v_batch_size is not None:
        check_whole("v_batch_size", v_batch_size, 1)
    check_interval("share", share, "(0, 1]")
    check_choice("metric", metric, METRICS)
    check_whole("beam", beam, 1)
    check_dtype("dtype", dtype, DTYPES)
    student = AdditiveStudent(
        block, inputs, layers, targets=targets, loss=loss, batch_size=batch_size, train_rest=train_rest, seed=seed
    )
    parts: list[Callable[[], None]] = []
    if method == "ste":
        parts += [StraightThroughSteps(student, steps=steps, learning_rate=learning_rate, beam=beam)]
    else:
        parts += [AdamSteps(student, steps=steps, learning_rate=learning_rate)]
    if method == "pv":
        parts += [VSteps(student, steps=v_steps, batch_size=v_batch_size, share=share, metric=metric, beam=beam)]
    history = tune_in_rounds(student, parts, rounds=rounds, tolerance=tolerance)
    return student.result(dtype, history)
