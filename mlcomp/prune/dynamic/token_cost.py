"""Multiply-adds of a vision transformer that carries fewer tokens from block to block.

Notation: m tokens in a block of width d, hidden width r·d. Papers on vision transformers count a multiply-add as one
FLOP; :mod:`mlcomp.cost` counts two, and leaves out the products inside attention, which are counted here.
Source: Rao et al. 2021, arXiv:2106.02034, table 1 (4.6 G for DeiT-S, 2.9 G with ρ = 0.7).   Syllabus: 3.12
"""

from collections.abc import Sequence

from mlcomp.checks import check_positive, check_whole


def vit_multiply_adds(tokens: Sequence[int], *, width: int, mlp_ratio: float | int = 4) -> int:
    r"""Return $\sum_{blocks} (4 + 2r)\,m d^2 + 2\,m^2 d$: projections and MLP, then scores and mixing.

    Args:
        tokens: m in each block, the class token among them.
        width: d.
        mlp_ratio: r.
    Raises:
        ValueError: no block, or numbers that are not positive.
    """
    if not len(tokens):
        raise ValueError("tokens holds no block")
    check_whole("width", width, 1)
    check_positive("mlp_ratio", mlp_ratio)
    for block, m in enumerate(tokens):
        check_whole(f"tokens[{block}]", m, 1)
    return round(sum((4 + 2 * mlp_ratio) * m * width**2 + 2 * m**2 * width for m in tokens))
