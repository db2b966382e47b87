r"""Products of 16-bit activations with packed 4-bit weights: the storage, and the readable product.

Notation: W weight (out, inp) as codes q with step s and zero code z for each group of columns; x activations.
$y = x\,W^\top$ with $W_{nk} = s_{n,g(k)}\,(q_{nk} - z_{n,g(k)})$.
Layout: P neighbouring columns are a plane, P = 32 or 16; eight planes of a row are P words of 32 bits. Word i
holds column i of each plane, the first plane in its lowest 4 bits. So one shift and one mask of P neighbouring words
give P neighbouring columns: a kernel multiplies a plane without moving any code to another thread. The last columns
are padded with zero codes. Step and zero code of a group share one 32-bit word.
Source: the format of weight-only kernels (Frantar et al. 2024, arXiv:2408.11743, section 3); layout ours.
Syllabus: 1.03
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from mlcomp.checks import check_values, narrowed
from mlcomp.context import isolated
from mlcomp.formats.stored import Stored
from mlcomp.quant.quantized import Quantized

PLANES = 8  # 4-bit codes in a word


@dataclass(frozen=True)
class PackedW4:
    """A 4-bit weight ready for multiplication.

    Attributes:
        words: (out, blocks·plane) int32, eight codes a word.
        grid: (groups, out) int32: the bits of the float16 step [weight units] below, the zero code above.
        inp: columns of the weight, which the last block may exceed.
        plane: columns in a plane.
    """

    words: Int32[Tensor, "out words"]
    grid: Int32[Tensor, "groups out"]
    inp: int
    plane: int

    @property
    def group_size(self) -> int:
        """Columns that share a step."""
        return self.inp // len(self.grid)

    @property
    @isolated
    def step(self) -> Float[Tensor, "out groups"]:
        """The steps, [weight units], as float32."""
        return (self.grid.T & 0xFFFF).to(torch.int16).view(torch.float16).float()

    @property
    @isolated
    def zero(self) -> Float[Tensor, "out groups"]:
        """The codes of the value 0, as float32."""
        return (self.grid.T >> 16).float()

    @property
    def nbytes(self) -> int:
        """Bytes as stored: eight codes a word and a word for each group."""
        return (self.words.numel() + self.grid.numel()) * 4

    @property
    def bits_per_weight(self) -> float:
        """``nbytes`` in bits over the number of weights, padded columns included."""
        return self.nbytes * 8 / (len(self.words) * self.inp)

    @isolated
    def dequantize(self) -> Float[Tensor, "out inp"]:
        """Return the weight (out, inp) in float32."""
        out = len(self.words)
        words = self.words.reshape(out, -1, 1, self.plane)
        shifts = torch.arange(0, 32, 4, device=words.device, dtype=torch.int32).reshape(PLANES, 1)
        codes = ((words >> shifts) & 15).reshape(out, -1)[:, : self.inp]
        group = torch.arange(self.inp, device=words.device) // self.group_size
        return (codes - self.zero[:, group]) * self.step[:, group]

    def stored(self) -> Stored:
        """Return words and grid as they are."""
        facts = {"shape": [len(self.words), self.inp], "plane": self.plane}
        return Stored("packed_w4", {"words": self.words.contiguous(), "grid": self.grid.contiguous()}, facts)

    @classmethod
    def from_stored(cls, stored: Stored, start: int = 0, stop: int | None = None) -> "PackedW4":
        """Return what was stored, or some of its rows."""
        words, grid = stored.tensors["words"][start:stop], stored.tensors["grid"][:, start:stop]
        return cls(words, grid, stored.shape[1], stored.facts["plane"])

    @staticmethod
    def by_rows(stored: Stored) -> bool:
        """Return True: each row has its own words and grids."""
        return True


@isolated
def pack_w4(quantized: Quantized) -> PackedW4:
    """Pack the 4-bit result of :func:`mlcomp.quant.rtn` or :func:`mlcomp.quant.gptq`.

    Args:
        quantized: 4 bits; groups of consecutive columns, their size a multiple of 16, or one for a row or the tensor.
    Raises:
        ValueError: other bits, groups of scattered columns or of another size, a step float16 cannot hold.
    Guarantee: dequantize() equals ``quantized.dequantize()`` with its steps rounded to float16.
    """
    out, inp = quantized.codes.shape
    if quantized.bits != 4 or quantized.group is not None:
        where = "consecutive" if quantized.group is None else "scattered"
        raise ValueError(
            f"the packed product takes 4 bits and consecutive groups, got {quantized.bits} bits, {where}"
        )
    groups = quantized.step.shape[1]
    if groups > 1 and (inp // groups) % 16:
        raise ValueError(f"groups must hold a multiple of 16 columns (or all of them), got {inp // groups}")
    step = quantized.step.to(torch.float16)
    if not torch.isfinite(step).all() or (step < torch.finfo(torch.float16).smallest_normal).any():
        low, high = float(quantized.step.min()), float(quantized.step.max())
        raise ValueError(f"float16 holds steps from 6.1e-5 to 65504, got {low:.3g} … {high:.3g}: rescale the weight")
    # The plane that pads least, the widest of those; a group must be whole planes.
    fitting = [p for p in (32, 16) if groups == 1 or (inp // groups) % p == 0]
    plane = min(fitting, key=lambda p: -inp % (PLANES * p))
    codes = torch.nn.functional.pad(quantized.codes.long(), (0, -inp % (PLANES * plane)))
    codes = codes.reshape(out, -1, PLANES, plane)
    words = torch.zeros(out, codes.shape[1], plane, dtype=torch.int64, device=codes.device)
    for index in range(PLANES):
        words |= codes[:, :, index] << (4 * index)
    words = torch.where(words < 2**31, words, words - 2**32).to(torch.int32)
    grid = (step.contiguous().view(torch.int16).int() & 0xFFFF) | (quantized.zero.int() << 16)
    return PackedW4(words.reshape(out, -1), grid.expand(out, groups).T.contiguous(), inp, plane)


@isolated
def w4a16_matmul(x: Float[Tensor, "tokens inp"], weight: PackedW4) -> Float[Tensor, "tokens out"]:
    """Return x · Wᵀ, accumulated in float32 and rounded once to the dtype of x.

    Args:
        x: (tokens, inp), any float dtype; not modified.
        weight: from :func:`pack_w4`.
    Raises:
        ValueError: x does not have the weight's number of columns, NaN or inf; a result beyond its dtype.
    Cost: 2·tokens·out·inp FLOPs, and the whole weight in float32 as working memory.
    """
    check_values("x", x)
    if x.ndim != 2 or x.shape[1] != weight.inp:
        raise ValueError(f"x must be (tokens, {weight.inp}), got {tuple(x.shape)}")
    return narrowed(x.float() @ weight.dequantize().T, x.dtype)
