"""Whole channels and heads removed: what is left is a smaller network of the same kind."""

from mlcomp.prune.structured.degree_rules import coupled_nodes, degree_rules
from mlcomp.prune.structured.dependency_graph import Group, Member, dependency_groups, find_group, fixed_channels
from mlcomp.prune.structured.group_importance import group_importance, structure_importance
from mlcomp.prune.structured.llm_pruner import PrunedModel, least_channels, llm_pruner
from mlcomp.prune.structured.load_pruned import load_pruned
from mlcomp.prune.structured.network_slimming import Slimmed, network_slimming, slimming_channels, train_gammas
from mlcomp.prune.structured.permute_channels import permute_channels
from mlcomp.prune.structured.remove_channels import group_weights, remove_channels

__all__ = [
    "Group",
    "Member",
    "PrunedModel",
    "Slimmed",
    "coupled_nodes",
    "degree_rules",
    "dependency_groups",
    "find_group",
    "fixed_channels",
    "group_importance",
    "group_weights",
    "least_channels",
    "llm_pruner",
    "load_pruned",
    "network_slimming",
    "permute_channels",
    "remove_channels",
    "slimming_channels",
    "structure_importance",
    "train_gammas",
]
