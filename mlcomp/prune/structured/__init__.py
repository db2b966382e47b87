"""Whole channels and heads removed: what is left is a smaller network of the same kind."""

from mlcomp.prune.structured.dependency_graph import Group, Member, dependency_groups, find_group, fixed_channels
from mlcomp.prune.structured.permute_channels import permute_channels
from mlcomp.prune.structured.remove_channels import group_weights, remove_channels

__all__ = [
    "Group",
    "Member",
    "dependency_groups",
    "find_group",
    "fixed_channels",
    "group_weights",
    "permute_channels",
    "remove_channels",
]
