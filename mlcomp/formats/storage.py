r"""What a sparse matrix costs to store: dense, CSR, bitmask and n:m, to the byte.

Notation: (out, inp) shape, nnz kept weights, v bits per value. Each part is an array of its own, padded to whole
bytes.

| format | values | where they are |
|---|---|---|
| dense | out·inp·v | nothing |
| csr | nnz·v | nnz column indices, out + 1 row pointers |
| bitmask | nnz·v | out·inp bits |
| n:m | (m − n) slots in each block of m, ·v | the place in its block of each slot: ⌈log₂ m⌉ bits (2:4: 2 bits) |

Source: Mishra et al. 2021, arXiv:2104.08378, section 3 (2:4 and its metadata).   Syllabus: 2.10, 3.06
"""

from torch import Tensor

from mlcomp.checks import check_choice, check_pattern, check_tensor
from mlcomp.context import isolated
from mlcomp.formats.packing import packed_nbytes

FORMATS = ("dense", "csr", "bitmask", "n:m")


def sparse_nbytes(
    shape: tuple[int, int],
    nnz: int,
    *,
    format: str,
    value_bits: int,
    pattern: tuple[int, int] | None = None,
    index_bits: int = 32,
) -> int:
    """Return the bytes of a matrix with ``nnz`` non-zero weights in a storage format.

    Args:
        shape: (out, inp). nnz: weights that are not zero; for a tensor ``int(weight.count_nonzero())``.
        format: "dense", "csr", "bitmask" or "n:m".
        value_bits: bits of one stored value: 32, 16, or those of its code (scales are accounted for elsewhere).
        pattern: (n, m), n zeros in every m inputs; for "n:m" alone. A short last block of t inputs has
            t − floor(n·t/m) slots.
        index_bits: for "csr" alone: bits of one column index and of one row pointer, 32 in common libraries.
    Returns:
        Bytes, each array rounded up to whole bytes.
    Raises:
        ValueError: an unknown format, nnz outside 0 … out·inp, more non-zeros than n:m has slots, a pattern that
            is missing or not asked for, an index too narrow to count to inp or nnz, bits below 1.
    """
    out, inp = shape
    check_choice("format", format, FORMATS)
    if out < 1 or inp < 1 or not 0 <= nnz <= out * inp:
        raise ValueError(f"nnz must be between 0 and out · inp of shape (out, inp), got {nnz} of {shape}")
    if value_bits < 1 or index_bits < 1:
        raise ValueError(f"value_bits and index_bits must be at least 1, got {value_bits} and {index_bits}")
    if (pattern is not None) != (format == "n:m"):
        raise ValueError(f'pattern belongs to format "n:m" and is needed there, got {format=} and {pattern=}')
    if format == "dense":
        return packed_nbytes(out * inp, value_bits)
    if format == "bitmask":
        return packed_nbytes(nnz, value_bits) + packed_nbytes(out * inp, 1)
    if format == "csr":
        if max(nnz, inp - 1) >= 2**index_bits:
            raise ValueError(f"{index_bits} bits cannot count to {inp} columns and {nnz} non-zeros")
        return packed_nbytes(nnz, value_bits) + packed_nbytes(nnz, index_bits) + packed_nbytes(out + 1, index_bits)
    check_pattern(pattern)
    assert pattern is not None  # the format is "n:m", and has one
    zeros, block = pattern
    tail = inp % block
    slots = out * (inp // block * (block - zeros) + tail - zeros * tail // block)
    if nnz > slots:
        raise ValueError(f"{nnz} non-zeros do not fit into the {slots} slots of {zeros}:{block}")
    return packed_nbytes(slots, value_bits) + packed_nbytes(slots, (block - 1).bit_length())


@isolated
def stored_nbytes(weight: Tensor) -> int:
    """Return the bytes of ``weight`` as non-zero values and a bitmask, or dense where that is less."""
    check_tensor("weight", weight)
    shape = (1, weight.numel())
    nonzeros, value_bits = int(weight.count_nonzero()), 8 * weight.element_size()
    return min(sparse_nbytes(shape, nonzeros, format=kind, value_bits=value_bits) for kind in ("dense", "bitmask"))
