r"""Hadamard matrices and the fast Walsh-Hadamard transform, for sizes m·2^k.

Notation: $H_n$ has entries ±1 and $H_n H_n^\top = n I$.
$H_{2n} = \begin{pmatrix} H_n & H_n \\ H_n & -H_n \end{pmatrix}$
(Sylvester). For a prime q and the Legendre symbol χ, $Q_{ij} = \chi(i - j)$ modulo q gives (Paley 1933):
I, q ≡ 3 (mod 4), order q + 1: $I + S$ with $S = \begin{pmatrix} 0 & 1^\top \\ -1 & Q \end{pmatrix}$;
II, q ≡ 1 (mod 4), order 2(q + 1): in the symmetric $C = \begin{pmatrix} 0 & 1^\top \\ 1 & Q \end{pmatrix}$ every 0
becomes $\begin{pmatrix} 1 & -1 \\ -1 & -1 \end{pmatrix}$ and every ±1 becomes
$\pm\begin{pmatrix} 1 & 1 \\ 1 & -1 \end{pmatrix}$.
Source: Paley 1933, On orthogonal matrices; use in quantization: Tseng et al. 2024, arXiv:2402.04396, section 3.
Syllabus: 1.14
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_tensor, check_values, check_whole, narrowed
from mlcomp.context import isolated


@isolated
def hadamard_matrix(n: int) -> Float[Tensor, "n n"]:
    """Return a Hadamard matrix of order n = m·2^k as float32, m = 1 or the smallest order of Paley that divides so.

    Raises:
        ValueError: no construction here gives this order.
    """
    odd = paley_order(n)
    matrix = _paley(odd) if odd > 1 else torch.ones(1, 1)
    block = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    power = torch.ones(1, 1)
    for _ in range((n // odd).bit_length() - 1):
        power = torch.kron(block, power)
    return torch.kron(matrix, power)


def paley_order(n: int) -> int:
    """Return m of n = m·2^k: 1 for a power of two, else the smallest order with a Paley construction.

    Raises:
        ValueError: no such m.
    """
    check_whole("the order", n, 1)
    m = n
    while m % 2 == 0:
        m //= 2
    if m == 1:
        return 1
    while n % m == 0:
        if m % 4 == 0 and (_is_prime(m - 1) or (_is_prime(m // 2 - 1) and m // 2 % 4 == 2)):
            return m
        m *= 2
    raise ValueError(
        f"no Hadamard matrix of order {n} here: n = m·2^k with m = q + 1 (prime q ≡ 3 mod 4) or 2(q + 1) "
        f"(prime q ≡ 1 mod 4)"
    )


@isolated
def hadamard_transform(x: Float[Tensor, "... n"], *, transpose: bool = False) -> Float[Tensor, "... n"]:
    r"""Return $H_n x / \sqrt n$ of each row ($H_n^\top x / \sqrt n$ with ``transpose``): a rotation.

    Args:
        x: (…, n), any float dtype, computed in float32 (float64 stays); not modified.
        transpose: the inverse of the transform. For powers of two both are the same.
    Returns:
        In the shape and dtype of x.
    Raises:
        ValueError: there is no Hadamard matrix of order n here; no entry, NaN or inf; a result beyond the dtype.
    Guarantee: norms are kept; the transposed transform undoes the transform.
    Cost: n·(log₂(n/m) + m) additions a row instead of n².
    """
    check_tensor("x", x)
    if x.numel() == 0 or x.ndim == 0:
        raise ValueError(f"x must be (…, n) with at least one entry, got shape {tuple(x.shape)}")
    check_values("x", x)
    n = x.shape[-1]
    m = paley_order(n)
    y = x if x.dtype == torch.float64 else x.float()
    y = y.reshape(*x.shape[:-1], m, n // m)
    half = 1
    while half < n // m:
        pair = y.reshape(*y.shape[:-1], -1, 2, half)
        first, second = pair.unbind(-2)
        y = torch.stack([first + second, first - second], dim=-2).reshape(y.shape)
        half *= 2
    if m > 1:
        matrix = _paley(m).to(y)
        y = (matrix.T if transpose else matrix) @ y
    return narrowed(y.reshape(x.shape) / math.sqrt(n), x.dtype)


def _paley(order: int) -> Tensor:
    """Return the Paley matrix of this order, the first construction where there are two."""
    first = _is_prime(order - 1)
    q = order - 1 if first else order // 2 - 1
    squares = {i * i % q for i in range(1, q)}
    symbol = torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, q)])
    index = torch.arange(q)
    core = torch.zeros(q + 1, q + 1)
    core[1:, 1:] = symbol[(index[:, None] - index) % q]
    core[0, 1:] = 1
    core[1:, 0] = -1 if first else 1
    if first:
        return torch.eye(q + 1) + core
    zeros = torch.kron(torch.eye(q + 1), torch.tensor([[1.0, -1.0], [-1.0, -1.0]]))
    return zeros + torch.kron(core, torch.tensor([[1.0, 1.0], [1.0, -1.0]]))


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % i for i in range(2, math.isqrt(n) + 1))
