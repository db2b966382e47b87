r"""The product with a weight of one bit: signs, and a value for each row and each column.

Notation: x activations (tokens, inp), S signs ±1 (out, inp), g (out,), h (inp,): $y = g \odot S(h \odot x)$, the
layer of OneBit before its norm. A sum with signs needs only the positive ones: $\sum_k s_k x_k = 2\sum_{s_k=1} x_k -
\sum_k x_k$.
Source: Xu et al. 2024, arXiv:2402.11295, section 3.1, eq. (3).   Syllabus: 5.04
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_floating, check_like, check_values, narrowed
from mlcomp.context import isolated
from mlcomp.formats.xnor_matmul import PackedSigns, check_packed


@isolated
def onebit_matmul(
    x: Float[Tensor, "tokens inp"], signs: PackedSigns, rows: Float[Tensor, " out"], columns: Float[Tensor, " inp"]
) -> Float[Tensor, "tokens out"]:
    """Return rows ⊙ (S (columns ⊙ x)) for each token, in the dtype of x.

    Args:
        x: (tokens, inp), any float dtype; not modified.
        signs: (out, inp), from :func:`mlcomp.formats.pack_signs`.
        rows, columns: (out,) and (inp,), any float dtypes.
    Raises:
        ValueError: shapes that do not match, NaN or inf, a result beyond its dtype. TypeError: not packed signs, not
            floating point.
    Guarantee: computed in float32 (float64 stays) and rounded once.
    Cost: this is the readable version: it unpacks all signs to numbers.
    """
    check_onebit(x, signs, rows, columns)
    for name, tensor in (("x", x), ("rows", rows), ("columns", columns)):
        check_values(name, tensor)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = (x.to(wide) * columns.to(wide)) @ signs.signs().to(wide).T
    return narrowed(y * rows.to(wide), x.dtype)


def check_onebit(x: Tensor, signs: PackedSigns, rows: Tensor, columns: Tensor) -> None:
    """Raise unless these are operands of :func:`onebit_matmul`."""
    check_packed("signs", signs)
    for name, tensor in (("x", x), ("rows", rows), ("columns", columns)):
        check_floating(name, tensor)
    if x.ndim != 2 or x.shape[1] != signs.columns:
        raise ValueError(f"x must be (tokens, {signs.columns}), got {tuple(x.shape)}")
    check_like("rows", rows, (len(signs.packed),), "the rows of the signs")
    check_like("columns", columns, (signs.columns,), "the columns of the signs")
