r"""BRECQ: learn the rounding of all layers of a block together, for the sake of the block's output.

Notation: z the block's output, $\hat z$ that of the quantized block, g the gradient of the loss with respect to z;
$\min_V E\left[\sum_i g_i^2 (z_i - \hat z_i)^2\right] + \lambda \sum (1 - |2h(V) - 1|^\beta)$, with h(V) as in
AdaRound.
$g_i^2$ is the diagonal of the Fisher information of z, which stands for its Hessian.
Source: Li et al. 2021, arXiv:2102.05426, eq. (10) and algorithm 1.   Syllabus: 2.09
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from mlcomp.checks import check_bits, check_finite, check_whole
from mlcomp.context import isolated_run
from mlcomp.layerwise.attention import split_attention
from mlcomp.layerwise.fit import choose_layers, copy_model
from mlcomp.layerwise.matrix import find_layer, find_layers, set_weight_matrix, weight_from_rows, weight_rows
from mlcomp.quant.post_training.adaround import (
    annealed_beta,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
    rounding_penalty,
)
from mlcomp.quant.quantized import Quantized
from mlcomp.quant.rtn import rtn
from mlcomp.train.loop import random_batches


@dataclass(frozen=True)
class QuantizedBlock:
    """A copy of the block, in evaluation mode, with dequantized weights, and the codes of each layer by name.

    ``layers[name]`` belongs to the weight as a matrix (out, inp), a convolution's flattened from its second
    dimension on.
    """

    block: nn.Module
    layers: dict[str, Quantized]


@isolated_run
def brecq(
    block: nn.Module,
    inputs: Float[Tensor, "samples ..."],
    *,
    bits: int,
    targets: Float[Tensor, "samples ..."] | None = None,
    gradients: Float[Tensor, "samples ..."] | None = None,
    symmetric: bool = False,
    clip: str = "mse",
    steps: int = 500,
    batch_size: int = 64,
    learning_rate: float = 0.05,
    penalty: float = 2.0,
    seed: int = 0,
) -> QuantizedBlock:
    r"""Quantize every linear and convolutional layer of a block so that the block's output changes least.

    Args:
        block: any module that maps one batch of inputs to one tensor; used in evaluation mode; not modified.
        inputs: (samples, …) calibration inputs of the block, samples first.
        bits, symmetric, clip: the grid of each row of each layer, as in :func:`mlcomp.quant.rtn`; not learned.
        targets: (samples, …) the outputs to reach; None: the block's own on ``inputs``. With inputs from an already
            quantized network, pass the outputs of the original one.
        gradients: like the targets, ∂loss/∂z of each sample, for the Fisher weighting; None: all outputs weigh alike.
        steps: Adam steps, each on ``batch_size`` samples drawn from ``seed``. learning_rate: of V.
        penalty: λ, against an error of 1/12 per weight for rounding to nearest (see deviations).
    Returns:
        The quantized copy and the codes of each layer.
    Raises:
        ValueError: no layer to quantize, one whose weight cannot be exchanged (tied, computed, packed), bits outside
            1..8, NaN or inf, targets or gradients that do not match, steps or batch_size below 1.
    Guarantee: every code is a neighbour (floor or ceiling, clipped) of its weight on the grid of ``rtn``. What is
        not a layer's weight stays. The same seed gives the same codes; the global generator is
        not touched.
    Deviations: the error is divided by that of rounding to nearest and multiplied by (number of weights)/12, the
        mean square of a rounding error in steps, so λ means the same for every block and unit. Activations are
        not quantized here.
    """
    _check(inputs, bits, steps, batch_size)
    choose_layers(block, find_layers(block))  # raises for a layer whose weight cannot be exchanged
    student = split_attention(copy_model(block).eval().requires_grad_(False))
    layers = {
        name: _layer(weight_rows(module).detach(), bits, symmetric, clip)
        for name, module in find_layers(student).items()
    }
    with torch.no_grad():
        if targets is None:
            targets = torch.cat([student(x) for x in inputs.split(batch_size)])
        importance = _importance(inputs, targets, gradients)
        codes = {name: layer.nearest.codes.to(layer.position.dtype) for name, layer in layers.items()}
        data = list(zip(*(t.split(batch_size) for t in (inputs, targets, importance)), strict=True))
        error = sum(float(_error(student, layers, codes, *batch)) for batch in data)
    if error > 0:
        weights = sum(layer.position.numel() for layer in layers.values())
        scale = weights * len(inputs) / (12 * error)
        indices = itertools.islice(random_batches(len(inputs), batch_size, seed=seed), steps)
        draws = ([t[i.to(t.device)] for t in (inputs, targets, importance)] for i in indices)
        with torch.enable_grad():  # whatever the caller has set
            codes = _learn(student, layers, draws, scale, steps, learning_rate, penalty)
    quantized = {name: replace(layer.nearest, codes=codes[name].to(torch.uint8)) for name, layer in layers.items()}
    result = copy_model(block).eval()
    for name, q in quantized.items():
        set_weight_matrix(find_layer(result, name), q.dequantize())
    return QuantizedBlock(result, quantized)


@dataclass(frozen=True)
class _Layer:
    """One weight as a matrix: its place between the codes, and rounding to nearest."""

    position: Tensor  # w/s + z
    nearest: Quantized

    @property
    def low(self) -> Tensor:
        return torch.floor(self.position)

    @property
    def movable(self) -> Tensor:
        return (self.low >= 0) & (self.low < 2**self.nearest.bits - 1)

    def codes(self, up: Tensor) -> Tensor:
        """Codes, soft or hard, for a share ``up`` of rounding up."""
        return torch.where(self.movable, self.low + up, self.nearest.codes.to(up.dtype))


def _layer(weight: Tensor, bits: int, symmetric: bool, clip: str) -> _Layer:
    q = rtn(weight, bits=bits, symmetric=symmetric, clip=clip)
    return _Layer(weight.to(q.step.dtype) / q.step + q.zero, q)


def _check(inputs: Tensor, bits: int, steps: int, batch_size: int) -> None:
    check_bits(bits)
    if inputs.ndim < 2 or inputs.numel() == 0:
        raise ValueError(f"inputs must be (samples, …) with at least one sample, got {tuple(inputs.shape)}")
    check_finite("inputs", inputs)
    check_whole("steps", steps, 1)
    check_whole("batch_size", batch_size, 1)


def _importance(inputs: Tensor, targets: Tensor, gradients: Tensor | None) -> Tensor:
    """Return g², in units of its mean, after a check of everything that has to match."""
    if len(targets) != len(inputs):
        raise ValueError(f"targets must have one entry for each of {len(inputs)} samples, got {len(targets)}")
    check_finite("targets", targets)
    if gradients is None:
        return torch.ones((), dtype=targets.dtype, device=targets.device).expand_as(targets)
    if gradients.shape != targets.shape:
        raise ValueError(f"gradients must be {tuple(targets.shape)} like the targets, got {tuple(gradients.shape)}")
    check_finite("gradients", gradients)
    largest = gradients.abs().max()
    if largest == 0:
        raise ValueError("gradients are zero everywhere, so no output would matter: pass None to weigh all alike")
    square = (gradients / largest).square()
    return square / square.mean()


def _error(student: nn.Module, layers: dict, codes: dict, x: Tensor, target: Tensor, importance: Tensor) -> Tensor:
    """Sum of g²(z − ẑ)² over a batch, with the weights that ``codes`` stand for."""
    parameters = {}
    for name, layer in layers.items():
        module = find_layer(student, name)
        weight = (codes[name] - layer.nearest.zero) * layer.nearest.step
        parameters[f"{name}.weight" if name else "weight"] = weight_from_rows(module, weight).to(module.weight.dtype)
    output = functional_call(student, parameters, (x,))
    if output.shape != target.shape:
        raise ValueError(f"targets must be {tuple(output.shape)} like the block's output, got {tuple(target.shape)}")
    return (importance * (output - target).square()).sum()


def _learn(
    student: nn.Module, layers: dict, draws: Iterator, scale: float, steps: int, learning_rate: float, penalty: float
) -> dict[str, Tensor]:
    """Return hard codes; V is float64 for the reason given in ``adaround``."""
    v = {
        name: inverse_rectified_sigmoid((layer.position - layer.low).double()).requires_grad_()
        for name, layer in layers.items()
    }
    optimizer = torch.optim.Adam(v.values(), lr=learning_rate)
    for i, (x, target, importance) in enumerate(draws):
        up = {name: rectified_sigmoid(v[name]) for name in layers}
        codes = {name: layer.codes(up[name]) for name, layer in layers.items()}
        loss = scale / len(x) * _error(student, layers, codes, x, target, importance)
        beta = annealed_beta(i / steps)
        if beta is not None:
            loss = loss + penalty * sum(rounding_penalty(up[n][layers[n].movable], beta).sum() for n in layers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: layer.codes((v[name] > 0).to(layer.position.dtype)) for name, layer in layers.items()}
