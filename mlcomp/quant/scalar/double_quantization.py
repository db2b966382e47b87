r"""Double quantization: 4-bit codes in blocks whose scales are quantized as well, as under QLoRA.

Notation: the weight is read row by row and cut into blocks of B values; $m_b = \max_{i \in b}|w_i|$ the scale of a
block; levels $v_j \in [-1, 1]$ of a 4-bit data type; $q_i = \arg\min_j |w_i/m_b - v_j|$. The scales are stored as
$\bar m + M_s u_{r_b}$: their mean, and what is left of each, in blocks s of B₂, by one of 256 levels $u \in [-1, 1]$
times the largest, $M_s = \max_{b \in s}|m_b - \bar m|$. So $\hat w_i = (\bar m + M_s u_{r_b})\, v_{q_i}$: a weight
takes $4 + 8/B + 32/(B B_2)$ bits, and the tensor 32 more for $\bar m$.
Source: Dettmers et al. 2023, arXiv:2305.14314, section 3 (double quantization); the levels u: Dettmers et al. 2021,
arXiv:2110.02861, section 1.3 (dynamic tree quantization).   Syllabus: 4.08
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from mlcomp.checks import check_choice, check_size, check_weight, check_whole
from mlcomp.context import isolated
from mlcomp.formats.packing import packed_nbytes
from mlcomp.formats.stored import Stored, number
from mlcomp.quant.scalar.blockwise import data_type_levels
from mlcomp.quant.scalar.codebook import nearest

DATA_TYPES, SCALE_TYPES = ("nf4", "float", "int"), ("dynamic", "int")


@dataclass(frozen=True)
class DoubleQuantized:
    """A weight as 4-bit codes, an 8-bit code for the scale of each block, and what decodes these.

    Attributes:
        codes: (out, inp) uint8, below 16.
        scale_codes: (blocks,) uint8.
        largest: M, (⌈blocks/B₂⌉,) float32 [weight units].
        mean: of all scales, rounded to float32 [weight units].
        block_size, scale_block: B, B₂; the last block of each kind may be shorter.
        data_type, scale_type: of codes and scale codes.
        before: blocks of the whole weight that come before these, where these are some of its rows.
    """

    codes: UInt8[Tensor, "out inp"]
    scale_codes: UInt8[Tensor, " blocks"]
    largest: Float[Tensor, " scale_blocks"]
    mean: float
    block_size: int
    scale_block: int
    data_type: str
    scale_type: str
    before: int = 0

    @isolated
    def scales(self) -> Float[Tensor, " blocks"]:
        """Return the decoded scale of each block, float32."""
        levels = scale_levels(self.scale_type).to(self.largest.device)
        block = (torch.arange(len(self.scale_codes), device=self.largest.device) + self.before) // self.scale_block
        return levels[self.scale_codes.long()] * self.largest[block] + self.mean

    @isolated
    def dequantize(self) -> Float[Tensor, "out inp"]:
        """Return the weight (out, inp), float32."""
        levels = data_type_levels(self.data_type, 4).to(self.codes.device)
        scale = self.scales().repeat_interleave(self.block_size)[: self.codes.numel()]
        return levels[self.codes.long()] * scale.reshape(self.codes.shape)

    @property
    def nbytes(self) -> int:
        """Bytes as packed: codes of 4 bits, scale codes of 8, float32 for each M, and for the mean."""
        return packed_nbytes(self.codes.numel(), 4) + len(self.scale_codes) + self.largest.nbytes + 4

    @property
    def bits_per_weight(self) -> float:
        """``nbytes`` in bits over the number of weights."""
        return self.nbytes * 8 / self.codes.numel()

    def stored(self) -> Stored:
        """Return codes, two in a byte with the first in the high half (bitsandbytes' layout), and the scales."""
        zero = int(_codes(torch.zeros(1), data_type_levels(self.data_type, 4)))  # fills the last byte
        flat = F.pad(self.codes.reshape(-1), (0, self.codes.numel() % 2), value=zero)
        tensors = {
            "codes": (flat[0::2] << 4) | flat[1::2],
            "scale_codes": self.scale_codes,
            "largest": self.largest,
            "mean": number("mean", self.mean),
        }
        names = ("block_size", "scale_block", "data_type", "scale_type")
        facts = {"shape": list(self.codes.shape)} | {name: getattr(self, name) for name in names}
        return Stored("double_quantized", tensors, facts)

    @classmethod
    def from_stored(cls, stored: Stored, start: int = 0, stop: int | None = None) -> "DoubleQuantized":
        """Return what was stored, or some of its rows."""
        tensors, facts = stored.tensors, stored.facts
        (out, inp), size = stored.shape, facts["block_size"]
        stop = out if stop is None else stop
        packed = tensors["codes"][start * inp // 2 : (stop * inp + 1) // 2]
        codes = torch.stack([packed >> 4, packed & 15], 1).reshape(-1)[: (stop - start) * inp]
        before = start * inp // size
        scale_codes = tensors["scale_codes"][before : -(-stop * inp // size)]
        options = {name: facts[name] for name in ("block_size", "scale_block", "data_type", "scale_type")}
        largest, mean = tensors["largest"], float(tensors["mean"])
        return cls(codes.reshape(-1, inp), scale_codes, largest, mean, before=before, **options)

    @staticmethod
    def by_rows(stored: Stored) -> bool:
        """Return whether each row is a whole number of blocks, and of bytes."""
        inp = stored.shape[1]
        return inp % stored.facts["block_size"] == 0 and inp % 2 == 0


@isolated
def double_quantize(
    weight: Float[Tensor, "out inp"],
    *,
    data_type: str = "nf4",
    block_size: int = 64,
    scale_block: int = 256,
    scale_type: str = "dynamic",
) -> DoubleQuantized:
    """Quantize a weight to 4 bits in blocks, and the scales of the blocks to 8 bits in blocks of their own.

    Args:
        weight: (out, inp), any float dtype, computed in float32; not modified.
        data_type: "nf4", "float" or "int", 4 bits each; see :func:`mlcomp.quant.blockwise`.
        block_size: B, weights that share a scale.
        scale_block: B₂, scales that share M.
        scale_type: "dynamic", the levels of the published code, or "int", the 255 equally spaced ones. The paper says
            FP8.
    Raises:
        ValueError: another data type or scale type, sizes below 1, NaN, inf or numbers above 1e36 in the weight.
    Guarantee: the codes are those of the exact scales; |w − ŵ| ≤ m_b·(largest distance of a number in [−1, 1] to its
        level) + |m_b − m̂_b|. A block of zeros decodes to zeros, whatever its scale becomes.
    Cost: one pass over the weight.
    """
    weight = check_weight(weight)
    check_choice("data_type", data_type, DATA_TYPES)
    check_choice("scale_type", scale_type, SCALE_TYPES)
    check_whole("block_size", block_size, 1)
    check_whole("scale_block", scale_block, 1)
    w = weight.detach().float().reshape(-1)
    check_size("weight", w, squared=False)
    size = min(block_size, len(w))
    blocks = F.pad(w, (0, -len(w) % size)).reshape(-1, size)
    scale = blocks.abs().amax(1)
    normal = blocks / torch.where(scale > 0, scale, torch.ones_like(scale))[:, None]
    codes = _codes(normal.reshape(-1)[: len(w)], data_type_levels(data_type, 4)).reshape(weight.shape)
    mean = scale.double().mean().float()  # a float32 sum of many may leave the range
    rest = F.pad(scale - mean, (0, -len(scale) % scale_block)).reshape(-1, scale_block)
    largest = rest.abs().amax(1)
    normal = rest / torch.where(largest > 0, largest, torch.ones_like(largest))[:, None]
    scale_codes = _codes(normal.reshape(-1)[: len(scale)], scale_levels(scale_type))
    return DoubleQuantized(codes, scale_codes, largest, float(mean), size, scale_block, data_type, scale_type)


@isolated
def scale_levels(scale_type: str) -> Float[Tensor, " levels"]:
    r"""Return the levels of 8-bit scales, ascending, in [−1, 1], float32.

    "dynamic": the number of leading zeros of a code is a decimal exponent, the bits behind them a fraction: for
    e = 0 … 6 the midpoints of $2^e$ equal parts of [0.1, 1], times $10^{e-6}$, with both signs; 0; and 1. That is
    127 negative levels and 128 positive ones. "int": k/127 for k = −127 … 127.

    Raises:
        ValueError: another scale type.
    """
    check_choice("scale_type", scale_type, SCALE_TYPES)
    if scale_type == "int":
        return (torch.arange(-127, 128, dtype=torch.float64) / 127).float()
    positive = []
    for e in range(7):
        edges = torch.linspace(0.1, 1, 2**e + 1, dtype=torch.float64)
        positive.append(10.0 ** (e - 6) * (edges[1:] + edges[:-1]) / 2)
    half = torch.cat(positive)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    return torch.cat([-half.flip(0), zero, half, one]).float()


def _codes(values: Tensor, levels: Tensor) -> UInt8[Tensor, " n"]:
    """Return the number of the level nearest to each value."""
    return torch.bucketize(values, nearest(levels).to(values.device)).to(torch.uint8)
