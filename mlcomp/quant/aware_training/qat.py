r"""Quantization-aware training: a network whose layers see quantized weights and inputs while it is trained.

Notation: WbAc means b bits for weights and c for the inputs of linear and convolutional layers; s step,
$\hat v = s\,\mathrm{round}(\mathrm{clip}(v/s))$.
Source: Esser et al. 2020, arXiv:1902.08153 (LSQ; first and last layer at 8 bits); Jacob et al. 2018,
arXiv:1712.05877, section 3 (training with simulated quantization).   Syllabus: 1.09
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mlcomp.checks import check_choice
from mlcomp.context import isolated, isolated_run
from mlcomp.layerwise.attention import split_attention
from mlcomp.layerwise.fit import copy_model
from mlcomp.layerwise.matrix import Layer, find_layer, weight_from_rows, weight_rows
from mlcomp.layerwise.running import check_batches
from mlcomp.layerwise.weights import Replacement, replace_module
from mlcomp.quant.aware_training.lsq import lsq_quantize
from mlcomp.quant.aware_training.ste import straight_through
from mlcomp.quant.grid import Grid, fit_grid
from mlcomp.quant.post_training.fake_quantized import FakeQuantized
from mlcomp.quant.post_training.ptq import PTQResult, input_ranges, layer_bits, network_nbytes, ptq_row


class StepQuantizer(nn.Module):
    """A grid without an offset whose step is learned (LSQ) or fixed (straight-through).

    Attributes:
        initial: buffer, the step at the start.
        scale: the step in units of ``initial``: a parameter that starts at 1, or None where the step is fixed.
            Relative, because Adam moves every parameter by about the learning rate, whatever its size.
        low, high: the least and the largest code.
        clipped: no gradient to values that are clipped.
    """

    LEAST = 1e-3  # of the initial step: a learned step stays positive

    initial: Tensor

    def __init__(self, initial: Tensor, *, bits: int, signed: bool, learned: bool, clipped: bool) -> None:
        """See the class; codes are −2^(b−1) … 2^(b−1) − 1 if ``signed``, else 0 … 2^b − 1."""
        super().__init__()
        self.bits, self.signed, self.clipped = bits, signed, clipped
        self.low = -(2 ** (bits - 1)) if signed else 0
        self.high = self.low + 2**bits - 1
        if self.high < 1:
            raise ValueError("one signed bit has the codes −1 and 0 only: use at least 2 bits, or unsigned values")
        self.register_buffer("initial", initial.clone())
        self.scale = nn.Parameter(torch.ones_like(initial)) if learned else None

    @property
    def step(self) -> Tensor:
        """The step now, differentiable."""
        return self.initial if self.scale is None else self.initial * self.scale.clamp(min=self.LEAST)

    def forward(self, v: Tensor, count: int | None = None) -> Tensor:
        """Return the nearest values of the grid; ``count`` as in :func:`lsq_quantize`."""
        if self.clipped or self.scale is not None:
            return lsq_quantize(v, self.step.to(v.dtype), low=self.low, high=self.high, count=count)
        step = self.step.to(v.dtype)
        return straight_through(v, torch.round(v / step).clamp(self.low, self.high) * step)

    @isolated
    def grid(self) -> Grid:
        """Return the grid as it is now."""
        step = self.step.detach().clone().reshape(-1, 1)
        return Grid(step, torch.full_like(step, -self.low), self.bits, self.signed)


class QATLayer(Replacement):
    """A layer that keeps its weight in floating point and computes with the quantized weight and input."""

    def __init__(self, layer: Layer, weight: StepQuantizer, inputs: StepQuantizer | None) -> None:
        """Take over ``layer``; ``weight`` quantizes its weight as a matrix (out, …), ``inputs`` its input."""
        super().__init__(layer)
        self.weight_quantizer, self.input_quantizer = weight, inputs

    @property
    def weight(self) -> Tensor:
        """The quantized weight, in the layer's shape, differentiable."""
        return weight_from_rows(self.layer, self.weight_quantizer(weight_rows(self.layer)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        if self.input_quantizer is not None:
            x = self.input_quantizer(x, count=x[0].numel())
        return functional_call(self.layer, {"weight": self.weight}, (x,))


@isolated_run
def prepare_qat(
    model: nn.Module,
    batches: Iterable,
    *,
    weight_bits: int,
    input_bits: int | None,
    overrides: Mapping[str, tuple[int, int | None]] | None = None,
    layers: Iterable[str] | None = None,
    method: str = "lsq",
) -> nn.Module:
    """Return a copy of ``model`` to be trained, by :func:`mlcomp.train.train` or anything else.

    Each linear and convolutional layer becomes a :class:`QATLayer`. It starts from the grids of least squared error:
    weights by output channel, inputs by tensor (unsigned codes if no calibration input is negative).

    Args:
        model: not modified. BatchNorm stays: it can be folded later without changing a code (see deviations).
        batches: calibration batches as for :func:`mlcomp.quant.ptq`; read once.
        weight_bits: 2 to 8. input_bits: 1 to 8 (2 to 8 where inputs can be negative), or None for floating point.
        overrides: name → (weight_bits, input_bits). Papers usually keep the first and the last layer at 8 bits.
        layers: names of the layers to quantize. None: all; one whose weight cannot be exchanged (tied, computed,
            packed) is an error, and is left out by naming the others.
        method: "lsq" learns the steps; "ste" keeps them and passes the gradient of the quantized weights straight to
            the weights, everywhere (to inputs only where they are not clipped).
    Returns:
        the copy; its steps, if learned, are among its parameters.
    Raises:
        ValueError: bits or names as in :func:`mlcomp.quant.ptq`, one signed bit, unknown method, no sample.
    Deviations: the paper has one step a layer for the weights and trains with SGD; here each output channel has its
        own, as in ``ptq``, and steps are learned relative to their start, which suits Adam. The gradient is the
        paper's, gradient scale included, but Adam divides by its magnitude, so the scale matters little.
        With one grid a channel, BatchNorm's factor of a channel goes into its step.
    """
    check_choice("method", method, ("lsq", "ste"))
    check_batches(batches)
    plan, skipped = layer_bits(model, weight_bits, input_bits, overrides, layers)
    if skipped:
        told = "; ".join(f"layer {name!r}: {reason}" for name, reason in skipped.items())
        raise ValueError(f"{told}. Leave it out by naming the others: layers={list(plan)[:3]} …")
    ranges = input_ranges(model, batches, {n: b for n, (_, b) in plan.items() if b is not None}, "mse")
    result = split_attention(copy_model(model))
    for name, (bits_w, bits_x) in plan.items():
        layer = find_layer(result, name)
        grid = fit_grid(weight_rows(layer).detach(), bits=bits_w, symmetric=True, clip="mse")
        learned = method == "lsq"
        weight = StepQuantizer(grid.step, bits=bits_w, signed=True, learned=learned, clipped=learned)
        inputs = None
        if bits_x is not None:
            span = torch.tensor([ranges[name]], dtype=torch.float32, device=layer.weight.device)
            signed = bool(span.min() < 0)
            step = fit_grid(span, bits=bits_x, symmetric=signed).step.reshape(())
            inputs = StepQuantizer(step, bits=bits_x, signed=signed, learned=learned, clipped=True)
        result = replace_module(result, name, QATLayer(layer, weight, inputs))
    return result


@isolated
@torch.no_grad()
def finish_qat(model: nn.Module) -> PTQResult:
    """Return the trained model with integer codes in place of floating-point weights, and its honest size.

    Args:
        model: from :func:`prepare_qat`; not modified.
    Returns:
        like :func:`mlcomp.quant.ptq`, in eval mode: each :class:`QATLayer` is a :class:`FakeQuantized`.
    Raises:
        ValueError: the model has no QATLayer.
    Guarantee: the same outputs as ``model.eval()``, up to float rounding.
    """
    result, original = copy_model(model).eval(), copy_model(model)
    layers = {name: module for name, module in result.named_modules() if isinstance(module, QATLayer)}
    if not layers:
        raise ValueError("the model has no QATLayer: use prepare_qat first")
    rows = []
    for name, trained in layers.items():
        grid = trained.weight_quantizer.grid()
        weight = grid.quantized(grid.encode(weight_rows(trained.layer).detach()))
        quantizer = trained.input_quantizer
        inputs = None if quantizer is None else quantizer.grid()
        span = None
        if quantizer is not None:
            span = float(quantizer.low * quantizer.step), float(quantizer.high * quantizer.step)
        layer = FakeQuantized(trained.layer, weight, inputs)
        rows.append(ptq_row(name, trained.layer, layer, weight, span))
        original = replace_module(original, name, trained.layer)
        result = replace_module(result, name, layer)
    return PTQResult(result, tuple(rows), network_nbytes(original), network_nbytes(result))
