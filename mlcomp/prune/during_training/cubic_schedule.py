r"""The cubic schedule of gradual pruning: fast while there is much to remove, slow towards the end.

Notation: $s_i$ initial, $s_f$ final sparsity, t step, T steps over which the sparsity rises;
$s_t = s_f + (s_i - s_f)\,(1 - t/T)^3$.
Source: Zhu & Gupta 2017, arXiv:1710.01878, eq. (1), with $t_0 = 0$ and $T = n\,\Delta t$.   Syllabus: 1.19
"""

from mlcomp.checks import check_positive, check_sparsity


def cubic_schedule(step: int | float, *, steps: int | float, final: float, initial: float = 0.0) -> float:
    r"""Return the sparsity to have at ``step``: $s_f + (s_i - s_f)(1 - t/T)^3$.

    Args:
        step: t, counted from the start of pruning. Before 0 the result is ``initial``, from ``steps`` on ``final``.
        steps: T > 0, in the units of ``step``.
        final: sparsity at the end, in [0, 1].
        initial: sparsity at the beginning, 0 ≤ initial ≤ final.
    Returns:
        the share of zeros.
    Raises:
        ValueError: steps not positive or infinite, step NaN, a sparsity outside [0, 1], initial above final.
    Guarantee: never falls as ``step`` grows; exactly ``initial`` at 0 and ``final`` at T; the rate of pruning
        $ds/dt = 3(s_f - s_i)(1 - t/T)^2/T$ is largest at 0, where it is three times the mean, and 0 at T.
    """
    check_sparsity(initial)
    check_sparsity(final)
    if initial > final:
        raise ValueError(f"sparsity can only rise: initial must be at most final, got {initial!r} > {final!r}")
    check_positive("steps", steps)
    if step != step:
        raise ValueError("step is NaN")
    if step <= 0:
        return float(initial)
    if step >= steps:
        return float(final)
    return final + (initial - final) * (1 - step / steps) ** 3
