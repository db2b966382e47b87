r"""A gated MLP for few tokens that loads the weights of active neurons only.

Notation: as the reference, $y = \sum_{j:\,|v_j| \ge t} v_j\, (W_{up} x)_j\, W_{down}[:, j]$.
The gate is an ordinary product. Then one kernel forms $h_j = v_j (W_{up} x)_j$, one program for some neurons: rows of
an inactive neuron are masked, and a masked load moves no bytes. A second one sums rows of the transposed $W_{down}$
for a share of the neurons; the shares are added at the end, in a fixed order, so that a call repeats to the bit.
Source: Lee et al. 2024, arXiv:2404.08763, "Custom GPU Kernel 1".   Syllabus: 3.13
"""

from typing import no_type_check

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mlcomp.checks import check_dtype, check_interval
from mlcomp.context import isolated
from mlcomp.kernels.launch import INTERPRETED, check_devices, tl, triton

REFERENCE = "mlcomp.prune.sparse_gated_mlp"
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)


@isolated
def sparse_gated_mlp(
    x: Float[Tensor, "n inp"],
    gate: Float[Tensor, "hidden inp"],
    up: Float[Tensor, "hidden inp"],
    down: Float[Tensor, "out hidden"],
    threshold: float | int,
) -> Float[Tensor, "n out"]:
    """Return the gated MLP of each row of ``x``, neurons with |v| below ``threshold`` left out.

    Args:
        x: (n, inp), float32, float16 or (on a GPU) bfloat16; not modified.
        gate, up, down: as in the reference, of one dtype with x. ``down`` should be a transposed view of a contiguous
            (hidden, out) matrix; otherwise it is copied, which costs more than the call saves.
        threshold: t ≥ 0 on |v|.
    Raises:
        ValueError: shapes that do not fit, another device, t negative or NaN. TypeError: another dtype, or several.
    Guarantee: sums in float32, rounded once; v is rounded to the dtype of x, as the reference's is.
    Cost: the gate, and inp + out numbers of each neuron that is active in a token. Each token reads its own: made for
        one, or few.
    Deviation from the reference: NaN and infinity are not looked for, since an error would wait for the GPU.
    """
    check_devices(x=x, gate=gate, up=up, down=down)
    check_dtype("x", x.dtype, DTYPES)
    for name, weight in (("gate", gate), ("up", up), ("down", down)):
        check_dtype(name, weight.dtype, (x.dtype,))
    check_interval("threshold", threshold, "[0, inf]")
    fit = x.ndim == gate.ndim == down.ndim == 2 and up.shape == gate.shape and x.shape[1] == gate.shape[1]
    if not fit or down.shape[1] != len(gate) or not x.numel() or not down.numel():
        shapes = ", ".join(str(tuple(t.shape)) for t in (x, gate, up, down))
        raise ValueError(f"x, gate, up, down must be (n, inp), (hidden, inp) twice and (out, hidden), got {shapes}")
    (n, inp), hidden, out = x.shape, len(gate), len(down)
    v = F.silu(x @ gate.T)
    h = torch.empty(n, hidden, dtype=torch.float32, device=x.device)
    neurons, inner = (64, min(1024, triton.next_power_of_2(inp))) if INTERPRETED else (8, 512)
    _up[(triton.cdiv(hidden, neurons), n)](
        x.contiguous(), v, up.contiguous(), h, float(threshold), hidden, inp, NEURONS=neurons, INNER=inner,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    wide = 128
    share = triton.cdiv(hidden, 1 if INTERPRETED else 32)  # neurons of a program: enough programs for a whole GPU
    parts = torch.empty(triton.cdiv(hidden, share), n, out, dtype=torch.float32, device=x.device)
    _down[(triton.cdiv(out, wide), n, len(parts))](
        v, h, down.T.contiguous(), parts, float(threshold), hidden, out, n, share, NEURONS=16, OUT=wide, num_warps=4,
        num_stages=3,
    )  # fmt: skip
    return parts.sum(0).to(x.dtype)


@triton.jit
@no_type_check
def _up(
    x_ptr, v_ptr, up_ptr, h_ptr, threshold, hidden, inp, NEURONS: tl.constexpr, INNER: tl.constexpr
):  # fmt: skip
    neuron = tl.program_id(0) * NEURONS + tl.arange(0, NEURONS)
    token = tl.program_id(1).to(tl.int64)
    v = tl.load(v_ptr + token * hidden + neuron, mask=neuron < hidden, other=0).to(tl.float32)
    active = (tl.abs(v) >= threshold) & (neuron < hidden)
    total = tl.zeros((NEURONS, INNER), tl.float32)
    for start in range(0, inp, INNER):
        column = start + tl.arange(0, INNER)
        live = active[:, None] & (column[None, :] < inp)
        w = tl.load(up_ptr + neuron.to(tl.int64)[:, None] * inp + column[None, :], mask=live, other=0)
        x = tl.load(x_ptr + token * inp + column, mask=column < inp, other=0)
        total += w.to(tl.float32) * x.to(tl.float32)[None, :]
    tl.store(h_ptr + token * hidden + neuron, tl.sum(total, 1) * v, mask=neuron < hidden)


@triton.jit
@no_type_check
def _down(
    v_ptr, h_ptr, down_ptr, parts_ptr, threshold, hidden, out, n, share, NEURONS: tl.constexpr, OUT: tl.constexpr
):
    column = tl.program_id(0) * OUT + tl.arange(0, OUT)
    token = tl.program_id(1).to(tl.int64)
    first = tl.program_id(2) * share
    total = tl.zeros((NEURONS, OUT), tl.float32)
    for start in range(first, tl.minimum(first + share, hidden), NEURONS):
        neuron = start + tl.arange(0, NEURONS)
        inside = neuron < tl.minimum(first + share, hidden)
        v = tl.load(v_ptr + token * hidden + neuron, mask=inside, other=0).to(tl.float32)
        active = (tl.abs(v) >= threshold) & inside
        h = tl.load(h_ptr + token * hidden + neuron, mask=active, other=0)
        live = active[:, None] & (column[None, :] < out)
        w = tl.load(down_ptr + neuron.to(tl.int64)[:, None] * out + column[None, :], mask=live, other=0)
        total += h[:, None] * w.to(tl.float32)
    place = (tl.program_id(2).to(tl.int64) * n + token) * out
    tl.store(parts_ptr + place + column, tl.sum(total, 0), mask=column < out)
