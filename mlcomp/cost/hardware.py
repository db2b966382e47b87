"""Published figures of what arithmetic costs: energy of an operation, speed and bandwidth of a processor.

These numbers are quoted, not measured here. Peak rates count a multiply-add as two operations and are upper bounds
that real kernels do not reach.

Source: energy: Horowitz 2014, "Computing's energy problem (and what we can do about it)", ISSCC, figure 1.1.9 (45 nm,
0.9 V); table of ratios: Wu et al. 2020, arXiv:2004.09602, table 1; T4, A100, H100: data sheets and architecture
white papers of NVIDIA, 2018, 2020, 2022.   Syllabus: 1.01, 1.18
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class OperationEnergy:
    """Energy of one addition and one multiplication, [pJ]."""

    add: float
    mul: float

    @property
    def mac(self) -> float:
        """A multiplication and an addition in the same format, [pJ]."""
        return self.add + self.mul


@dataclass(frozen=True)
class Ratio:
    """A row of the table of ratios to fp32: how much faster tensor cores compute, how many times fewer bytes move."""

    math: int
    bandwidth: int


@dataclass(frozen=True)
class Chip:
    """Peak figures of a processor.

    Attributes:
        name: as sold.
        bandwidth: of its memory, [bytes/s].
        peak: format → dense operations per second (a multiply-add is two).
        peak_2_4: the same with a 2:4-sparse weight, for the formats whose tensor cores skip the zeros.
    """

    name: str
    bandwidth: float
    peak: Mapping[str, float]
    peak_2_4: Mapping[str, float]


ENERGY: dict[str, OperationEnergy] = {
    "int8": OperationEnergy(add=0.03, mul=0.2),
    "fp16": OperationEnergy(add=0.4, mul=1.1),
    "int32": OperationEnergy(add=0.1, mul=3.1),
    "fp32": OperationEnergy(add=0.9, mul=3.7),
}

# Horowitz gives 1.3 to 2.6 nJ for 64 bits from DRAM; the lower end, [pJ/byte].
DRAM_PJ_PER_BYTE = 1300 / 8

# Turing tensor cores. The source accumulates whole numbers in int32; the lecture's slide writes the input type there.
TURING_RATIOS: dict[str, Ratio] = {
    "fp16": Ratio(math=8, bandwidth=2),
    "int8": Ratio(math=16, bandwidth=4),
    "int4": Ratio(math=32, bandwidth=8),
    "int1": Ratio(math=128, bandwidth=32),
}

# int1 is not on the T4's data sheet: the table's 128 × fp32.
T4 = Chip(
    "T4",
    bandwidth=320e9,
    peak={"fp32": 8.1e12, "fp16": 65e12, "int8": 130e12, "int4": 260e12, "int1": 128 * 8.1e12},
    peak_2_4={},
)

A100 = Chip(
    "A100 80 GB SXM",
    bandwidth=2.039e12,
    peak={
        "fp32": 19.5e12,
        "tf32": 156e12,
        "fp16": 312e12,
        "bf16": 312e12,
        "int8": 624e12,
        "int4": 1248e12,
        "int1": 4992e12,
    },
    peak_2_4={"tf32": 312e12, "fp16": 624e12, "bf16": 624e12, "int8": 1248e12, "int4": 2496e12},
)

H100 = Chip(
    "H100 80 GB SXM",
    bandwidth=3.35e12,
    peak={
        "fp32": 66.9e12,
        "tf32": 494.7e12,
        "fp16": 989.4e12,
        "bf16": 989.4e12,
        "fp8_e4m3": 1978.9e12,
        "fp8_e5m2": 1978.9e12,
        "int8": 1978.9e12,
    },
    peak_2_4={
        "tf32": 989.4e12,
        "fp16": 1978.9e12,
        "bf16": 1978.9e12,
        "fp8_e4m3": 3957.8e12,
        "fp8_e5m2": 3957.8e12,
        "int8": 3957.8e12,
    },
)
