r"""Bonsai: which modules to remove, from forward passes alone: what random submodels lose, regressed on their masks.

Notation: N modules (heads, blocks of hidden units) of sizes $s_i$ [parameters]; $r \in \{0, 1\}^N$ says which a
submodel lacks; U its utility, minus the loss. U(0) − U(r) is fitted by $r^\top\beta$:

$$\beta = \arg\min_\beta \sum_j \big(U(0) - U(r_j) - r_j^\top\beta\big)^2 + \lambda\|\beta\|^2$$

Those with the least $\beta_i/s_i$ are removed, and the next round starts from what is left.
Source: Dery, Kolawole, Kagy, Smith, Neubig, Talwalkar 2024, arXiv:2402.05406, section 3 and Algorithm 1.
Deviations: the line goes through the whole model's utility, which is known, so there is no intercept; submodels are
drawn evenly, without complements and without a prior over the modules; modules of different sizes are compared by
utility per parameter.   Syllabus: 4.12
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlcomp.checks import check_finite, check_interval, check_tensor, check_whole
from mlcomp.context import isolated, isolated_run

# utility(removed) of the model without the modules where (N,) is True.
Utility = Callable[[Tensor], float]


@dataclass(frozen=True)
class Bonsai:
    """What to remove, and what it was decided by.

    Attributes:
        removed: (N,), True where a module goes.
        scores: one (N,) for each round: the coefficients, NaN for modules that were gone before it.
        evaluations: of the utility.
    """

    removed: Tensor
    scores: tuple[Tensor, ...]
    evaluations: int


@isolated
def drawn_submodels(present: Bool[Tensor, " n"], count: int, *, share: float, seed: int) -> Bool[Tensor, "count n"]:
    """Return which modules each of ``count`` random submodels lacks: those that are gone, and some of the others.

    Args:
        present: True for the modules that may be drawn.
        count: of submodels.
        share: of the present modules that each lacks besides, rounded, at least one.
        seed: of the draw.
    Raises:
        ValueError: a share outside (0, 1), a count below 1, no module that is present.
    """
    check_whole("count", count, 1)
    check_interval("share", share, "(0, 1)")
    _check_bool("present", present, 1)
    places = present.nonzero().flatten()
    if not len(places):
        raise ValueError("no module is present")
    generator = torch.Generator().manual_seed(seed)
    each = max(1, round(share * len(places)))
    order = torch.rand(count, len(places), generator=generator).argsort(1)[:, :each]
    removed = (~present).repeat(count, 1)
    return removed.scatter_(1, places[order], True)


@isolated
def module_scores(
    removed: Bool[Tensor, "count n"], losses: Float[Tensor, " count"], *, ridge: float = 0.1
) -> Float[Tensor, " n"]:
    r"""Return $\beta$: ridge regression of what each submodel lost on what it lacks, without intercept.

    Args:
        removed: True where a submodel lacks a module.
        losses: U(0) − U(r) of each.
        ridge: $\lambda \ge 0$; at 0 the solution of least norm.
    Returns:
        (n,), float64.
    Raises:
        ValueError: NaN or inf in the losses, not as many as submodels, a negative ridge.
    Guarantee: losses that are sums over the modules come back exactly at λ = 0, if the masks have rank n.
    """
    check_finite("losses", losses)
    check_interval("ridge", ridge, "[0, inf)")
    _check_bool("removed", removed, 2)
    if losses.shape != removed.shape[:1] or not removed.numel():
        raise ValueError(
            f"removed must be (count, n) and losses (count,), got {(*removed.shape,)}, {(*losses.shape,)}"
        )
    rows = removed.double()
    extra = ridge**0.5 * torch.eye(rows.shape[1], dtype=torch.float64, device=rows.device)
    values = torch.cat([losses.detach().double(), losses.new_zeros(rows.shape[1], dtype=torch.float64)])
    return torch.linalg.lstsq(torch.cat([rows, extra]), values[:, None], driver="gelsd").solution[:, 0]


def _check_bool(name: str, x: Tensor, ndim: int) -> None:
    check_tensor(name, x)
    if x.dtype != torch.bool or x.ndim != ndim:
        raise ValueError(f"{name} must be a bool tensor with {ndim} dimension(s), got {x.dtype}, {(*x.shape,)}")


@isolated_run
def bonsai(
    utility: Utility,
    sizes: Float[Tensor, " n"],
    *,
    sparsity: float,
    rounds: int = 1,
    samples: int = 200,
    share: float = 0.1,
    ridge: float = 0.1,
    layers: Iterable[int] | None = None,
    seed: int = 0,
) -> Bonsai:
    """Choose modules to remove by the utilities of random submodels.

    Args:
        utility: ``utility(removed)`` of the model without some modules, (n,) bool; larger is better. Minus the loss,
            say (:func:`mlcomp.prune.module_utility`).
        sizes: parameters of each module.
        sparsity: share of all modules' parameters to remove; never more is.
        rounds: in which an equal part of it is removed each; the scores are fitted anew in each.
        samples: submodels a round.
        share: of the modules left that each submodel lacks besides.
        ridge: see :func:`mlcomp.prune.module_scores`.
        layers: for each module the number of its layer; one module of each layer stays. None: any may go.
        seed: of the submodels.
    Raises:
        ValueError: numbers out of range, sizes that are not positive, a utility that is NaN or infinite.
    Cost: rounds · (samples + 1) evaluations of the utility, and no gradients.
    """
    check_finite("sizes", sizes)
    check_interval("sparsity", sparsity, "(0, 1)")
    check_whole("rounds", rounds, 1)
    check_whole("samples", samples, 1)
    if sizes.ndim != 1 or not len(sizes) or not bool((sizes > 0).all()):
        raise ValueError("sizes must be (n,), positive, for at least one module")
    sizes = sizes.double().cpu()
    owners = None if layers is None else torch.tensor(list(layers), device="cpu")
    if owners is not None and owners.shape != sizes.shape:
        raise ValueError(f"layers must give a number for each of {len(sizes)} modules, got {len(owners)}")
    removed = torch.zeros(len(sizes), dtype=torch.bool, device="cpu")
    scores = []
    for number in range(1, rounds + 1):
        drawn = drawn_submodels(~removed, samples, share=share, seed=seed * rounds + number)
        whole = _utility(utility, removed)
        losses = torch.tensor([whole - _utility(utility, row) for row in drawn], dtype=torch.float64, device="cpu")
        found = torch.full_like(sizes, torch.nan)
        found[~removed] = module_scores(drawn[:, ~removed], losses, ridge=ridge)
        scores.append(found)
        removed = remove_smallest(found / sizes, sizes, removed, sparsity * number / rounds, owners)
    return Bonsai(removed, tuple(scores), rounds * (samples + 1))


def _utility(utility: Utility, removed: Tensor) -> float:
    value = float(utility(removed.clone()))  # a mask of its own: whatever is done to it stays there
    if not abs(value) < float("inf"):
        raise ValueError(f"the utility must be a finite number, got {value}")
    return value


def remove_smallest(
    scores: Tensor, sizes: Tensor, removed: Tensor, sparsity: float, layers: Tensor | None = None
) -> Tensor:
    """Return ``removed`` with the modules of the least scores added, until the next would be more than allowed.

    The last module of a layer is passed over; ties go by number.
    """
    removed, budget = removed.clone(), sparsity * float(sizes.sum()) + 1e-9
    for module in scores.argsort(stable=True).tolist():
        if removed[module] or (layers is not None and int((~removed[layers == layers[module]]).sum()) == 1):
            continue
        if float(sizes[removed].sum() + sizes[module]) > budget:
            break
        removed[module] = True
    return removed
