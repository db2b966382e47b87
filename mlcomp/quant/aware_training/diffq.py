r"""DiffQ: noise of the size of a rounding error in place of rounding, which makes the number of bits differentiable.

Notation: W weights, Δ_b = (max W − min W)/(2^b − 1) the step of b bits, U uniform;
$\hat W = W + \tfrac{\Delta_b}{2}\,U[-1, 1]$ in training, $Q(W, b)$ afterwards. g weights share $b_s$ (a group),
$b_s = b_{min} + \sigma(l_s)(b_{max} - b_{min})$ with a logit that is learned; size $M = \sum_s g\,b_s$;
loss = L(F(x, Ŵ)) + λM.
Source: Défossez, Adi, Synnaeve 2021, arXiv:2104.09987, eq. (5)-(11).   Syllabus: 1.10
"""

import bisect
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mlcomp.checks import check_positive, check_tensor, check_values, narrowed
from mlcomp.context import isolated
from mlcomp.layerwise.attention import split_attention
from mlcomp.layerwise.fit import choose_layers, copy_model
from mlcomp.layerwise.matrix import Layer, find_layer, find_layers
from mlcomp.layerwise.weights import Replacement, replace_module
from mlcomp.quant.scalar.mixed_bits import MixedBits, mixed_bits_nbytes, quantize_mixed

_GRID_BYTES = 8  # least and largest weight of the tensor, float32


@isolated
def pseudo_noise(
    weight: Tensor, bits: Tensor, *, group_size: int | None, generator: torch.Generator | None = None
) -> Tensor:
    r"""Return $W + \tfrac{\Delta_b}{2} U[-1, 1]$, differentiable in the weight and in the bits.

    Args:
        weight: any shape, groups counted in row-major order; the last one may be shorter.
        bits: (groups,) real numbers > 0.
        group_size: weights that share a number of bits; None: all.
        generator: of the noise, on the weight's device; None: torch's global one.
    Raises:
        ValueError: no weights, NaN or inf, bits that are not positive, a result beyond the weight's dtype.
            TypeError: not floating point.
    """
    check_tensor("weight", weight)
    if weight.numel() == 0:
        raise ValueError(f"weight must have at least one entry, got shape {tuple(weight.shape)}")
    check_values("weight", weight)
    check_values("bits", bits)
    if not bool((bits > 0).all()):
        raise ValueError(f"bits must be positive, got a minimum of {float(bits.min()):.3g}")
    if bits.ndim != 1 or len(bits) != (1 if group_size is None else -(-weight.numel() // group_size)):
        raise ValueError(f"bits must be one number for each group of weights, got shape {tuple(bits.shape)}")
    # At least float32: the range of a float16 weight may be twice what float16 holds.
    low, high = torch.aminmax(weight.detach().to(torch.promote_types(weight.dtype, torch.float32)))
    delta = (high - low) / (2**bits - 1)
    size = weight.numel() if group_size is None else group_size
    delta = delta.repeat_interleave(size)[: weight.numel()].reshape(weight.shape)
    noise = torch.rand(weight.shape, generator=generator, dtype=weight.dtype, device=weight.device)
    return narrowed(weight + delta / 2 * (2 * noise - 1), weight.dtype)


class DiffQLayer(Replacement):
    """A layer with pseudo-quantization noise on its weight in training, and with the quantized weight in evaluation.

    Attributes:
        layer: the linear or convolutional layer, weights in floating point.
        logit: (groups,), the parameter of the bits in units of 1/``speed``.
    """

    def __init__(
        self,
        layer: Layer,
        *,
        group_size: int | None,
        min_bits: int,
        max_bits: int,
        init_bits: float,
        speed: float,
    ) -> None:
        """Take over ``layer``; the other arguments are those of :func:`prepare_diffq`."""
        super().__init__(layer)
        self.group_size, self.speed = group_size, speed
        self.min_bits, self.max_bits = min_bits, max_bits
        groups = 1 if group_size is None else -(-layer.weight.numel() // group_size)
        share = (init_bits - min_bits) / (max_bits - min_bits)
        start = math.log(share / (1 - share)) / speed
        self.logit = nn.Parameter(torch.full((groups,), start, device=layer.weight.device))

    @property
    def bits(self) -> Tensor:
        """(groups,) the real-valued numbers of bits, differentiable."""
        return self.min_bits + torch.sigmoid(self.speed * self.logit) * (self.max_bits - self.min_bits)

    @property
    def group_weights(self) -> Tensor:
        """(groups,) how many weights each group has: the last one may have fewer."""
        count = self.layer.weight.numel()
        sizes = torch.full_like(self.logit, count if self.group_size is None else self.group_size)
        sizes[-1] -= sizes.sum() - count
        return sizes.detach()

    @property
    def size_bits(self) -> Tensor:
        """The weight's size in bits, differentiable: codes, 4 bits for each group's own number, and the range."""
        bits = self.bits
        return (self.group_weights * bits).sum() + 4 * len(bits) + 8 * _GRID_BYTES

    @isolated
    def quantized(self) -> MixedBits:
        """Return the weight as codes, each group at its number of bits, rounded to the nearest whole number."""
        bits = torch.round(self.bits.detach()).to(torch.uint8)
        return quantize_mixed(self.layer.weight.detach(), bits, group_size=self.group_size)

    def packed_nbytes(self, bits: Tensor) -> int:
        """Return the bytes that the weight takes with these whole numbers of bits (groups,), uint8."""
        count = self.layer.weight.numel()
        return mixed_bits_nbytes(bits, self.group_size or count, count) + _GRID_BYTES

    @property
    def weight(self) -> Tensor:
        """The weight that the layer computes with: noisy in training mode, else the quantized one."""
        if self.training:
            return pseudo_noise(self.layer.weight, self.bits, group_size=self.group_size)
        return self.quantized().dequantize().to(self.layer.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, noisy in training mode."""
        return functional_call(self.layer, {"weight": self.weight}, (x,))


@isolated
def prepare_diffq(
    model: nn.Module,
    *,
    layers: list[str] | None = None,
    group_size: int | None = 8,
    min_bits: int = 2,
    max_bits: int = 15,
    init_bits: float = 8.0,
    speed: float = 1.0,
) -> nn.Module:
    """Return a copy of ``model`` whose layers learn their numbers of bits while it is trained.

    Args:
        model: not modified.
        layers: names of linear and convolutional layers. None: all; one whose weight cannot be exchanged (tied,
            computed, packed) is an error.
        group_size: weights that share a number of bits, in row-major order. None: the whole layer.
        min_bits, max_bits, init_bits: 1 ≤ min_bits < init_bits < max_bits ≤ 15.
        speed: factor of the learning rate of the bits. The paper gives them an optimizer of their own and hundreds
            of epochs; with one optimizer for everything and a few epochs, about 10 does the same.
    Raises:
        ValueError: options outside these limits, no layer, unknown names.
    Deviations: bits per group, one range (min, max) per tensor, uniform noise and b from 2 to 15 are the paper's (the
        authors' code offers Gaussian noise, too); ``speed`` and :class:`SizeTarget` (the paper sets λ by hand) are
        ours.
    """
    names = list(find_layers(model, layers))
    choose_layers(model, names)  # raises
    if not (1 <= min_bits < init_bits < max_bits <= 15):
        raise ValueError(f"need 1 ≤ min_bits < init_bits < max_bits ≤ 15, got {min_bits}, {init_bits}, {max_bits}")
    if group_size is not None and group_size < 1:
        raise ValueError(f"group_size must be at least 1, or None for one group a layer, got {group_size}")
    check_positive("speed", speed)
    result = split_attention(copy_model(model))
    for name in names:
        layer = DiffQLayer(
            find_layer(result, name),
            group_size=group_size,
            min_bits=min_bits,
            max_bits=max_bits,
            init_bits=init_bits,
            speed=speed,
        )
        result = replace_module(result, name, layer)
    return result


@isolated
def diffq_size(model: nn.Module) -> Tensor:
    """Return the size in bytes of all DiffQ layers' weights, differentiable in their logits: M of the penalty λM."""
    sizes = [m.size_bits for m in model.modules() if isinstance(m, DiffQLayer)]
    if not sizes:
        raise ValueError("the model has no DiffQLayer: use prepare_diffq first")
    return torch.stack(sizes).sum() / 8


class SizeTarget:
    r"""A loss with a size penalty whose weight λ finds itself, for a target in bytes: the ``loss`` of mlcomp.train.

    $L + \lambda\,(M/M^* - 1)$, and after each call $\lambda \leftarrow \lambda\,e^{r\,e}$ with the excess
    $e = M/M^* - 1$, cut to [−1, 1]: the multiplier of a constraint, found by gradient ascent on its logarithm.

    Attributes:
        multiplier: λ now, in units of the loss.
    """

    def __init__(
        self,
        model: nn.Module,
        nbytes: float,
        *,
        loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
        start: float = 1e-3,
        rate: float = 0.2,
    ) -> None:
        """Aim at ``nbytes`` for the weights of the DiffQ layers of ``model``.

        Args:
            model: from :func:`prepare_diffq`.
            nbytes: the target M*; below what ``min_bits`` allow, λ grows without end.
            loss: of the task, L(output, labels).
            start: λ at the start. rate: r.
        """
        if not (nbytes > 0 and start > 0 and rate > 0):
            raise ValueError(f"nbytes, start and rate must be positive, got {nbytes}, {start} and {rate}")
        diffq_size(model)  # raises where there is nothing to weigh
        self.model, self.nbytes, self.loss, self.multiplier, self.rate = model, nbytes, loss, start, rate

    def __call__(self, output: Tensor, labels: Tensor) -> Tensor:
        """Return the penalized loss, and move λ."""
        excess = diffq_size(self.model) / self.nbytes - 1
        value = self.loss(output, labels) + self.multiplier * excess
        self.multiplier *= math.exp(self.rate * max(-1.0, min(1.0, float(excess.detach()))))
        return value


@isolated
def diffq_codes(model: nn.Module) -> dict[str, MixedBits]:
    """Return name → the codes of each DiffQ layer, ready to be packed."""
    return {name: m.quantized() for name, m in model.named_modules() if isinstance(m, DiffQLayer)}


@isolated
@torch.no_grad()
def meet_size(model: nn.Module, nbytes: int | float) -> nn.Module:
    """Return a copy of a trained model in which some groups give up whole bits, until the packed size fits.

    :class:`SizeTarget` aims with real numbers of bits: rounded to whole ones, or after few steps, the size may miss.
    The groups whose learned numbers are the least above a half round down first; the last one is the smallest that
    suffices, so that little of the size is wasted where groups are whole layers. Then the bits are fixed; the weights
    adapt if training goes on.

    Args:
        model: from :func:`prepare_diffq`, trained; not modified.
        nbytes: the most that the codes of all DiffQ layers may take, packed, with their widths and ranges.
    Raises:
        ValueError: no DiffQLayer, or more bytes than ``nbytes`` even with ``min_bits`` everywhere.
    Guarantee: the packed size is at most ``nbytes``; the bits of a model that fits already stay as they are. No logit
        requires a gradient any more.
    """
    diffq_size(model)  # raises where there is no layer
    result = copy_model(model)
    layers = [m for m in result.modules() if isinstance(m, DiffQLayer)]
    groups = [len(m.logit) for m in layers]
    learned = torch.cat([m.bits for m in layers])
    order = _giving_up(learned, torch.cat([torch.full_like(m.bits, m.min_bits) for m in layers]))

    def whole(steps: int) -> tuple[Tensor, ...]:
        """Return each layer's bits after the first so many are given up."""
        return (learned.round() - torch.bincount(order[:steps], minlength=len(learned))).split(groups)

    def size(steps: int) -> int:
        return sum(m.packed_nbytes(bits.to(torch.uint8)) for m, bits in zip(layers, whole(steps), strict=True))

    if size(len(order)) > nbytes:
        raise ValueError(f"with the fewest bits everywhere the codes take {size(len(order))} bytes, above {nbytes:g}")
    steps = bisect.bisect_left(range(len(order)), True, key=lambda n: size(n) <= nbytes)
    if steps > 0:
        rest, weights = order[steps - 1 :], torch.cat([m.group_weights for m in layers])
        need = 8 * (size(steps - 1) - nbytes) + 16  # two widths may be padded to whole bytes
        enough = rest[weights[rest] >= need]
        if len(enough) > 0:
            order[steps - 1] = enough[weights[enough].sort(stable=True).indices[0]]
    for layer, bits, before in zip(layers, whole(steps), whole(0), strict=True):
        share = (bits - layer.min_bits) / (layer.max_bits - layer.min_bits)
        # eps: the ends of the range have no finite logit; a thousandth of a bit inside rounds to them all the same.
        logit = torch.logit(share, eps=1e-4) / layer.speed
        layer.logit.copy_(torch.where(bits < before, logit, layer.logit))
        layer.logit.requires_grad_(False)
    return result


def _giving_up(learned: Tensor, least: Tensor) -> Tensor:
    """Return the groups in the order in which each of their bits above ``least`` is given up."""
    whole = learned.round()
    depth = torch.arange(int((whole - least).max()), device=learned.device)
    cost = (learned - whole)[:, None] + depth
    cost[depth >= (whole - least)[:, None]] = torch.inf
    order = cost.flatten().sort(stable=True).indices[: int(cost.isfinite().sum())]
    return order // max(1, len(depth))
