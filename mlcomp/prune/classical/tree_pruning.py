r"""Cost-complexity pruning: all the best subtrees of a decision tree, from the whole tree down to its root.

Notation: t a node, $T_t$ the branch below it, |T_t| its leaves, R(t) the risk of t as a leaf (its impurity times
its share of the samples), R(T_t) the sum over the branch's leaves, α the price of a leaf; the best tree has the
least R(T) + α·|T|. The link at t breaks at $g(t) = (R(t) - R(T_t))/(|T_t| - 1)$.
Source: Breiman, Friedman, Olshen, Stone 1984, Classification and Regression Trees, chapter 3 (the path in 3.3, the
choice of α with one standard error in 3.4).   Syllabus: 3.01
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlcomp.checks import check_interval, check_like, check_mask, check_matrix, check_tensor, check_values
from mlcomp.context import isolated


@dataclass(frozen=True)
class TreePath:
    """The best subtrees for all prices of a leaf.

    Attributes:
        alphas: (steps,) float64, rising from 0: subtree k is the best for prices from ``alphas[k]`` to the next one.
        leaves: (steps,) leaves of each.
        risks: (steps,) R of each.
        splits_below: (nodes,) the price from which on a node is no inner node any more; 0 for leaves.
    """

    alphas: Float[Tensor, " steps"]
    leaves: Int[Tensor, " steps"]
    risks: Float[Tensor, " steps"]
    splits_below: Float[Tensor, " nodes"]

    @isolated
    def splits(self, alpha: float) -> Bool[Tensor, " nodes"]:
        """Return where the best subtree for a price ``alpha`` ≥ 0 still splits; of equally good ones the smallest."""
        check_interval("alpha", alpha, "[0, inf]")
        return self.splits_below > alpha


@isolated
def cost_complexity_path(
    left: Int[Tensor, " nodes"],
    right: Int[Tensor, " nodes"],
    impurity: Float[Tensor, " nodes"],
    samples: Float[Tensor, " nodes"],
    *,
    tolerance: float = 1e-12,
) -> TreePath:
    r"""Return the sequence of subtrees that minimize R(T) + α·|T|, for α from 0 on.

    Args:
        left, right: (nodes,) children of each node, −1 at a leaf; node 0 is the root, and children come after their
            parent, as in scikit-learn's ``tree_.children_left`` and ``children_right``. Not modified.
        impurity: (nodes,) of each node, ≥ 0: ``tree_.impurity``.
        samples: (nodes,) weight of each node's training samples: ``tree_.weighted_n_node_samples``.
        tolerance: prices that differ by at most this share of the root's risk are one: the links break together.
    Raises:
        ValueError: arrays that are no tree, negative impurities, no samples, tolerance outside [0, 1).
    Guarantee: at every α the subtree has the least R(T) + α·|T| of all pruned subtrees, and is the smallest of these;
        the alphas rise strictly, and each subtree is inside the one before it.
    Cost: O(nodes) a step. (scikit-learn lists a link a step, so ties come out as several steps apart by rounding.)
    """
    check_interval("tolerance", tolerance, "[0, 1)")
    order = _check_tree(left, right, impurity, samples)
    risk = (impurity.detach().double() * samples.detach().double() / samples[0].detach().double()).tolist()
    lefts, rights = left.tolist(), right.tolist()
    inner = [child >= 0 for child in lefts]
    below = [0.0] * len(inner)
    rounding = tolerance * risk[0]
    alpha, steps = 0.0, []
    while True:
        branch, leaves = _branches(order, inner, lefts, rights, risk)
        price = {t: (risk[t] - branch[t]) / (leaves[t] - 1) for t in order if inner[t]}
        weakest = min(price.values(), default=torch.inf)
        if weakest > alpha + rounding:
            steps.append((alpha, leaves[0], branch[0]))
            alpha = weakest
        if not price:
            break
        for t in [t for t, g in price.items() if g <= alpha + rounding]:
            _cut(t, inner, lefts, rights, below, alpha)
    alphas, counts, risks = zip(*steps, strict=True)
    return TreePath(
        torch.tensor(alphas, dtype=torch.float64),
        torch.tensor(counts),
        torch.tensor(risks, dtype=torch.float64),
        torch.tensor(below, dtype=torch.float64),
    )


def _branches(order: list[int], inner: list[bool], left: list[int], right: list[int], risk: list[float]) -> tuple:
    """Return R(T_t) and |T_t| of each node's branch, from the leaves up."""
    branch, leaves = list(risk), [1] * len(risk)
    for t in reversed(order):
        if inner[t]:
            branch[t] = branch[left[t]] + branch[right[t]]
            leaves[t] = leaves[left[t]] + leaves[right[t]]
    return branch, leaves


def _cut(t: int, inner: list[bool], left: list[int], right: list[int], below: list[float], alpha: float) -> None:
    """Make a leaf of ``t``, and note the price for it and all inner nodes below it."""
    stack = [t]
    while stack:
        node = stack.pop()
        if inner[node]:
            inner[node], below[node] = False, alpha
            stack += [left[node], right[node]]


def _check_tree(left: Tensor, right: Tensor, impurity: Tensor, samples: Tensor) -> list[int]:
    """Return the nodes that are reached from the root, parents first; raise unless the arrays are one tree."""
    _check_numbers("left", left, left)
    _check_numbers("right", right, left)
    for name, x in (("impurity", impurity), ("samples", samples)):
        check_values(name, x)
        if x.shape != left.shape or bool((x < 0).any()):
            raise ValueError(f"{name} must hold a number ≥ 0 for each of {len(left)} nodes, got {tuple(x.shape)}")
    if not samples[0] > 0:
        raise ValueError("samples must be positive at the root, got 0")
    nodes, pairs = len(left), list(zip(left.tolist(), right.tolist(), strict=True))
    children = [c for pair in pairs for c in pair if pair != (-1, -1)]
    forward = all(t < a < nodes and t < b < nodes for t, (a, b) in enumerate(pairs) if (a, b) != (-1, -1))
    if not forward or sorted(children) != list(range(1, nodes)):
        raise ValueError(
            "left and right must be a binary tree: each node but the root once a child of an earlier one"
        )
    return list(range(nodes))


def _check_numbers(name: str, x: Tensor, like: Tensor) -> None:
    """Raise unless ``x`` holds a whole number for each node."""
    check_tensor(name, x)
    whole = not x.is_floating_point() and x.dtype != torch.bool
    if not whole or x.ndim != 1 or not len(x) or x.shape != like.shape:
        raise ValueError(f"{name} must hold a whole number for each node, (nodes,), got {x.dtype} {tuple(x.shape)}")


@isolated
def tree_leaves(
    left: Int[Tensor, " nodes"],
    right: Int[Tensor, " nodes"],
    feature: Int[Tensor, " nodes"],
    threshold: Float[Tensor, " nodes"],
    splits: Bool[Tensor, " nodes"],
    inputs: Float[Tensor, "samples features"],
) -> Int[Tensor, " samples"]:
    """Return the node of a pruned tree in which each sample ends.

    Args:
        left, right, feature, threshold: (nodes,), as in scikit-learn's ``tree_``: a sample goes left where its
            feature is at most the threshold. Inputs are rounded to float32 first, as scikit-learn does.
        splits: (nodes,) where the subtree splits, from :meth:`TreePath.splits`.
        inputs: (samples, features); not modified.
    Raises:
        ValueError: malformed inputs, a splitting node without children, or with a feature that the inputs lack.
    Guarantee: each sample ends in a node that does not split.
    """
    check_matrix("inputs", inputs)
    for name, x in (("left", left), ("right", right), ("feature", feature)):
        _check_numbers(name, x, left)
    check_like("threshold", threshold, tuple(left.shape), "left")
    check_mask("splits", splits, left)
    left, right, feature = left.long(), right.long(), feature.long()
    numbers = torch.arange(len(left), device=left.device)
    good = (left > numbers) & (right > numbers) & (left < len(left)) & (right < len(left))
    good &= (feature >= 0) & (feature < inputs.shape[1])
    if bool((splits & ~good).any()):
        raise ValueError(f"splits must be True only where a node has children and one of {inputs.shape[1]} features")
    x, at = inputs.detach().float(), torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)
    while bool((moving := splits[at]).any()):
        value = x.gather(1, feature[at].clamp(min=0)[:, None])[:, 0].double()
        following = torch.where(value <= threshold.double()[at], left[at], right[at])
        at = torch.where(moving, following, at)
    return at


@isolated
def choose_alpha(errors: Float[Tensor, "folds steps"], *, standard_errors: float = 1.0) -> int:
    """Return the step of the smallest subtree whose cross-validated error is within a standard error of the least.

    Args:
        errors: (folds, steps), the error of each fold's own tree, pruned at the price of each step. Prices between
            two steps, such as their geometric mean, are the fair ones, since other trees break elsewhere.
        standard_errors: 1: Breiman's rule; 0: the least error, and of equals the smallest subtree.
    Raises:
        ValueError: malformed errors, fewer than two folds with standard_errors > 0, standard_errors < 0.
    """
    check_matrix("errors", errors)
    check_interval("standard_errors", standard_errors, "[0, inf)")
    folds = len(errors)
    if standard_errors and folds < 2:
        raise ValueError(f"errors must have two folds at least for a standard error, got {folds}")
    mean = errors.detach().double().mean(0)
    best = int(mean.argmin())
    spread = float(errors[:, best].detach().double().std()) / folds**0.5 if standard_errors else 0.0
    return int((mean <= mean[best] + standard_errors * spread).nonzero().max())
