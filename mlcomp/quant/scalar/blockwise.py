r"""Block-wise quantization to a data type of k bits: each block of weights, divided by its largest, on a fixed table.

Notation: the weight matrix is read row by row and cut into blocks of B values; $m_b = \max_{i \in b}|w_i|$, kept in
float16, is the block's scale; levels $v_0 < \dots < v_{n-1}$ in [−1, 1], $n \le 2^k$; $\hat w_i = m_b\,v_{q_i}$ with
$q_i = \arg\min_j |w_i/m_b - v_j|$.

| data type | levels | at k bits |
|---|---|---|
| int | equally spaced, symmetric around 0 | 2^k − 1 |
| float | sign, e bits of exponent, the rest mantissa, with subnormals; e = 2, and 3 from k = 5 on | 2^k − 1 |
| quantile | the medians of 2^k parts of equal mass of the tensor's own normalized values | 2^k, stored in float16 |
| nf4 | NormalFloat4: quantiles of a Gaussian and an exact zero | 2^4 |

Source: Dettmers & Zettlemoyer 2022, arXiv:2212.09720, section 2; blocks: Dettmers et al. 2021, arXiv:2110.02861,
section 2.1.   Syllabus: 1.04, 1.12
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mlcomp.checks import check_bits, check_choice, check_weight, check_whole
from mlcomp.context import isolated
from mlcomp.formats.packing import pack_planes, packed_nbytes, unpack_planes
from mlcomp.formats.stored import Stored
from mlcomp.quant.scalar.quantile import nf4_codebook, quantile_codebook

DATA_TYPES = {"int": range(2, 9), "float": range(3, 9), "quantile": range(1, 9), "nf4": range(4, 5)}  # bits


@dataclass(frozen=True)
class Blockwise:
    """A weight as codes of a data type, with one scale for each block.

    Attributes:
        codes: (out, inp) uint8, each below the number of levels.
        scale: (blocks,) float16, the largest magnitude of each block [weight units].
        levels: (n,) float32, ascending, in [−1, 1].
        bits: k, bits per code.
        block_size: B; the last block may be shorter.
        stored_levels: the levels belong to this tensor and are stored with it (float16).
    """

    codes: UInt8[Tensor, "out inp"]
    scale: Float[Tensor, " blocks"]
    levels: Float[Tensor, " levels"]
    bits: int
    block_size: int
    stored_levels: bool

    @isolated
    def dequantize(self) -> Float[Tensor, "out inp"]:
        """Return the weight (out, inp), float32."""
        scale = self.scale.float().repeat_interleave(self.block_size)[: self.codes.numel()]
        return self.levels[self.codes.long()] * scale.reshape(self.codes.shape)

    @property
    def nbytes(self) -> int:
        """Bytes as packed: codes of k bits, float16 scales, and the levels where they are the tensor's own."""
        levels = 2 * len(self.levels) if self.stored_levels else 0
        return packed_nbytes(self.codes.numel(), self.bits) + self.scale.nbytes + levels

    @property
    def bits_per_weight(self) -> float:
        """``nbytes`` in bits over the number of weights."""
        return self.nbytes * 8 / self.codes.numel()

    def stored(self) -> Stored:
        """Return codes, scales and the tensor's own levels, packed; levels that everyone has by name.

        Raises:
            ValueError: levels that are not stored and those of no data type.
        """
        tensors = {"codes": pack_planes(self.codes, self.bits), "scale": self.scale.contiguous()}
        facts = {"shape": list(self.codes.shape), "bits": self.bits, "block_size": self.block_size}
        if self.stored_levels:
            tensors["levels"] = self.levels.half()
            return Stored("blockwise", tensors, facts | {"data_type": "quantile"})
        for data_type, bits in DATA_TYPES.items():
            if data_type != "quantile" and self.bits in bits:
                levels = data_type_levels(data_type, self.bits)
                if torch.equal(levels, self.levels.cpu()):
                    return Stored("blockwise", tensors, facts | {"data_type": data_type})
        raise ValueError(f"these levels are those of no data type of {self.bits} bits, and are not stored themselves")

    @classmethod
    def from_stored(cls, stored: Stored, start: int = 0, stop: int | None = None) -> "Blockwise":
        """Return what was stored, or some of its rows."""
        tensors, facts = stored.tensors, stored.facts
        (_, inp), size, own = stored.shape, facts["block_size"], facts["data_type"] == "quantile"
        codes = unpack_planes(tensors["codes"], facts["bits"], stored.shape, start=start, stop=stop)
        scale = tensors["scale"][start * inp // size : None if stop is None else stop * inp // size]
        levels = tensors["levels"].float() if own else data_type_levels(facts["data_type"], facts["bits"])
        return cls(codes, scale, levels.to(codes.device), facts["bits"], size, own)

    @staticmethod
    def by_rows(stored: Stored) -> bool:
        """Return whether each row is a whole number of blocks."""
        return stored.shape[1] % stored.facts["block_size"] == 0


@isolated
def blockwise(
    weight: Float[Tensor, "out inp"], *, bits: int, block_size: int | None = 64, data_type: str = "int"
) -> Blockwise:
    """Quantize each block of the flattened weight to the nearest levels of a data type.

    Args:
        weight: (out, inp), any float dtype, computed in float32; not modified.
        bits: k, 2 to 8 (3 to 8 for "float", 1 to 8 for "quantile", 4 for "nf4").
        block_size: B, values that share a scale; ``inp`` is one scale a row. None: one for the whole matrix.
        data_type: "int", "float", "quantile" or "nf4".
    Returns:
        codes, scales and levels; 16/B bits a weight beside the codes.
    Raises:
        ValueError: bits, block_size or data_type outside what is allowed; NaN or inf in weight, or a magnitude beyond
            the range of float16 (65504).
    Guarantee: |w − ŵ| ≤ m_b · (largest distance of a number in [−1, 1] to its level), up to the rounding of m_b to
        float16. A block of zeros, or of magnitudes below float16's smallest (6e-8), decodes to exact zeros.
    """
    weight = check_weight(weight)
    _check(bits, block_size, data_type)
    w = weight.float()
    if float(w.abs().max()) > torch.finfo(torch.float16).max:
        raise ValueError(f"weight holds {float(w.abs().max()):.4g}, beyond float16, in which scales are kept")
    size = min(block_size or w.numel(), w.numel())
    padding = -w.numel() % size
    blocks = torch.nn.functional.pad(w.reshape(-1), (0, padding)).reshape(-1, size)
    scale = blocks.abs().amax(1).half()
    divisor = torch.where(scale > 0, scale, torch.ones_like(scale)).float()
    normal = (blocks / divisor[:, None]).reshape(-1)[: w.numel()]
    if data_type == "quantile":
        levels = quantile_codebook(normal.cpu(), 2**bits, representative="median").levels.half().float()
        levels = levels.to(w.device)
    else:
        levels = data_type_levels(data_type, bits).to(w.device)
    codes = torch.bucketize(normal, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
    return Blockwise(codes.reshape(w.shape), scale, levels, bits, size, data_type == "quantile")


@isolated
def data_type_levels(data_type: str, bits: int) -> Float[Tensor, " levels"]:
    """Return the levels of "int", "float" or "nf4" at ``bits`` bits, ascending from −1 to 1, with zero, float32.

    Raises:
        ValueError: another data type, or bits that it does not have.
    """
    if data_type == "quantile":
        raise ValueError('the levels of "quantile" belong to a tensor; ask for "int", "float" or "nf4"')
    _check(bits, None, data_type)
    if data_type == "nf4":
        return nf4_codebook().levels.float()
    if data_type == "int":
        positive = torch.arange(2 ** (bits - 1), dtype=torch.float64)
    else:
        exponent_bits = 2 if bits < 5 else 3
        steps = 2 ** (bits - 1 - exponent_bits)
        mantissa = torch.arange(steps, dtype=torch.float64) / steps
        normal = [(1 + mantissa) * 2.0**e for e in range(2**exponent_bits - 1)]
        positive = torch.cat([mantissa, *normal])
    positive = positive / positive[-1]
    return torch.cat([-positive[1:].flip(0), positive]).float()


def _check(bits: int, block_size: int | None, data_type: str) -> None:
    check_choice("data_type", data_type, DATA_TYPES)
    check_bits(bits)
    allowed = DATA_TYPES[data_type]
    if bits not in allowed:
        raise ValueError(f"data type {data_type!r} has {allowed[0]} to {allowed[-1]} bits, got {bits}")
    if block_size is not None:
        check_whole("block_size", block_size, 1)
