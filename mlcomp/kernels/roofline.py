r"""All kernels under one roof: what each can reach at most, counted on paper, beside what was measured.

Notation: B bytes that must move, F operations; intensity $F/B$ [operations/byte]; on a machine with a given bandwidth
and rate the limit is $T^* = \max(B/\mathrm{bandwidth}, F/\mathrm{rate})$, and the highest rate $F/T^*$.
Every operation counts one, a multiply-add two; where operations run on slower units than the rate is of, they count
more (comparisons of k-means, exponentials of the softmax), as in ``benchmarks/kernels``.
Source: Williams, Waterman, Patterson 2009, "Roofline", Communications of the ACM 52(4).   Syllabus: 1.18
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Ceilings measured there: a large copy, and large products; int8 as twice bf16 [bytes/s, operations/s].
DEVICE = "NVIDIA H100 80GB HBM3"
BANDWIDTH = 3.03e12
RATES = {"fp32": 51.6e12, "bf16": 0.74e15, "int8": 1.48e15}


Counts = tuple[float | int, float | int, str]  # bytes, operations, unit


@dataclass(frozen=True)
class Counted:
    """A kernel at one shape.

    Attributes:
        operation, shape: as in the table of measurements.
        nbytes: the fewest bytes that must move. work: operations, at the rate of ``unit``.
    """

    operation: str
    shape: str
    nbytes: float | int
    work: float | int
    unit: str

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.work / self.nbytes

    @property
    def limit(self) -> float:
        """T*, [s]."""
        return max(self.nbytes / BANDWIDTH, self.work / RATES[self.unit])


def linear(weight: float | int, tokens: int, *, out: int, inp: int, size: int = 2) -> tuple[float | int, int]:
    """Return bytes and operations of a product: ``weight`` bytes a weight, x and y in ``size`` bytes a number."""
    return weight * out * inp + size * tokens * (inp + out), 2 * tokens * out * inp


def counts(operation: str, *, out: int, inp: int, tokens: int = 1, size: int = 2) -> Counts:
    """Return bytes, operations and unit of a kernel.

    Args:
        operation: the kernel's name.
        out, inp: of the weight; samples and classes of ``soft_target_loss``; rows and columns of ``absmax_int8`` and
            ``hadamard_transform``; entries and points of ``kmeans_assign``, in 8 dimensions; neurons and inputs of
            ``sparse_gated_mlp``, of which half are active.
        tokens: rows of x. ``llm_int8`` has 32 outlier columns among the inputs.
        size: bytes of an activation.
    """
    n = out * inp
    shape: dict[str, int] = {"out": out, "inp": inp, "size": size}
    dense = {
        "w4a16_matmul": 0.5 + 4 / 128, "nf4_matmul": 0.5 + 1 / 64 + 4 / 64 / 256, "int8_matmul": 1, "llm_int8": 1,
    }  # fmt: skip
    if operation in dense:
        nbytes, work = linear(dense[operation], tokens, **shape)
        extra = 32 * (size * tokens + 2 * out) if operation == "llm_int8" else 0
        return nbytes + extra, work, "int8" if "int8" in operation else "bf16"
    if operation == "two_four_matmul":
        return linear(size / 2 + 1 / 8, tokens, **shape)[0], tokens * n, "bf16"
    if operation == "onebit_matmul":
        return linear(1 / 8, tokens, **shape)[0] + 4 * (out + inp), 3 * tokens * n, "fp32"
    if operation in ("gptq", "sparsegpt", "quantized_sparsegpt"):
        return 8 * n + 4 * inp**2, out * inp**2 + inp**3, "fp32"
    table: dict[str, Counts] = {
        "absmax_int8": (3 * n + 4 * out, 3 * n, "fp32"),
        "hadamard_transform": (2 * size * n, 12 * n, "fp32"),
        "additive_decode": ((0.25 + size) * n, 3 * n, "fp32"),
        "additive_matvec": (0.25 * n + size * (out + inp), 2 * n / 4, "fp32"),
        "kmeans_assign": ((8 * size + 4) * inp + 32 * out, 8 * n, "fp32"),
        "exact_obs": (8 * n + 4 * inp**2, n * (inp // 2) ** 2, "fp32"),
        "obq": (5 * n + 4 * inp**2, n * inp**2, "fp32"),
        "sparse_gated_mlp": (2 * size * n, 4 * n, "bf16"),
        "soft_target_loss": (5 * size * n, 40 * n, "fp32"),
        "xnor_matmul": (n / 8 + tokens * inp / 8 + 4 * tokens * out, 3 * tokens * n / 32, "fp32"),
    }
    return table[operation]


_LAYER = {"out": 14336, "inp": 4096}  # the MLP of a language model of 8 billion parameters
_SHAPES: dict[str, tuple[str, dict[str, int]]] = {
    "absmax_int8": ("4096×14336", {"out": 4096, "inp": 14336}),
    "hadamard_transform": ("8192×4096", {"out": 8192, "inp": 4096}),
    "additive_decode": ("14336×4096, 2×8 bits", _LAYER),
    "additive_matvec": ("14336×4096, 2×8 bits", _LAYER),
    "w4a16_matmul": ("1×4096 · 14336×4096 g128", _LAYER),
    "nf4_matmul": ("1×4096 · 14336×4096", _LAYER),
    "two_four_matmul": ("1×4096 · 14336×4096", _LAYER),
    "onebit_matmul": ("1×4096 · 14336×4096", _LAYER),
    "sparse_gated_mlp": ("1×4096, 14336 neurons, 50% inactive", _LAYER),
    "xnor_matmul": ("8×4096 · 14336×4096", _LAYER | {"tokens": 8}),
    "soft_target_loss": ("8192×128256 forward", {"out": 8192, "inp": 128256}),
    "int8_matmul": ("4096×4096 · 14336×4096", _LAYER | {"tokens": 4096}),
    "llm_int8": ("4096×4096 · 14336×4096, 32 outliers", _LAYER | {"tokens": 4096}),
    "kmeans_assign": ("7340032×8, 256 entries", {"out": 256, "inp": 7_340_032}),
    "exact_obs": ("4096×128, 50 % of each row", {"out": 4096, "inp": 128}),
    "obq": ("4096×128, 4 bits", {"out": 4096, "inp": 128}),
    "gptq": ("4096×14336, 4 bits, g128", {"out": 4096, "inp": 14336}),
    "sparsegpt": ("4096×14336, 2:4", {"out": 4096, "inp": 14336}),
    "quantized_sparsegpt": ("4096×14336, 2:4, 4 bits, g128", {"out": 4096, "inp": 14336}),
}
KERNELS = tuple(Counted(name, shape, *counts(name, **sizes)) for name, (shape, sizes) in _SHAPES.items())


def measured_seconds(rows: Iterable[Mapping[str, str]]) -> dict[str, float]:
    """Return the least median of each kernel at its shape in ``KERNELS``, from rows of the table of measurements."""
    shapes, found = {k.operation: k.shape for k in KERNELS}, dict[str, float]()
    for row in rows:
        name, wanted = row["operation"], (DEVICE, "kernel", shapes.get(row["operation"]))
        if (row["device"], row["version"], row["shape"]) == wanted:
            found[name] = min(float(row["median_us"]) * 1e-6, found.get(name, float("inf")))
    return found


def picture_of_kernels(seconds: Mapping[str, float], *, text: str = "black") -> "Figure":
    """Draw every kernel's intensity, limit and, where it was measured, rate.

    Args:
        seconds: measured time by operation, at the shape in ``KERNELS``.
        text: colour of words and lines.
    Returns:
        A matplotlib figure: operations per second against operations per byte, both logarithmic. A ring is the limit,
        a disk what was measured, on one vertical line; a kernel without a disk was not measured.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 6.2), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlim=(1e-3, 3e6), ylim=(1e11, 5e15))
    for unit, rate in RATES.items():
        axes.plot([0.3, rate / BANDWIDTH, 2e4], [0.3 * BANDWIDTH, rate, rate], color=text, lw=1, alpha=0.6)
        axes.text(1.9e4, 1.12 * rate, unit, color=text, size=9, ha="right")
    axes.text(60, 1.6e14, f" {BANDWIDTH / 1e12:.2f} TB/s", color=text, size=9, va="top")
    for kernel in KERNELS:
        axes.plot(kernel.intensity, kernel.work / kernel.limit, "o", mfc="none", mec="#c96a10", ms=7, mew=1.5)
        if kernel.operation in seconds:
            ends = [kernel.work / kernel.limit, kernel.work / seconds[kernel.operation]]
            axes.plot([kernel.intensity] * 2, ends, color="#2f7fc1", lw=1)
            axes.plot(kernel.intensity, ends[1], "o", color="#2f7fc1", ms=5)
    _label(axes, [k for k in KERNELS if k.intensity < 50], seconds, text, left=True)
    _label(axes, [k for k in KERNELS if k.intensity >= 50], seconds, text, left=False)
    axes.set_xticks([1, 10, 100, 1000, 10_000])
    axes.minorticks_off()
    axes.set_xlabel("intensity [operations/byte]", color=text)
    axes.set_ylabel("rate [operations/s]", color=text)
    axes.tick_params(colors=text)
    for side in axes.spines.values():
        side.set_color(text)
    return figure


def _label(axes: "Axes", kernels: list[Counted], seconds: Mapping[str, float], text: str, *, left: bool) -> None:
    """Write names in a column, in the order of the limits, with a line to each ring."""
    ranked = sorted(kernels, key=lambda k: (k.work / k.limit, -k.intensity))
    low, high = (3e11, 1.5e15) if left else (2e12, 2.5e15)
    edge = 0.25 if left else 2.5e4
    for i, kernel in enumerate(ranked):
        y = low * (high / low) ** (i / max(1, len(ranked) - 1))
        share = kernel.limit / seconds[kernel.operation] if kernel.operation in seconds else None
        told = f"{kernel.operation} {share:.2f}" if share is not None else kernel.operation
        style, side = "normal" if share else "italic", "right" if left else "left"
        axes.text(edge, y, told, color=text, size=9, style=style, ha=side, va="center")
        line = [edge * (1.1 if left else 0.9), kernel.intensity], [y, kernel.work / kernel.limit]
        axes.plot(*line, color=text, lw=0.5, alpha=0.45, zorder=0)
