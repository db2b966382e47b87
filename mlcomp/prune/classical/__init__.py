"""Pruning before there were deep networks: decision trees, sparse regression, sparse plus low-rank matrices."""

from mlcomp.prune.classical.lasso import Lasso, LassoPath, lasso, lasso_path
from mlcomp.prune.classical.robust_pca import SparsePlusLowRank, alternating_projections, planted_matrix, robust_pca
from mlcomp.prune.classical.tree_pruning import TreePath, choose_alpha, cost_complexity_path, tree_leaves

__all__ = [
    "Lasso",
    "LassoPath",
    "SparsePlusLowRank",
    "TreePath",
    "alternating_projections",
    "choose_alpha",
    "cost_complexity_path",
    "lasso",
    "lasso_path",
    "planted_matrix",
    "robust_pca",
    "tree_leaves",
]
