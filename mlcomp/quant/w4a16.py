r"""Products of 16-bit activations with packed 4-bit weights: the storage, and the readable product.

Notation: W weight (out, inp) as codes q with step s and zero code z for each group of columns; x activations.
$y = x\,W^\top$ with $W_{nk} = s_{n,g(k)}\,(q_{nk} - z_{n,g(k)})$.
Layout: 128 columns of a row are 16 words of 32 bits. Word i holds columns $i, 16+i, \dots, 112+i$, the first in its
lowest 4 bits, so one shift and one mask of 16 neighbouring words give 16 neighbouring columns: a kernel multiplies
without moving a nibble to another thread. The last 128 columns are padded with zero codes.
Source: the format of weight-only kernels (Frantar et al. 2024, arXiv:2408.11743, section 3); layout ours.
Syllabus: 1.03
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float16, Int32, UInt8
from torch import Tensor

from mlcomp.quant.quantized import Quantized

BLOCK = 128  # columns in a block
WORDS = 16  # 32-bit words that hold them


@dataclass(frozen=True)
class PackedW4:
    """A 4-bit weight ready for multiplication.

    Attributes:
        words: (out, 16·blocks) int32, eight codes a word.
        step: (out, groups) float16 [weight units].
        zero: (out, groups), the code of the value 0.
        inp: columns of the weight, which the last block may exceed.
    """

    words: Int32[Tensor, "out words"]
    step: Float16[Tensor, "out groups"]
    zero: UInt8[Tensor, "out groups"]
    inp: int

    @property
    def group_size(self) -> int:
        """Columns that share a step."""
        return self.inp // self.step.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes as stored: words, float16 steps, a byte for each zero code."""
        return self.words.numel() * 4 + self.step.numel() * 2 + self.zero.numel()

    def dequantize(self) -> Float[Tensor, "out inp"]:
        """Return the weight (out, inp) in float32."""
        out = len(self.words)
        words = self.words.reshape(out, -1, 1, WORDS)
        shifts = torch.arange(0, 32, 4, device=words.device, dtype=torch.int32).reshape(8, 1)
        codes = ((words >> shifts) & 15).reshape(out, -1)[:, : self.inp]
        group = torch.arange(self.inp, device=words.device) // self.group_size
        return (codes - self.zero[:, group].float()) * self.step[:, group].float()


def pack_w4(quantized: Quantized) -> PackedW4:
    """Pack the 4-bit result of :func:`mlcomp.quant.rtn` or :func:`mlcomp.obs.gptq`.

    Args:
        quantized: 4 bits; groups of consecutive columns, their size a multiple of 16, or one for a row or the tensor.
    Raises:
        ValueError: other bits, groups of scattered columns or of another size, a step float16 cannot hold.
    Guarantee: dequantize() equals ``quantized.dequantize()`` with its steps rounded to float16.
    """
    out, inp = quantized.codes.shape
    if quantized.bits != 4 or quantized.group is not None:
        where = "consecutive" if quantized.group is None else "scattered"
        raise ValueError(f"the packed product takes 4 bits and consecutive groups, got {quantized.bits} bits, {where}")
    groups = quantized.step.shape[1]
    if groups > 1 and (inp // groups) % WORDS:
        raise ValueError(f"groups must hold a multiple of {WORDS} columns (or all of them), got {inp // groups}")
    step = quantized.step.to(torch.float16)
    if not torch.isfinite(step).all() or (step < torch.finfo(torch.float16).smallest_normal).any():
        low, high = float(quantized.step.min()), float(quantized.step.max())
        raise ValueError(f"float16 holds steps from 6.1e-5 to 65504, got {low:.3g} … {high:.3g}: rescale the weight")
    codes = torch.nn.functional.pad(quantized.codes.long(), (0, -inp % BLOCK)).reshape(out, -1, 8, WORDS)
    words = torch.zeros(out, codes.shape[1], WORDS, dtype=torch.int64, device=codes.device)
    for plane in range(8):
        words |= codes[:, :, plane] << (4 * plane)
    words = torch.where(words < 2**31, words, words - 2**32).to(torch.int32)
    zero = quantized.zero.expand(out, groups).to(torch.uint8)
    return PackedW4(words.reshape(out, -1), step.expand(out, groups).contiguous(), zero.contiguous(), inp)


def w4a16_matmul(x: Float[Tensor, "tokens inp"], weight: PackedW4) -> Float[Tensor, "tokens out"]:
    """Return x · Wᵀ, accumulated in float32 and rounded once to the dtype of x.

    Args:
        x: (tokens, inp), any float dtype; not modified.
        weight: from :func:`pack_w4`.
    Raises:
        ValueError: x does not have the weight's number of columns.
    Cost: 2·tokens·out·inp FLOPs, and the whole weight in float32 as working memory.
    """
    if x.ndim != 2 or x.shape[1] != weight.inp:
        raise ValueError(f"x must be (tokens, {weight.inp}), got {tuple(x.shape)}")
    return (x.float() @ weight.dequantize().T).to(x.dtype)
