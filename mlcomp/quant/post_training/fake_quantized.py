r"""A linear or convolutional layer that computes in floating point with values that lie on integer grids.

Notation: $\hat y = \hat W \hat x + c$ with $\hat x = s_x\,(q_x - z_x)$ for the whole tensor and
$\hat W_{nk} = s_n\,(q_{nk} - z_n)$ for each output channel n. The name says what it is: the values are those of
integer arithmetic, the arithmetic is not.
Source: Jacob et al. 2018, arXiv:1712.05877, sections 2.2 and 3.   Syllabus: 1.08
"""

import copy

import torch
from torch import Tensor, nn

from mlcomp.checks import check_finite, check_tensor
from mlcomp.context import isolated
from mlcomp.formats.packing import packed_nbytes
from mlcomp.layerwise.matrix import KINDS, is_layer, set_weight_matrix, weight_rows
from mlcomp.layerwise.weights import Replacement
from mlcomp.quant.grid import Grid
from mlcomp.quant.quantized import Quantized


class FakeQuantized(Replacement):
    """A copy of a layer with quantized weights, which rounds its input first.

    Attributes:
        layer: the linear or convolutional layer with the dequantized weight; its bias stays in floating point.
        codes, step, zero: buffers, the weight's :class:`Quantized` as a matrix (out, inp/groups·taps).
        input_step, input_zero: buffers (1, 1), the grid of the input; None where the input is not rounded.
        input_bits: bits of the input's codes, or None.
    """

    codes: Tensor
    step: Tensor
    zero: Tensor
    input_step: Tensor
    input_zero: Tensor

    def __init__(self, layer: nn.Module, weight: Quantized, inputs: Grid | None) -> None:
        """Copy ``layer``; ``weight`` replaces its weight, and ``inputs`` is the grid of its input (None: float)."""
        if not is_layer(layer):
            raise ValueError(f"only {KINDS} can be quantized, got {type(layer).__name__}")
        shape = tuple(weight_rows(layer).shape)
        if tuple(weight.codes.shape) != shape:
            raise ValueError(
                f"codes must be {shape} like the layer's weight as a matrix, got {tuple(weight.codes.shape)}"
            )
        super().__init__(copy.deepcopy(layer).requires_grad_(False))
        set_weight_matrix(self.layer, weight.dequantize())
        self.weight_bits, self.symmetric = weight.bits, weight.symmetric
        self.input_bits = None if inputs is None else inputs.bits
        for name, value in (("codes", weight.codes), ("step", weight.step), ("zero", weight.zero)):
            self.register_buffer(name, value)
        device = layer.weight.device
        self.register_buffer("input_step", None if inputs is None else inputs.step.to(device))
        self.register_buffer("input_zero", None if inputs is None else inputs.zero.to(device))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for the rounded input."""
        return self.layer(self.round_input(x))

    def round_input(self, x: Tensor) -> Tensor:
        """Return the nearest values of the input's grid, in the dtype of ``x``; ``x`` itself where it has none."""
        if self.input_bits is None:
            return x
        return ((self.input_codes(x) - self.input_zero[0, 0]) * self.input_step[0, 0]).to(x.dtype)

    @isolated
    def input_codes(self, x: Tensor) -> Tensor:
        """Return the input's codes, whole numbers 0 … 2^bits − 1 in floating point."""
        if self.input_bits is None:
            raise ValueError("this layer does not round its input, so the input has no codes")
        q = torch.round(x / self.input_step[0, 0]) + self.input_zero[0, 0]
        return q.clamp(0, 2**self.input_bits - 1)

    @property
    def weight(self) -> Tensor:
        """The dequantized weight, in the layer's shape."""
        return self.layer.weight

    @property
    def quantized(self) -> Quantized:
        """The weight's codes and grids."""
        return Quantized(self.codes, self.step, self.zero, self.weight_bits, self.symmetric)

    @property
    def nbytes(self) -> int:
        """Bytes as packed: the weight, the bias in its dtype, step and zero code of the input."""
        size = self.quantized.nbytes
        if self.layer.bias is not None:
            size += self.layer.bias.nbytes
        if self.input_bits is not None:
            size += self.input_step.nbytes + packed_nbytes(1, self.input_bits)
        return size

    def extra_repr(self) -> str:
        """Name the bits."""
        return f"weight_bits={self.weight_bits}, input_bits={self.input_bits}"


@isolated
@torch.no_grad()
def integer_linear(module: FakeQuantized, x: Tensor) -> Tensor:
    r"""Return ``module(x)``, computed the way integer hardware does.

    With codes shifted into int8, $\hat y_{tn} = s_x s_n \sum_k (q_{tk} - z_x)(q_{nk} - z_n) + c_n$, and the sum is
    $\sum q_{tk} q_{nk} - z_n \sum_k q_{tk} - z_x \sum_k q_{nk} + K z_x z_n$: one product of int8 matrices with an
    int32 accumulator, one sum for each row of either, and a constant (eq. 7 of the source).

    Args:
        module: of an ``nn.Linear``, with a quantized input and one grid for each row of the weight.
        x: (…, inp).
    Returns:
        (…, out) in float32 (float64 for float64 steps).
    Raises:
        ValueError: another layer, no grid of the input, several groups a row, or more than 33 025 inputs, whose sums
            can exceed 32 bits.
    Guarantee: equal to ``module(x)`` up to the rounding of the latter's sums: all of ours are exact.
    """
    check_tensor("x", x)
    inp = x.shape[-1]
    if not isinstance(module.layer, nn.Linear) or module.input_bits is None or module.step.shape[1] != 1:
        raise ValueError("integer_linear needs an nn.Linear with a quantized input and one grid a row of the weight")
    if inp * 255**2 >= 2**31:
        raise ValueError(f"sums of {inp} products can exceed 32 bits; at most {(2**31 - 1) // 255**2} inputs")
    check_finite("x", x)
    half_x, half_w = 2 ** (module.input_bits - 1), 2 ** (module.weight_bits - 1)
    q_x = (module.input_codes(x) - half_x).to(torch.int8)
    q_w = (module.codes.to(torch.int16) - half_w).to(torch.int8)
    z_x = (module.input_zero - half_x).to(torch.int32)
    z_w = (module.zero - half_w).to(torch.int32).reshape(1, -1)
    # float64 holds each sum exactly, and its product is much faster on a CPU than that of whole numbers.
    total = (q_x.double() @ q_w.double().T).to(torch.int32)
    total -= z_w * q_x.sum(-1, keepdim=True, dtype=torch.int32)
    total -= z_x * q_w.sum(-1, dtype=torch.int32)
    total += inp * z_x * z_w
    y = total.to(module.step.dtype) * (module.input_step * module.step.reshape(1, -1))
    return y if module.layer.bias is None else y + module.layer.bias
