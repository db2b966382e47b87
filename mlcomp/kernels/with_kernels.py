"""Packed layers that multiply by a Triton kernel: a model's layers exchanged for those that a kernel can serve.

4-bit uniform grids with consecutive groups go to :mod:`mlcomp.kernels.w4a16_matmul`, doubly quantized codes to
:mod:`mlcomp.kernels.nf4_matmul`, additive codes of 256 entries to :mod:`mlcomp.kernels.additive_matvec` (one token)
and :mod:`mlcomp.kernels.additive_decode` (more).
Source: the papers of those kernels.   Syllabus: 1.03, 1.13, 4.08
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlcomp.context import isolated_run
from mlcomp.formats.stored import restore, store
from mlcomp.kernels.additive_decode import additive_decode, check_operand
from mlcomp.kernels.additive_matvec import additive_matvec
from mlcomp.kernels.nf4_matmul import DTYPES as NF4_DTYPES
from mlcomp.kernels.nf4_matmul import nf4_matmul
from mlcomp.kernels.w4a16_matmul import DTYPES, w4a16_matmul
from mlcomp.layerwise.fit import copy_model
from mlcomp.layerwise.packed_linear import PackedLinear
from mlcomp.layerwise.weights import replace_module
from mlcomp.quant.scalar.nf4_matmul import PackedNF4
from mlcomp.quant.w4a16 import pack_w4


def _check_activations(packed: PackedLinear, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise unless the kernel multiplies by activations of the layer's dtype."""
    if packed._like.dtype not in dtypes:
        raise ValueError(
            f"the kernel multiplies float16 or bfloat16, and the layer has {packed._like.dtype}: model.half() first"
        )


class W4Linear(PackedLinear):
    """A packed linear layer of 4-bit codes, in the layout of the kernel; steps are rounded to float16.

    Args:
        packed: with 4-bit codes on uniform grids, and float16 or bfloat16 activations.
    Raises:
        ValueError: the kernel does not take its grid or its dtype.
    """

    def __init__(self, packed: PackedLinear) -> None:
        (part,) = packed.parts
        if part.kind != "quantized":
            raise ValueError(f"no kernel multiplies by a weight of kind {part.kind!r}")
        _check_activations(packed, DTYPES)
        super().__init__(packed.layer, (store(pack_w4(restore(part))),))
        self._like = packed._like

    def forward(self, x: Tensor) -> Tensor:
        """Return x Ŵᵀ + b in the dtype of x."""
        weight = restore(self.parts[0])
        flat = x.reshape(-1, x.shape[-1])
        y = w4a16_matmul(flat, weight) if len(flat) else x.new_empty(0, len(weight.words))
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], y.shape[-1])


class NF4Linear(PackedLinear):
    """A packed linear layer of doubly quantized codes, which are stored as the kernel reads them.

    Args:
        packed: with rows of whole blocks of a multiple of 32, and float16 or bfloat16 activations.
    Raises:
        ValueError: the kernel does not take its blocks or its dtype.
    """

    def __init__(self, packed: PackedLinear) -> None:
        (part,) = packed.parts
        block, inp = part.facts["block_size"], part.shape[1]
        _check_activations(packed, NF4_DTYPES)
        if block % 32 or inp % block:
            raise ValueError(
                f"the kernel takes rows of whole blocks of 32 or a multiple, got {inp} in blocks of {block}"
            )
        super().__init__(packed.layer, packed.parts)
        self._like = packed._like
        self.mean = float(part.tensors["mean"])  # asked for once: it waits for the GPU

    def forward(self, x: Tensor) -> Tensor:
        """Return x Ŵᵀ + b in the dtype of x."""
        (part,) = self.parts
        held, facts = part.tensors, part.facts
        codes = held["codes"].view(part.shape[0], -1)
        rest = (facts["block_size"], facts["scale_block"], facts["data_type"], facts["scale_type"])
        weight = PackedNF4(codes, held["scale_codes"], held["largest"], self.mean, *rest)
        y = nf4_matmul(x.reshape(-1, x.shape[-1]), weight)
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], y.shape[-1])


class AdditiveLinear(PackedLinear):
    """A packed linear layer of additive codes: look-ups for one token, a decoded weight for more.

    Args:
        packed: with codebooks of 256 entries.
    Raises:
        ValueError: the kernel does not take them.
    """

    def __init__(self, packed: PackedLinear) -> None:
        check_operand(restore(packed.parts[0]))
        super().__init__(packed.layer, packed.parts)
        self._like = packed._like

    def forward(self, x: Tensor) -> Tensor:
        """Return x Ŵᵀ + b in the dtype of x."""
        weight = restore(self.parts[0])
        if x.numel() != weight.inp:
            return F.linear(x, additive_decode(weight).to(x.dtype), self.bias)
        y = additive_matvec(x.reshape(-1), weight)
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], y.shape[-1])


SERVED = {"additive": AdditiveLinear, "double_quantized": NF4Linear}


@isolated_run
def with_kernels(model: nn.Module) -> nn.Module:
    """Return a copy of a packed model in which layers multiply by a kernel where one takes their weight.

    Args:
        model: from ``mlcomp.layerwise.load(folder, packed=True)``, on the GPU; 4-bit layers in float16 or bfloat16.
            Not modified.
    Raises:
        ValueError: no layer that a kernel takes; the message says why of the first one.
    Guarantee: outputs are those of the packed layers to the accuracy of the kernels; other layers are as they were.
        Gradients do not pass a kernel: a layer of these is for inference.
    """
    result = copy_model(model)
    problem, count = "it has no packed linear layer", 0
    for name, module in list(result.named_modules()):
        if type(module) is not PackedLinear:
            continue
        kind: Any = SERVED.get(module.parts[0].kind, W4Linear)  # which says what it does not take
        try:
            result = replace_module(result, name, kind(module))
            count += 1
        except (ValueError, TypeError) as reason:
            problem = f"layer {name!r}: {reason}" if not count else problem
    if not count:
        raise ValueError(f"no layer of this model can call a kernel: {problem}")
    return result
