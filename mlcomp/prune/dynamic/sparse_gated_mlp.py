r"""A gated MLP that reads only the weights of active neurons, token by token.

Notation: $v = \mathrm{SiLU}(W_{gate} x)$; neuron j is active where $|v_j| \ge t$. Then
$y = \sum_{j\ active} v_j\, (W_{up} x)_j\, W_{down}[:, j]$: rows of $W_{up}$ and columns of $W_{down}$ of all others
are not needed. The lecture writes $xW$ with the transposed matrices.
Source: Lee et al. 2024, arXiv:2404.08763, "Custom GPU Kernel 1".   Syllabus: 3.13
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mlcomp.checks import check_finite, check_floating, check_interval, check_values
from mlcomp.context import isolated


@isolated
def sparse_gated_mlp(
    x: Float[Tensor, "n inp"],
    gate: Float[Tensor, "hidden inp"],
    up: Float[Tensor, "hidden inp"],
    down: Float[Tensor, "out hidden"],
    threshold: float | int,
) -> Float[Tensor, "n out"]:
    r"""Return the gated MLP of each row of ``x``, neurons with $|v| <$ ``threshold`` left out.

    Args:
        x: (n, inp), a token in each row; not modified.
        gate, up, down: weights as ``nn.Linear`` keeps them, of one dtype with x. Columns of ``down`` are gathered:
            pass a transposed view of a contiguous (hidden, out) matrix, and they lie together in memory.
        threshold: t ≥ 0 on |v|; infinity leaves nothing, and the result is 0.
    Raises:
        ValueError: shapes that do not fit, t negative or NaN, NaN or inf in x, in v, or in a weight that is needed.
        TypeError: not floating point, or of several dtypes.
    Guarantee: equal, up to rounding, to the dense MLP in which v is set to zero where |v| < t.
    Cost: for each token hidden·inp multiply-adds for v, and inp + out for each active neuron.
    """
    check_interval("threshold", threshold, "[0, inf]")
    check_values("x", x)
    for name, weight in (("gate", gate), ("up", up), ("down", down)):
        check_floating(name, weight)
        if weight.dtype != x.dtype:
            raise TypeError(f"{name} must be {x.dtype} like x, got {weight.dtype}")
    fit = x.ndim == gate.ndim == down.ndim == 2 and up.shape == gate.shape and x.shape[1] == gate.shape[1]
    if not fit or down.shape[1] != len(gate) or not x.numel() or not down.numel():
        shapes = ", ".join(str(tuple(t.shape)) for t in (x, gate, up, down))
        raise ValueError(f"x, gate, up, down must be (n, inp), (hidden, inp) twice and (out, hidden), got {shapes}")
    x, up, by_neuron = x.detach(), up.detach(), down.detach().T
    v = F.silu(x @ gate.detach().T)
    check_finite("SiLU(x·gate)", v)
    rows = []
    for token, value in zip(x, v, strict=True):
        active = (value.abs() >= threshold).nonzero().squeeze(1)
        hidden = value[active] * (up[active] @ token)
        rows.append(hidden @ by_neuron[active])
    output = torch.stack(rows)
    check_finite("the output", output)
    return output
