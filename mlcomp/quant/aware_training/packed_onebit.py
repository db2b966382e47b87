r"""A trained OneBit layer as it is used: a bit a weight and two vectors in 16 bits, multiplied without decoding.

Notation: as in ``onebit_layer``; $y = \mathrm{LayerNorm}(g \odot S(h \odot x))$ with S packed.
Source: Xu et al. 2024, arXiv:2402.11295, section 3.2, eq. (3).   Syllabus: 5.04
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mlcomp.checks import check_dtype, narrowed
from mlcomp.context import isolated
from mlcomp.formats.onebit_matmul import onebit_matmul
from mlcomp.formats.xnor_matmul import PackedSigns, pack_signs
from mlcomp.layerwise.fit import copy_model
from mlcomp.layerwise.weights import replace_module
from mlcomp.quant.aware_training.onebit import DTYPES, OneBit
from mlcomp.quant.aware_training.onebit_layer import OneBitLinear, finished

Product = Callable[[Tensor, PackedSigns, Tensor, Tensor], Tensor]


class PackedOneBit(nn.Module):
    """A linear layer that multiplies by packed signs.

    Attributes:
        signs: (out, ⌈inp/8⌉) uint8, as in :class:`mlcomp.formats.PackedSigns`. rows: g. columns: h. All three are
            buffers: nothing but the bias can be trained, and gradients reach the inputs where ``product`` has any.
    """

    signs: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, layer: OneBitLinear, *, dtype: torch.dtype, product: Product) -> None:
        """Pack ``layer``, which is not modified."""
        super().__init__()
        self.register_buffer("signs", pack_signs(layer.weight.detach()).packed)
        self.register_buffer("rows", narrowed(layer.rows.detach(), dtype).clone())
        self.register_buffer("columns", narrowed(layer.columns.detach(), dtype).clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        self.norm, self.product = layer.norm, product

    def forward(self, x: Float[Tensor, "... inp"]) -> Float[Tensor, "... out"]:
        """Return LayerNorm(rows ⊙ S(columns ⊙ x)) + bias, in the dtype of x."""
        packed = PackedSigns(self.signs, len(self.columns))
        y = self.product(x.reshape(-1, x.shape[-1]), packed, self.rows, self.columns)
        return finished(y.reshape(*x.shape[:-1], len(self.rows)), self.norm, self.bias)

    def extra_repr(self) -> str:
        """Name the sizes."""
        return f"in_features={len(self.columns)}, out_features={len(self.rows)}, norm={self.norm}"


@dataclass(frozen=True)
class OneBitModel:
    """A model on packed layers, and the stored form of each of them by name."""

    model: nn.Module
    layers: dict[str, OneBit]


@isolated
@torch.no_grad()
def finish_onebit(
    model: nn.Module, *, dtype: torch.dtype = torch.float16, product: Product = onebit_matmul
) -> OneBitModel:
    """Pack the layers of a trained model.

    Args:
        model: from :func:`prepare_onebit`, trained or not; not modified.
        dtype: that the vectors are stored in: float16, bfloat16 or float32.
        product: what multiplies: :func:`mlcomp.formats.onebit_matmul`, or the kernel of that name on a GPU.
    Returns:
        a copy in eval mode: each :class:`OneBitLinear` is a :class:`PackedOneBit`. Its state dict is what a file has
        to hold; that of another model of the same form takes it up.
    Raises:
        ValueError: the model has no OneBitLinear, or a vector too large for ``dtype``. TypeError: another dtype.
    Guarantee: the outputs of ``model.eval()`` whose vectors were rounded to ``dtype``, up to the order of summation.
    """
    check_dtype("dtype", dtype, DTYPES)
    result = copy_model(model).eval()
    trained = {name: module for name, module in result.named_modules() if isinstance(module, OneBitLinear)}
    if not trained:
        raise ValueError("the model has no OneBitLinear: use prepare_onebit first")
    layers = {}
    for name, module in trained.items():
        packed = PackedOneBit(module, dtype=dtype, product=product)
        layers[name] = OneBit((module.weight >= 0).to(torch.uint8), packed.rows, packed.columns)
        result = replace_module(result, name, packed.eval())
    return OneBitModel(result, layers)
