r"""OneBit's linear layer while it is trained: the signs of a latent weight, two vectors, and a norm without affine.

Notation: W latent weight (out, inp), kept for the optimizer; $S = \mathrm{sign}(W)$ with sign(0) = 1; g (out,),
h (inp,); $y = \mathrm{LayerNorm}(g \odot S(h \odot x))$. Backward $\partial S/\partial W = 1.001 - \tanh^2 W$, as in
the authors' code: that of $\tanh W + 0.001\,W$.
Source: Xu et al. 2024, arXiv:2402.11295, sections 3.2 (eq. 3) and 3.3 (the start).   Syllabus: 5.04
"""

from collections.abc import Iterable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mlcomp.checks import check_choice
from mlcomp.context import isolated
from mlcomp.layerwise.fit import choose_layers, copy_model
from mlcomp.layerwise.weights import replace_module
from mlcomp.quant.aware_training.onebit import onebit_decompose
from mlcomp.quant.aware_training.ste import straight_through

STARTS = ("weight", "signs")
SMALL, LEAK = 0.01, 0.001  # the authors' start of a latent weight, and the slope far from zero


class OneBitLinear(nn.Module):
    """A linear layer that computes with the signs of its weight, and a value for each row and each column.

    Attributes:
        weight: latent, (out, inp). rows: g. columns: h. bias: the layer's, added after the norm, or None.
        norm: whether each output vector is brought to mean 0 and variance 1.
    """

    def __init__(self, layer: nn.Linear, *, start: str = "weight", norm: bool = True) -> None:
        """Start from ``layer``, which is not modified: its signs, and the vectors of :func:`onebit_decompose`."""
        super().__init__()
        check_choice("start", start, STARTS)
        weight = layer.weight.detach()
        made = onebit_decompose(weight, dtype=torch.float32)
        small = torch.full_like(weight, SMALL)
        self.weight = nn.Parameter(weight.clone() if start == "weight" else torch.where(weight >= 0, small, -small))
        self.rows, self.columns = nn.Parameter(made.rows.to(weight)), nn.Parameter(made.columns.to(weight))
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        self.norm = norm
        self.train(layer.training)

    @property
    def signs(self) -> Float[Tensor, "out inp"]:
        """1 where the latent weight is not negative, else −1; differentiable by it as the module's docstring says."""
        ones = torch.ones_like(self.weight)
        signs = torch.where(self.weight.detach() >= 0, ones, -ones)
        return straight_through(self.weight.tanh() + LEAK * self.weight, signs)

    def forward(self, x: Float[Tensor, "... inp"]) -> Float[Tensor, "... out"]:
        """Return LayerNorm(rows ⊙ S(columns ⊙ x)) + bias."""
        return finished(F.linear(x * self.columns, self.signs) * self.rows, self.norm, self.bias)

    def extra_repr(self) -> str:
        """Name the sizes."""
        out, inp = self.weight.shape
        return f"in_features={inp}, out_features={out}, norm={self.norm}"


def finished(y: Tensor, norm: bool, bias: Tensor | None) -> Tensor:
    """Return the layer's output from its product: the norm, and the bias after it."""
    y = F.layer_norm(y, y.shape[-1:]) if norm else y
    return y if bias is None else y + bias


@isolated
def prepare_onebit(
    model: nn.Module, layers: Iterable[str] | None = None, *, start: str = "weight", norm: bool = True
) -> nn.Module:
    """Return a copy of ``model`` whose linear layers have one bit a weight, to be trained.

    Args:
        model: not modified.
        layers: names of linear layers; None: all whose weight is their own (a head tied to the embedding is not).
        start: of the latent weights: "weight", the layer's own, or "signs", its signs times 0.01, as in the authors'
            code. The layer computes the same at first, and a small weight changes its sign sooner.
        norm: normalize the output vectors.
    Returns:
        the copy, each layer an :class:`OneBitLinear`, for :func:`mlcomp.distill.onebit_student` or any other
        training, and then :func:`finish_onebit`.
    Raises:
        ValueError: an unknown layer, one that is no linear layer or whose weight cannot be exchanged, no linear
            layer, NaN or inf in a weight, an unknown start.
    Guarantee: without ``norm`` and untrained it is the model with the weights of :func:`onebit_decompose`.
    Cost: ten passes over the weights in float64.
    Deviation: sign(0) is 1 from the start; the authors train with 0 there and store 1.
    """
    check_choice("start", start, STARTS)
    chosen, _ = choose_layers(model, layers, product=True)
    modules = dict(model.named_modules())
    # The projections of nn.MultiheadAttention are views of its weights, and it reads them itself.
    linear = [name for name in chosen if name and type(modules.get(name)) is nn.Linear]
    others = [] if layers is None else [name for name in chosen if name not in linear]
    if others or not linear:
        told = f"layer {others[0]!r} is none" if others else "the model has none"
        raise ValueError(f"OneBit is for linear layers that stand in a model, and {told}")
    made = {name: OneBitLinear(cast(nn.Linear, modules[name]), start=start, norm=norm) for name in linear}
    result = copy_model(model)
    for name, layer in made.items():
        replace_module(result, name, layer)
    return result
