"""Which operations the running torch has for which data type: found by trying, not by reading.

Each operation is called on a small matrix of the type, and what it returns is compared with the same in float64.
Source: Shen et al. 2020, arXiv:1909.05840 (hardware takes some widths only); the PyTorch that runs.   Syllabus: 4.06
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from mlcomp.context import isolated

FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn_x2")
DTYPES = (*FLOATS, "int64", "int32", "int16", "int8", "uint8", "bool", "int4", "uint4", "int3", "int2", "int1")

# What is tried; each takes a square matrix.
OPERATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "store": Tensor.clone,
        "add": lambda x: x + x,
        "multiply": lambda x: x * x,
        "sum": Tensor.sum,
        "matmul": lambda x: x @ x,
        "linear": lambda x: F.linear(x, x.T),
        "conv2d": lambda x: F.conv2d(x[None, None], x[None, None, :3, :3]),
        "int8 to int32 matmul": lambda x: torch._int_mm(x, x),
    }
)
# The same in float64, where the operation is for one type only.
_REFERENCE = {"int8 to int32 matmul": OPERATIONS["matmul"]}


@dataclass(frozen=True)
class Support:
    """What trying showed.

    Attributes:
        works: it ran, and its numbers are right.
        says: "", or the first line of the error, or how many numbers are wrong.
    """

    works: bool
    says: str = ""


@isolated
def dtype_support(
    dtypes: Iterable[str] = DTYPES, operations: Iterable[str] = tuple(OPERATIONS), *, device: str = "cpu"
) -> dict[str, dict[str, Support]]:
    """Try every operation on every data type, with the torch and on the device that run.

    Args:
        dtypes: names of ``torch.dtype`` objects. One that this torch does not have is no error, but an answer.
        operations: names in ``OPERATIONS``.
        device: "cpu", "cuda", …
    Returns:
        dtype → operation → what happened.
    Raises:
        ValueError: an unknown operation.
    Guarantee: "works" means that the numbers equal those of float64 on matrices of zeros and ones, 32 by 32, whose
        products every type here holds exactly; it says nothing of speed.
    """
    operations = tuple(operations)
    unknown = [name for name in operations if name not in OPERATIONS]
    if unknown:
        raise ValueError(f"operations must be among {', '.join(OPERATIONS)}, got {', '.join(map(repr, unknown))}")
    return {dtype: {name: _try(dtype, name, device) for name in operations} for dtype in dtypes}


def _try(name: str, operation: str, device: str) -> Support:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        return Support(False, f"torch {torch.__version__} has no {name}")
    # Every seventh entry is a one: sums of 32 products stay below 8, which three bits of fraction hold.
    x = (torch.arange(1024, dtype=torch.float64).reshape(32, 32) % 7 == 0).double()
    want = _REFERENCE.get(operation, OPERATIONS[operation])(x)
    try:
        got = OPERATIONS[operation](x.to(dtype).to(device)).to("cpu", torch.float64)
    except (RuntimeError, TypeError, NotImplementedError) as problem:
        return Support(False, (str(problem) or type(problem).__name__).splitlines()[0])
    wrong = int((got != want).sum())
    return Support(not wrong, f"{wrong} of {want.numel()} numbers are wrong" if wrong else "")
