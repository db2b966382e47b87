r"""The E8 lattice and QuIP#'s codebooks on it: 8 weights rounded together.

Notation: $D_8$ all whole-number vectors with an even sum, $E_8 = D_8 \cup (D_8 + \tfrac12\mathbf 1)$: the densest
packing of balls in eight dimensions, one point to a unit of volume. $\hat D_8 = D_8 + \tfrac12\mathbf 1$, so that
$(\hat D_8 + \tfrac14\mathbf 1) \cup (\hat D_8 - \tfrac14\mathbf 1) = E_8 + \tfrac14\mathbf 1$.
E8P is 2¹⁶ of these points: a pattern of absolute values (8 bits), seven signs (the eighth makes the sum even) and the
sign of the shift (1 bit). The patterns: all 227 of $|\hat D_8|$ with norm² ≤ 10, and 29 of norm² 12. The 1-bit
codebook: 0, the 240 points of E8 with norm² 2, and 15 of norm² 4.
Source: Tseng et al. 2024, QuIP#, arXiv:2402.04396, section 4.2; nearest point: Conway and Sloane 1982, Fast
quantizing and decoding algorithms for lattice quantizers and codes.   Syllabus: 1.14
"""

import itertools
from functools import lru_cache

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from mlcomp.checks import check_codes, check_tensor, check_values, narrowed
from mlcomp.context import isolated

# Vectors at a time in the search: the matrix of scores stays in the cache.
CHUNK = 1024


@isolated
def e8_nearest(x: Float[Tensor, "*rows 8"]) -> Float[Tensor, "*rows 8"]:
    """Return the nearest point of E8 to each vector of 8.

    Args:
        x: (…, 8), any float dtype, computed in float32 (float64 stays); not modified.
    Raises:
        ValueError: another last dimension, NaN or inf.
    Guarantee: no point of E8 is nearer, up to rounding (to the dtype of x, too). Ties go to the half-less coset, and
        within it as torch.round.
    """
    _check(x)
    y = x.detach() if x.dtype == torch.float64 else x.detach().float()
    whole, half = _d8_nearest(y), _d8_nearest(y - 0.5) + 0.5
    nearer = (y - half).square().sum(-1) < (y - whole).square().sum(-1)
    return narrowed(torch.where(nearer[..., None], half, whole), x.dtype)


def _d8_nearest(x: Tensor) -> Tensor:
    """Return the nearest whole-number vector with an even sum: where it is odd, the worst entry is moved."""
    rounded = torch.round(x)
    error = x - rounded
    worst = error.abs().argmax(-1, keepdim=True)
    step = torch.where(error.gather(-1, worst) < 0, -1.0, 1.0).to(x.dtype)
    odd = rounded.sum(-1, keepdim=True) % 2
    return rounded.scatter_add(-1, worst, step * odd)


@lru_cache(maxsize=1)
def e8p_patterns() -> Float[Tensor, "256 8"]:
    """Return the absolute values of E8P, float32: norm² up to 10, then the first 29 of norm² 12 in dictionary order.

    The paper picks another 29 of norm² 12; for weights whose directions are all alike it does not matter which.
    """
    half = [v for v in itertools.product((0.5, 1.5, 2.5), repeat=8) if sum(x * x for x in v) <= 12]
    inner = [v for v in half if sum(x * x for x in v) <= 10]
    # Five entries of 3/2 and three of 1/2; the others of norm² 12 have a 5/2.
    outer = [v for v in half if sum(x * x for x in v) == 12 and max(v) == 1.5]
    return torch.tensor(inner + outer[: 256 - len(inner)])


@isolated
def e8p_encode(x: Float[Tensor, "*rows 8"]) -> Int32[Tensor, "*rows"]:
    """Return the code of the nearest of the 2¹⁶ entries to each vector of 8, exactly.

    Code: pattern · 256 + signs of the first seven entries (bit i + 1: entry i is negative before the shift) · 2 +
    shift (0: +1/4, 1: −1/4).

    Args:
        x: (…, 8), any float dtype, computed in float32 (float64 stays); not modified.
    Raises:
        ValueError: another last dimension, NaN or inf.
    Guarantee: no entry is nearer, up to rounding.
    Cost: two products with about 1100 candidates a vector, instead of 2¹⁶.
    """
    _check(x)
    flat = x.detach().reshape(-1, 8)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    codes = [_encode(part) for part in flat.split(CHUNK)]
    return torch.cat(codes).reshape(x.shape[:-1]) if codes else torch.zeros(x.shape[:-1], dtype=torch.int32)


@lru_cache(maxsize=1)
def _candidates() -> tuple[Tensor, Tensor, Tensor]:
    """Return the entries before the shift that can be nearest to a vector with at most its last entry negative.

    Fold y to |y|, with the parity of its signs left on the last entry. The nearest entry then has at most one
    negative sign more, on a 1/2: −3/2 or −5/2 opposite a positive value is never best, since +1/2 or −1/2 there keeps
    the sum even, is nearer, and belongs to a shorter pattern, which is in the codebook, too.

    Returns:
        the candidates (n, 8), the pattern of each, and its negative signs among the first seven as bits.
    """
    vectors, patterns, masks = [], [], []
    for index, pattern in enumerate(e8p_patterns().tolist()):
        for flip in [None] + [i for i in range(7) if pattern[i] == 0.5]:
            v = list(pattern)
            if flip is not None:
                v[flip] = -0.5
            if sum(v) % 2:
                v[7] = -v[7]
            vectors.append(v)
            patterns.append(index)
            masks.append(0 if flip is None else 1 << flip)
    return torch.tensor(vectors), torch.tensor(patterns), torch.tensor(masks)


def _encode(x: Tensor) -> Tensor:
    vectors, patterns, masks = (part.to(x.device) for part in _candidates())
    vectors = vectors.to(x.dtype)
    offset = -vectors.square().sum(1) / 2
    errors, codes = [], []
    for shift in (0, 1):
        y = x - (0.25 - 0.5 * shift)
        negative = y < 0
        folded = y.abs()
        folded[:, 7] *= 1 - 2 * (negative.sum(1) % 2)
        # |y − v|²/2 is |y|²/2 minus this score.
        score, which = torch.addmm(offset, folded, vectors.T).max(1)
        errors.append(y.square().sum(1) / 2 - score)
        signs = (negative[:, :7] * 2 ** torch.arange(7, device=x.device)).sum(1) ^ masks[which]
        codes.append(patterns[which] * 256 + signs * 2 + shift)
    return torch.where(errors[1] < errors[0], codes[1], codes[0]).to(torch.int32)


@isolated
def e8p_decode(codes: Int32[Tensor, "*rows"]) -> Float[Tensor, "*rows 8"]:
    """Return the entries of E8P that the codes name, (…, 8) float32.

    Raises:
        ValueError: a code outside 0 … 65535.
    """
    check_codes("codes", codes, 2**16 - 1)
    patterns = e8p_patterns().to(codes.device)
    size = patterns[(codes >> 8).long()]
    negative = (codes[..., None] >> torch.arange(1, 8, device=codes.device)) & 1
    parity = (patterns.sum(1) % 2)[(codes >> 8).long()]
    last = (negative.sum(-1) + parity) % 2  # makes the number of signs what the even sum needs
    signs = 1 - 2 * torch.cat([negative.to(size), last[..., None].to(size)], dim=-1)
    return signs * size + (0.25 - 0.5 * (codes & 1).to(size))[..., None]


@lru_cache(maxsize=1)
def e8_ball() -> Float[Tensor, "256 8"]:
    """Return the 1-bit codebook, float32: 0, the 240 points of E8 with norm² 2, and 15 of the points ±2·e_i."""
    whole = [v for v in itertools.product((-1.0, 0.0, 1.0), repeat=8) if sum(map(abs, v)) in (0, 2)]
    half = [v for v in itertools.product((-0.5, 0.5), repeat=8) if sum(v) % 2 == 0]
    long = torch.cat([2 * torch.eye(8), -2 * torch.eye(8)])[:15]
    return torch.cat([torch.tensor(whole), torch.tensor(half), long])


def e8_ball_encode(x: Float[Tensor, "*rows 8"]) -> Int32[Tensor, "*rows"]:
    """Return the index of the nearest entry of the 1-bit codebook to each vector of 8."""
    _check(x)
    ball = e8_ball().to(x if x.dtype == torch.float64 else x.float())
    scores = x.reshape(-1, 8).to(ball) @ ball.T - ball.square().sum(1) / 2
    return scores.argmax(1).to(torch.int32).reshape(x.shape[:-1])


def _check(x: Tensor) -> None:
    check_tensor("x", x)
    if x.ndim == 0 or x.shape[-1] != 8:
        raise ValueError(f"x must be (…, 8), got shape {tuple(x.shape)}")
    check_values("x", x)
