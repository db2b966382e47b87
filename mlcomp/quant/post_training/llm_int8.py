r"""LLM.int8(): a product in 8-bit integers, but for the few input features that are too large for them.

Notation: X activations (tokens, inp), W weight (out, inp), threshold α, O the columns k of X with
$|X_{tk}| \ge \alpha$ for any t. With the codes q and scales s of absolute-maximum quantization by rows,
$$ y_{tn} = \sum_{k \in O} X_{tk} W_{nk} + s_{x,t}\, s_{w,n} \sum_{k \notin O} q_{x,tk}\, q_{w,nk}. $$
Source: Dettmers et al. 2022, arXiv:2208.07339, eq. (8) and section 3 (the product), section 4.1 (outlier features).
Syllabus: 4.05
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mlcomp.checks import check_finite, check_floating, check_interval, check_matrix, narrowed
from mlcomp.context import isolated
from mlcomp.formats.absmax_int8 import AbsmaxInt8, absmax_int8
from mlcomp.formats.int8_matmul import int8_matmul


@isolated
def outlier_columns(x: Float[Tensor, "tokens inp"], *, threshold: float | int = 6.0) -> Int64[Tensor, " columns"]:
    """Return the columns in which an entry has at least the magnitude ``threshold``, ascending; there may be none.

    Args:
        x: (tokens, inp), any float dtype; not modified.
        threshold: α, [units of x]; ``math.inf`` for no column.
    Raises:
        ValueError: x is no finite matrix, threshold is not positive.
    """
    check_matrix("x", x, squared=False)
    check_interval("threshold", threshold, "(0, inf]")
    return (x.detach().abs().amax(0) >= threshold).nonzero()[:, 0]


@isolated
def llm_int8(
    x: Float[Tensor, "tokens inp"], weight: Float[Tensor, "out inp"] | AbsmaxInt8, *, threshold: float | int = 6.0
) -> Float[Tensor, "tokens out"]:
    """Return x · weightᵀ, outlier columns in high precision and the rest in 8-bit integers.

    Args:
        x: (tokens, inp), any float dtype; not modified.
        weight: (out, inp), whose outlier columns are then multiplied as they are (the paper's product); or what
            ``absmax_int8(weight, -1)`` made of it: a layer that is stored in 8 bits has no other weights.
        threshold: α, [units of x]. ``math.inf``: everything in integers, one scale a row (vector-wise quantization).
    Returns:
        (tokens, out) in the dtype of x.
    Raises:
        ValueError: malformed x or weight, a threshold that is not positive, a result beyond the dtype of x.
    Guarantee: |y − x·weightᵀ| ≤ Σ over k not in O of ½|x|s_w + ½|w|s_x + ¼s_x·s_w, up to float rounding, where s_x is
        below α/127 in every row. It is the product itself where every column is an outlier.
    Deviations: high precision is float64 and not float16. The row maxima of x are taken without the outlier columns;
        bitsandbytes takes them without the outlying entries only.
    """
    columns = outlier_columns(x, threshold=threshold)
    stored = weight if isinstance(weight, AbsmaxInt8) else absmax_int8(_matrix(weight), -1)
    regular = x.detach().index_fill(1, columns, 0)
    y = int8_matmul(absmax_int8(regular, -1), stored).double()
    if isinstance(weight, AbsmaxInt8):
        outlying = weight.codes[:, columns].double() * weight.scale.double()
    else:
        outlying = weight.detach()[:, columns].double()
    return narrowed(y + x.detach()[:, columns].double() @ outlying.T, x.dtype)


def _matrix(weight: Tensor) -> Tensor:
    check_matrix("weight", weight, squared=False)
    return weight


class LLMInt8Linear(nn.Module):
    """A linear layer whose weight is stored in 8 bits, with one scale a row.

    Attributes:
        codes: (out, inp) int8. scale: (out, 1) float32 [weight units]. bias: (out,) or None.
        threshold: α of :func:`llm_int8`, [units of the inputs].
    """

    @isolated
    def __init__(self, linear: nn.Linear, *, threshold: float | int = 6.0) -> None:
        """Take over the weight and bias of ``linear``, which is not modified.

        Raises:
            ValueError: a threshold that is not positive, NaN or inf in the weight. TypeError: not a linear layer.
        """
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be an nn.Linear, got {type(linear).__name__}")
        check_interval("threshold", threshold, "(0, inf]")
        stored = absmax_int8(linear.weight, -1)
        self.codes: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        self.register_buffer("codes", stored.codes)
        self.register_buffer("scale", stored.scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())
        self.threshold = threshold

    @isolated
    def forward(self, x: Float[Tensor, "... inp"]) -> Float[Tensor, "... out"]:
        """Return the layer's output; without gradients."""
        y = llm_int8(x.flatten(0, -2), AbsmaxInt8(self.codes, self.scale), threshold=self.threshold)
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], len(self.codes))

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and bias."""
        return self.codes.nbytes + self.scale.nbytes + (0 if self.bias is None else self.bias.nbytes)


@isolated
def outlier_features(
    hidden: Sequence[Tensor],
    *,
    threshold: float | int = 6.0,
    layer_share: float | int = 0.25,
    position_share: float | int = 0.06,
) -> Int64[Tensor, " features"]:
    """Return the feature dimensions that the paper's analysis calls outlier features.

    Their magnitude reaches the threshold in enough layers, and at enough positions of all layers together.

    Args:
        hidden: of each layer the states (…, features) that its linear layers multiply, that is after the norm.
        threshold: [units of the states].
        layer_share: of the layers, in which at least one position must reach the threshold.
        position_share: of the positions of all layers that must reach it.
    Raises:
        ValueError: no layers, different widths or an empty one, NaN or inf, a share outside [0, 1].
    """
    check_interval("threshold", threshold, "(0, inf]")
    check_interval("layer_share", layer_share, "[0, 1]")
    check_interval("position_share", position_share, "[0, 1]")
    for x in hidden:
        check_floating("hidden", x)
        check_finite("hidden", x)
    widths = {x.shape[-1] for x in hidden if x.ndim and x.numel()}
    if len(widths) != 1 or any(x.numel() == 0 or x.ndim == 0 for x in hidden):
        shapes = [tuple(x.shape) for x in hidden]
        raise ValueError(f"hidden must be states (…, features) of one width, one tensor a layer, got {shapes}")
    hits = [x.detach().reshape(-1, x.shape[-1]).abs() >= threshold for x in hidden]
    layers = torch.stack([hit.any(0) for hit in hits]).double().mean(0)
    positions = torch.cat(hits).double().mean(0)
    return ((layers >= layer_share) & (positions >= position_share) & (positions > 0)).nonzero()[:, 0]
