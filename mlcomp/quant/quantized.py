"""The result of every uniform weight quantizer: codes, the grids they live on, and the honest size.

Syllabus: 1.02, 1.03
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mlcomp.context import isolated
from mlcomp.formats.packing import pack_planes, packed_nbytes, unpack_planes
from mlcomp.formats.stored import Stored, dtype_name, float_dtype, whole_numbers


@dataclass(frozen=True)
class Quantized:
    """A weight as integer codes on affine grids, one grid for each row and group of columns.

    Attributes:
        codes: (out, inp) uint8, 0 … 2^bits − 1.
        step: (rows, groups) [weight units], in the dtype it is stored in; rows is out, or 1 for one grid per tensor.
        zero: (rows, groups), the code of the value 0.
        bits: bits per code.
        symmetric: the zero code is 2^(bits−1) everywhere and is not stored.
        group: (inp,) the group of each column, where groups are not consecutive equal runs; else None.
    """

    codes: UInt8[Tensor, "out inp"]
    step: Float[Tensor, "rows groups"]
    zero: Float[Tensor, "rows groups"]
    bits: int
    symmetric: bool
    group: Int[Tensor, " inp"] | None = None

    @isolated
    def dequantize(self) -> Float[Tensor, "out inp"]:
        """Return the weight (out, inp) that the codes stand for, in the dtype of ``step``, at least float32."""
        step = self.step if self.step.dtype == torch.float64 else self.step.float()
        values = self.codes.to(torch.promote_types(step.dtype, self.zero.dtype))
        if self.group is not None:
            return (values - self.zero[:, self.group]) * step[:, self.group]
        grouped = values.reshape(len(values), step.shape[1], -1)
        # In place: a packed layer decodes at every call, and new memory would take longer than the arithmetic.
        return grouped.sub_(self.zero[:, :, None]).mul_(step[:, :, None]).reshape(self.codes.shape)

    @property
    def nbytes(self) -> int:
        """Bytes as packed by :func:`mlcomp.formats.pack`, each array padded to whole bytes.

        Codes take ``bits`` each, steps their dtype, zero codes ``bits`` each where they are stored, and an explicit
        group index ⌈log₂ groups⌉ bits for each column.
        """
        size = packed_nbytes(self.codes.numel(), self.bits) + self.step.nbytes
        if not self.symmetric:
            size += packed_nbytes(self.zero.numel(), self.bits)
        if self.group is not None:
            size += packed_nbytes(self.group.numel(), (self.step.shape[1] - 1).bit_length())
        return size

    @property
    def bits_per_weight(self) -> float:
        """``nbytes`` in bits over the number of weights."""
        return self.nbytes * 8 / self.codes.numel()

    def stored(self) -> Stored:
        """Return codes, steps, and the zero codes and group index where they are stored, packed.

        Raises:
            ValueError: zero codes or a group index that do not fit the bits that are counted for them.
        """
        tensors = {"codes": pack_planes(self.codes, self.bits), "step": self.step.contiguous()}
        facts = {"shape": list(self.codes.shape), "bits": self.bits, "symmetric": self.symmetric}
        if self.symmetric:
            if not bool((self.zero == 2 ** (self.bits - 1)).all()):
                raise ValueError(f"the zero code of a symmetric grid of {self.bits} bits is {2 ** (self.bits - 1)}")
        else:
            tensors["zero"] = pack_planes(whole_numbers("zero", self.zero), self.bits)
        if self.group is not None:
            tensors["group"] = pack_planes(self.group, (self.step.shape[1] - 1).bit_length())
        return Stored("quantized", tensors, facts | {"zero_dtype": dtype_name(self.zero.dtype)})

    @classmethod
    def from_stored(cls, stored: Stored, start: int = 0, stop: int | None = None) -> "Quantized":
        """Return what was stored, or some of its rows."""
        tensors, facts, bits = stored.tensors, stored.facts, stored.facts["bits"]
        codes = unpack_planes(tensors["codes"], bits, stored.shape, start=start, stop=stop)
        step = tensors["step"]
        rows = (start, stop) if len(step) == stored.shape[0] else (0, None)  # one grid for the whole matrix is shared
        dtype = float_dtype(facts["zero_dtype"])
        if facts["symmetric"]:
            zero = torch.full(step.shape, 2.0 ** (bits - 1), dtype=dtype, device=step.device)[slice(*rows)]
        else:
            zero = unpack_planes(tensors["zero"], bits, tuple(step.shape), start=rows[0], stop=rows[1]).to(dtype)
        group = None
        if "group" in tensors:
            index_bits = (step.shape[1] - 1).bit_length()
            group = unpack_planes(tensors["group"], index_bits, stored.shape[1:]).long()
        return cls(codes, step[slice(*rows)], zero, bits, facts["symmetric"], group)

    @staticmethod
    def by_rows(stored: Stored) -> bool:
        """Return True: each row has its own codes and grids."""
        return True
