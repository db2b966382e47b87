"""Known mistakes in an answer: inputs on which each of them shows, and what a student who made one is told."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mlcomp.grading.notebook import is_close


def distinct(results: Sequence[Tensor], tolerance: float = 1e-3) -> bool:
    """Return whether every two of the results differ, in shape or relative to their size."""
    for i, a in enumerate(results):
        for b in results[:i]:
            if a.shape == b.shape and is_close(a.double(), b.double(), tolerance):
                return False
    return True


def draw_telling(
    draw: Callable[[], tuple[Any, ...]],
    solve: Callable[..., Tensor],
    slips: Mapping[str, str],
    *,
    also: Callable[..., bool] = lambda *case: True,
    tries: int = 5000,
) -> tuple[tuple[Any, ...], Tensor, dict[str, Tensor]]:
    """Draw inputs until no slip gives the right result, and no two the same.

    Args:
        draw: returns the arguments of ``solve``.
        solve: returns the right result, or with ``slip=`` that of a slip.
        slips: what the student is told, by the name of the slip.
        also: what else the arguments have to fulfil.
        tries: how often to draw.

    Returns:
        The arguments, the right result, and each message with the result that deserves it.

    Raises:
        RuntimeError: no draw would do; small inputs may leave slips without an effect.
    """
    for _ in range(tries):
        case = draw()
        truth, wrong = solve(*case), {}
        good = also(*case) and bool(truth.isfinite().all())
        for slip, message in slips.items():
            wrong[message] = solve(*case, slip=slip)
            good = good and all(distinct([wrong[message], other]) for other in (truth, *list(wrong.values())[:-1]))
            if not good:
                break
        if good:
            return case, truth, wrong
    raise RuntimeError(f"{tries} draws, and on none of them all slips differ")


def expect_no_slip(result: Tensor, truth: Tensor, wrong: Mapping[str, Tensor]) -> None:
    """Raise AssertionError with the message of the slip that gives ``result``, unless it gives the truth as well."""
    for message, of_slip in wrong.items():
        if not distinct([truth, of_slip], 1e-6):
            continue
        assert distinct([result, of_slip], 1e-6), message
