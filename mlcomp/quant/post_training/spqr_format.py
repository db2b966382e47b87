r"""The format of SpQR: codes, bilevel statistics of small groups, and outliers in compressed sparse rows.

Notation: b bits of a code, $b_s$ bits of a statistic (step or zero point), $\beta_1$ columns of a group, $\beta_2$
rows whose statistics share a second-level grid, r share of outliers.
Bits per weight: $b + 2b_s/\beta_1 + 4\cdot16/(\beta_1\beta_2) + 32r$, and 32 bits a row for pointers.
Source: Dettmers et al. 2023, arXiv:2306.03078, section 4.2, Figure 3.   Syllabus: 1.11
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float16, Int32, UInt8
from torch import Tensor

from mlcomp.context import isolated
from mlcomp.formats.packing import pack_planes, packed_nbytes, unpack_planes
from mlcomp.formats.stored import Stored, dtype_name, float_dtype, number, whole_numbers


@dataclass(frozen=True)
class Bilevel:
    """One statistic of all groups: codes on a grid that ``rows`` rows of a column of groups share.

    Attributes:
        codes: (out, groups) uint8.
        low, step: (⌈out/rows⌉, groups) float16: the value of code 0, and the step.
        bits: bits per code.
        rows: β₂; the last block may be shorter.
    """

    codes: UInt8[Tensor, "out groups"]
    low: Float16[Tensor, "blocks groups"]
    step: Float16[Tensor, "blocks groups"]
    bits: int
    rows: int

    def decode(self) -> Float[Tensor, "out groups"]:
        """Return the statistic, float32."""
        block = torch.arange(len(self.codes), device=self.codes.device) // self.rows
        return self.low[block].float() + self.step[block].float() * self.codes

    @property
    def nbytes(self) -> int:
        """Bytes as packed."""
        return packed_nbytes(self.codes.numel(), self.bits) + self.low.nbytes + self.step.nbytes

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors that are stored, packed, and the facts."""
        codes = pack_planes(self.codes, self.bits)
        facts = {"level": "bilevel", "bits": self.bits, "rows": self.rows}
        return {"codes": codes, "low": self.low.contiguous(), "step": self.step.contiguous()}, facts


@dataclass(frozen=True)
class Plain:
    """One statistic of all groups without a second level: values (out, groups) that take ``bits`` each."""

    values: Float[Tensor, "out groups"]
    bits: int

    def decode(self) -> Float[Tensor, "out groups"]:
        """Return the statistic."""
        return self.values

    @property
    def nbytes(self) -> int:
        """Bytes as packed."""
        return packed_nbytes(self.values.numel(), self.bits)

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensor that is stored, packed where the values are codes, and the facts."""
        facts = {"level": "plain", "bits": self.bits, "dtype": dtype_name(self.values.dtype)}
        if self.bits == 8 * self.values.element_size():
            return {"values": self.values.contiguous()}, facts
        return {"values": pack_planes(whole_numbers("a plain statistic", self.values), self.bits)}, facts


@dataclass(frozen=True)
class SpQR:
    """A weight as codes on bilevel groups, with outliers beside them in compressed sparse rows.

    Attributes:
        codes: (out, inp) uint8, columns in the order of ``order``; those of outliers are not used.
        step, zero: the statistics of the groups, in units of ``unit`` and of codes.
        pointers: (out + 1,) int32: outliers of row i are pointers[i] … pointers[i + 1] − 1.
        columns: (outliers,) int32, each below 2¹⁶: the column of each outlier, in the order of ``order``.
        values: (outliers,) float16, in units of ``unit``.
        unit: a power of two [weight units], so that float16 fits weights of any size.
        bits: bits per code.
        order: (inp,) int32, each below 2¹⁶: where each stored column belongs. None: in its place.
    """

    codes: UInt8[Tensor, "out inp"]
    step: Bilevel | Plain
    zero: Bilevel | Plain
    pointers: Int32[Tensor, " out+1"]
    columns: Int32[Tensor, " outliers"]
    values: Float16[Tensor, " outliers"]
    unit: float
    bits: int
    order: Int32[Tensor, " inp"] | None = None

    @isolated
    def dequantize(self) -> Float[Tensor, "out inp"]:
        """Return the weight (out, inp) that all this stands for, in the dtype of the steps (float32 if bilevel)."""
        step, zero = self.step.decode(), self.zero.decode()
        size = self.codes.shape[1] // step.shape[1]
        step, zero = (part.repeat_interleave(size, dim=1) for part in (step, zero))
        weight = (self.codes - zero) * step
        weight[self._row, self.columns.long()] = self.values.to(weight.dtype)
        return self._in_place(weight * self.unit)

    @property
    @isolated
    def outliers(self) -> Bool[Tensor, "out inp"]:
        """Where the outliers are."""
        mask = torch.zeros(self.codes.shape, dtype=torch.bool, device=self.codes.device)
        mask[self._row, self.columns.long()] = True
        return self._in_place(mask)

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of each part as packed: 16 bits for each column index, 32 for each row pointer and for the unit."""
        return {
            "codes": packed_nbytes(self.codes.numel(), self.bits),
            "steps": self.step.nbytes,
            "zero points": self.zero.nbytes,
            "outlier values": self.values.nbytes,
            "outlier columns": 2 * len(self.columns),
            "row pointers": self.pointers.nbytes,
            "column order": 0 if self.order is None else 2 * len(self.order),
            "unit": 4,
        }

    @property
    def nbytes(self) -> int:
        """Bytes as packed."""
        return sum(self.parts.values())

    @property
    def bits_per_weight(self) -> float:
        """``nbytes`` in bits over the number of weights."""
        return self.nbytes * 8 / self.codes.numel()

    def stored(self) -> Stored:
        """Return all parts, packed."""
        step, step_facts = self.step.parts()
        zero, zero_facts = self.zero.parts()
        tensors = {"codes": pack_planes(self.codes, self.bits), "pointers": self.pointers, "values": self.values}
        tensors |= {"columns": pack_planes(self.columns, 16), "unit": number("unit", self.unit)}
        tensors |= {f"step.{name}": part for name, part in step.items()}
        tensors |= {f"zero.{name}": part for name, part in zero.items()}
        if self.order is not None:
            tensors["order"] = pack_planes(self.order, 16)
        facts = {"shape": list(self.codes.shape), "bits": self.bits, "outliers": len(self.columns)}
        groups = self.step.decode().shape[1]
        return Stored("spqr", tensors, facts | {"groups": groups, "step": step_facts, "zero": zero_facts})

    @classmethod
    def from_stored(cls, stored: Stored) -> "SpQR":
        """Return what was stored."""
        tensors, facts = stored.tensors, stored.facts
        out, inp = stored.shape
        step, zero = (_statistic(stored, part, (out, facts["groups"])) for part in ("step", "zero"))
        codes = unpack_planes(tensors["codes"], facts["bits"], (out, inp))
        columns = unpack_planes(tensors["columns"], 16, (facts["outliers"],))
        order = unpack_planes(tensors["order"], 16, (inp,)) if "order" in tensors else None
        sparse = (tensors["pointers"], columns, tensors["values"])
        return cls(codes, step, zero, *sparse, float(tensors["unit"]), facts["bits"], order)

    @property
    def _row(self) -> Tensor:
        """The row of each outlier."""
        return torch.arange(len(self.codes), device=self.codes.device).repeat_interleave(self.pointers.diff())

    def _in_place(self, columns: Tensor) -> Tensor:
        """Return a matrix of stored columns with its columns where they belong."""
        return columns if self.order is None else columns[:, self.order.long().argsort()]


def _statistic(stored: Stored, part: str, shape: tuple[int, int]) -> Bilevel | Plain:
    """Return the statistic that is stored under this name."""
    facts = stored.facts[part]
    tensors = {key.removeprefix(f"{part}."): t for key, t in stored.tensors.items() if key.startswith(f"{part}.")}
    if facts["level"] == "bilevel":
        codes = unpack_planes(tensors["codes"], facts["bits"], shape)
        return Bilevel(codes, tensors["low"], tensors["step"], facts["bits"], facts["rows"])
    values, dtype = tensors["values"], float_dtype(facts["dtype"])
    if values.dtype == dtype:
        return Plain(values, facts["bits"])
    return Plain(unpack_planes(values, facts["bits"], shape).to(dtype), facts["bits"])
