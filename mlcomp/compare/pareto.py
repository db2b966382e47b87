"""The Pareto front: results that no other beats in size without losing in quality.

Notation: a result (s, q) with size s, less is better, and quality q, more is better. (s, q) dominates (s', q') if
s ≤ s' and q ≥ q', and one of the two is strict.
Source: Kung, Luccio, Preparata 1975, "On finding the maxima of a set of vectors", Journal of the ACM 22(4).
Syllabus: 1.16
"""

import math
from collections.abc import Sequence


def pareto_front(sizes: Sequence[int | float], qualities: Sequence[int | float]) -> list[int]:
    """Return the indices of the results that none dominates, smallest first (of equal ones all, in their order).

    Args:
        sizes: less is better.
        qualities: one for each, more is better.
    Raises:
        ValueError: as many sizes as qualities is not given, or NaN.
    Guarantee: every result that is left out is dominated by one of the front.
    Cost: a sort and one pass.
    """
    if len(sizes) != len(qualities):
        raise ValueError(f"give one quality for each size, got {len(sizes)} sizes and {len(qualities)} qualities")
    if any(math.isnan(v) for v in (*sizes, *qualities)):
        raise ValueError("sizes and qualities must be numbers, got NaN")
    front: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (sizes[i], -qualities[i])):
        last = front[-1] if front else None
        if (
            last is None
            or qualities[i] > qualities[last]
            or (sizes[i], qualities[i]) == (sizes[last], qualities[last])
        ):
            front.append(i)
    return front
