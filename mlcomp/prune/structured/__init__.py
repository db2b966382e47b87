"""Whole channels and heads removed: what is left is a smaller network of the same kind."""

from mlcomp.prune.structured.attention_heads import attention_heads
from mlcomp.prune.structured.bonsai import Bonsai, bonsai, drawn_submodels, module_scores
from mlcomp.prune.structured.degree_rules import coupled_nodes, degree_rules
from mlcomp.prune.structured.dependency_graph import Group, Member, dependency_groups, find_group, fixed_channels
from mlcomp.prune.structured.group_importance import group_importance, structure_importance
from mlcomp.prune.structured.head_importance import head_importance, head_loss_changes, next_token_losses
from mlcomp.prune.structured.llm_pruner import PrunedModel, least_channels, llm_pruner
from mlcomp.prune.structured.load_pruned import load_pruned
from mlcomp.prune.structured.module_blocks import ModuleBlocks, module_blocks, module_utility
from mlcomp.prune.structured.network_slimming import Slimmed, network_slimming, slimming_channels, train_gammas
from mlcomp.prune.structured.permute_channels import permute_channels
from mlcomp.prune.structured.remove_channels import group_weights, remove_channels
from mlcomp.prune.structured.remove_heads import remove_heads

__all__ = [
    "Bonsai",
    "Group",
    "Member",
    "ModuleBlocks",
    "PrunedModel",
    "Slimmed",
    "attention_heads",
    "bonsai",
    "coupled_nodes",
    "degree_rules",
    "dependency_groups",
    "drawn_submodels",
    "find_group",
    "fixed_channels",
    "group_importance",
    "group_weights",
    "head_importance",
    "head_loss_changes",
    "least_channels",
    "llm_pruner",
    "load_pruned",
    "module_blocks",
    "module_scores",
    "module_utility",
    "network_slimming",
    "next_token_losses",
    "permute_channels",
    "remove_channels",
    "remove_heads",
    "slimming_channels",
    "structure_importance",
    "train_gammas",
]
