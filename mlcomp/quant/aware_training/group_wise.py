r"""Group-wise weights and token-wise inputs: linear layers that are trained as ZeroQuant quantizes them.

Notation: WbAc means b bits for weights and c for inputs; a group of g weights of a row has a step of its own, and so
has each token's input vector, found when it comes. The weight stays in floating point while it is trained, and its
grids follow it: $\hat W = \mathrm{round}(W)$ on the grids of W as it is now, $\partial\hat W/\partial W = 1$.
Source: Yao et al. 2022, arXiv:2206.01861, section 4.1.   Syllabus: 4.07
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mlcomp.checks import check_group_size, check_whole
from mlcomp.context import isolated
from mlcomp.layerwise.attention import split_attention
from mlcomp.layerwise.fit import choose_layers, copy_model
from mlcomp.layerwise.matrix import Layer, TurnedLinear, find_layer, set_weight_matrix, weight_from_rows, weight_rows
from mlcomp.layerwise.weights import Replacement, replace_module
from mlcomp.quant.aware_training.ste import straight_through
from mlcomp.quant.grid import fit_grid
from mlcomp.quant.quantized import Quantized
from mlcomp.quant.rtn import rtn


@dataclass(frozen=True)
class GroupWise:
    """A quantized model, and the codes of each of its quantized layers by name."""

    model: nn.Module
    layers: dict[str, Quantized]


class TokenWiseLayer(Replacement):
    """A linear layer that rounds each input vector to a symmetric grid of its own.

    Attributes:
        input_bits: bits of the inputs' codes, or None: they are not rounded.
    """

    def __init__(self, layer: Layer, *, input_bits: int | None) -> None:
        """Take over ``layer``, and its mode."""
        super().__init__(layer)
        self.train(layer.training)
        self.input_bits = input_bits

    @property
    def weight(self) -> Tensor:
        """The layer's weight."""
        return self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for the rounded input; the gradient passes to ``x`` straight through."""
        if self.input_bits is not None:
            rows = x.detach().reshape(-1, x.shape[-1])
            rounded = fit_grid(rows, bits=self.input_bits, symmetric=True).round(rows)
            x = straight_through(x, rounded.reshape(x.shape).to(x.dtype))
        return functional_call(self.layer, {"weight": self.weight}, (x,))

    def extra_repr(self) -> str:
        """Name the bits."""
        return f"input_bits={self.input_bits}"


class GroupWiseLayer(TokenWiseLayer):
    """The layer while it is trained: its weight is kept in floating point, and quantized at each call.

    Attributes:
        weight_bits, group_size, symmetric: of the weight's grids, see :func:`mlcomp.quant.fit_grid`.
    """

    def __init__(
        self, layer: Layer, *, weight_bits: int, group_size: int | None, input_bits: int | None, symmetric: bool
    ) -> None:
        """Take over ``layer``, and its mode."""
        super().__init__(layer, input_bits=input_bits)
        self.weight_bits, self.group_size, self.symmetric = weight_bits, group_size, symmetric

    @property
    def quantized(self) -> Quantized:
        """The weight's codes and grids as they are now."""
        rows = weight_rows(self.layer).detach()
        return rtn(rows, bits=self.weight_bits, group_size=self.group_size, symmetric=self.symmetric)

    @property
    def weight(self) -> Tensor:
        """The quantized weight, in the layer's shape, differentiable by the weight behind it."""
        rows = weight_rows(self.layer)
        return weight_from_rows(self.layer, straight_through(rows, self.quantized.dequantize().to(rows.dtype)))

    def extra_repr(self) -> str:
        """Name the bits."""
        return f"weight_bits={self.weight_bits}, group_size={self.group_size}, input_bits={self.input_bits}"


@isolated
def prepare_group_wise(
    model: nn.Module,
    *,
    weight_bits: int,
    group_size: int | None = None,
    input_bits: int | None = 8,
    symmetric: bool = True,
    overrides: Mapping[str, int] | None = None,
    layers: Iterable[str] | None = None,
) -> nn.Module:
    """Return a copy of ``model`` whose linear layers compute with quantized weights and inputs.

    No data are needed: the grids of weights follow the weights, those of inputs the inputs.

    Args:
        model: not modified.
        weight_bits: 2 to 8.
        group_size: consecutive weights of a row that share a step; must divide each layer's inputs. None: the row.
        input_bits: 2 to 8, for each input vector a symmetric grid; None for floating point.
        symmetric: the weights' grids have no offset.
        overrides: name → bits of the weight of single layers. (The paper's W4/8A8 has 8 bits in the attention.)
        layers: names of linear layers. None: all whose weight is their own.
    Returns:
        the copy, each layer a :class:`GroupWiseLayer`, for :func:`mlcomp.distill.layer_by_layer`,
        :func:`mlcomp.distill.train_student` or any other training, and then :func:`finish_group_wise`.
    Raises:
        ValueError: bits or a group size outside what is allowed, an unknown layer, one that is not linear or whose
            weight cannot be exchanged, no linear layer.
    Guarantee: each weight is within step/2 of its grid, the largest of a group, too; a group of zeros gives zeros.
    """
    check_whole("weight_bits", weight_bits, 2, 8)
    if input_bits is not None:
        check_whole("input_bits", input_bits, 2, 8)
    chosen, overrides = _linear(model, layers), dict(overrides or {})
    for name, bits in overrides.items():
        check_whole(f"overrides[{name!r}]", bits, 2, 8)
    if unknown := [name for name in overrides if name not in chosen]:
        raise ValueError(f"overrides names {unknown[0]!r}, which is none of the layers {list(chosen)[:4]} …")
    for layer in chosen.values():
        check_group_size(group_size, weight_rows(layer).shape[1])
    result = split_attention(copy_model(model))
    for name in chosen:
        trained = GroupWiseLayer(
            find_layer(result, name),
            weight_bits=overrides.get(name, weight_bits),
            group_size=group_size,
            input_bits=input_bits,
            symmetric=symmetric,
        )
        result = replace_module(result, name, trained)
    return result


@isolated
@torch.no_grad()
def finish_group_wise(model: nn.Module) -> GroupWise:
    """Return the model with its weights rounded for good, and their codes.

    Args:
        model: from :func:`prepare_group_wise`, trained or not; not modified.
    Returns:
        a copy in eval mode: each :class:`GroupWiseLayer` is a :class:`TokenWiseLayer` with the decoded weight, or the
        plain layer where inputs are not rounded.
    Raises:
        ValueError: the model has no GroupWiseLayer.
    Guarantee: the same outputs as ``model.eval()``, bit for bit.
    """
    result = copy_model(model).eval()
    trained = {name: module for name, module in result.named_modules() if isinstance(module, GroupWiseLayer)}
    if not trained:
        raise ValueError("the model has no GroupWiseLayer: use prepare_group_wise first")
    codes = {name: module.quantized for name, module in trained.items()}
    for name, module in trained.items():
        set_weight_matrix(module.layer, codes[name].dequantize())
        bits = module.input_bits
        plain = module.layer if bits is None else TokenWiseLayer(module.layer, input_bits=bits)
        result = replace_module(result, name, plain)
    return GroupWise(result, codes)


def _linear(model: nn.Module, names: Iterable[str] | None) -> dict[str, Layer]:
    """Return the linear layers that were named, or all."""
    chosen, _ = choose_layers(model, names)
    kinds = nn.Linear, TurnedLinear
    linear: dict[str, Layer] = {name: layer for name, layer in chosen.items() if isinstance(layer, kinds)}
    others = [] if names is None else [name for name in chosen if name not in linear]
    if others or not linear:
        told = f"layer {others[0]!r} is none" if others else "the model has none"
        raise ValueError(f"group-wise quantization is for linear layers, and {told}")
    return linear
