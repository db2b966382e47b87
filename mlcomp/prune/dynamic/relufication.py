r"""ReLUfication: ReLU in the place of SiLU or GELU, for the exact zeros that it gives.

Notation: the MLP becomes down(relu(gate x − shift) · up x). SiLU is near x for large x and near 0 for very negative
x; in between, down to −0.278 at −1.28, ReLU returns 0 where SiLU does not. The paper trains on after the exchange;
this is the exchange alone.
Source: Mirzadeh et al. 2023, arXiv:2310.04564, stage 1 (the exchange) and "The shifted ReLU activation".
Syllabus: 3.13
"""

from torch import Tensor, nn

from mlcomp.checks import check_interval
from mlcomp.context import isolated
from mlcomp.layerwise.fit import copy_model
from mlcomp.layerwise.weights import replace_module
from mlcomp.prune.dynamic.gated_mlps import GatedMLP, find_gated_mlps


class ShiftedReLU(nn.Module):
    """relu(x − shift)."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        """Return x − shift where that is positive, else 0."""
        return (x - self.shift).clamp(min=0)

    def extra_repr(self) -> str:
        """Return the shift."""
        return f"shift={self.shift:g}"


@isolated
def relufication(model: nn.Module, *, shift: float = 0.0) -> nn.Module:
    """Return a copy of ``model`` in whose gated MLPs the activation is ReLU.

    Args:
        model: a language model with gated MLPs; not modified. Train the copy on with :func:`mlcomp.train.train` or
            any other loop: without, a model that was trained with SiLU or GELU is of little use.
        shift: a positive one gives more zeros.
    Raises:
        ValueError: no gated MLP, or a shift that is NaN or infinite.
    Guarantee: a model whose activation is ReLU already computes what it did (with shift 0).
    """
    check_interval("shift", shift, "(-inf, inf)")
    result = copy_model(model)
    for name, mlp in find_gated_mlps(result).items():
        result = replace_module(result, name, GatedMLP(mlp, activation=ShiftedReLU(float(shift))))
    return result
