"""Whole channels and heads removed: what is left is a smaller network of the same kind."""

from mlcomp.prune.structured.attention_heads import attention_heads
from mlcomp.prune.structured.bonsai import Bonsai, bonsai, drawn_submodels, module_scores
from mlcomp.prune.structured.degree_rules import coupled_nodes, degree_rules
from mlcomp.prune.structured.dependency_graph import Group, Member, dependency_groups, find_group, fixed_channels
from mlcomp.prune.structured.from_scratch import (
    FromScratch,
    TrainingBill,
    filter_norms,
    from_scratch,
    reinitialize,
    scratch_epochs,
    training_bill,
)
from mlcomp.prune.structured.group_importance import group_importance, structure_importance
from mlcomp.prune.structured.hard_concrete import (
    deterministic_gates,
    expected_gate,
    hard_concrete,
    probability_above,
)
from mlcomp.prune.structured.head_importance import head_importance, head_loss_changes, next_token_losses
from mlcomp.prune.structured.llm_pruner import PrunedModel, least_channels, llm_pruner
from mlcomp.prune.structured.load_pruned import load_pruned
from mlcomp.prune.structured.module_blocks import ModuleBlocks, module_blocks, module_utility
from mlcomp.prune.structured.network_slimming import Slimmed, network_slimming, slimming_channels, train_gammas
from mlcomp.prune.structured.permute_channels import permute_channels
from mlcomp.prune.structured.remove_channels import group_weights, remove_channels
from mlcomp.prune.structured.remove_heads import remove_heads
from mlcomp.prune.structured.residual_stream import (
    Gates,
    ResidualStream,
    Sublayer,
    gated_size,
    gating,
    open_gates,
    remove_gated,
    residual_stream,
)

__all__ = [
    "Bonsai",
    "FromScratch",
    "Gates",
    "Group",
    "Member",
    "ModuleBlocks",
    "PrunedModel",
    "ResidualStream",
    "Slimmed",
    "Sublayer",
    "TrainingBill",
    "attention_heads",
    "bonsai",
    "coupled_nodes",
    "degree_rules",
    "dependency_groups",
    "deterministic_gates",
    "drawn_submodels",
    "expected_gate",
    "filter_norms",
    "find_group",
    "fixed_channels",
    "from_scratch",
    "gated_size",
    "gating",
    "group_importance",
    "group_weights",
    "hard_concrete",
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
    "open_gates",
    "permute_channels",
    "probability_above",
    "reinitialize",
    "remove_channels",
    "remove_gated",
    "remove_heads",
    "residual_stream",
    "scratch_epochs",
    "slimming_channels",
    "structure_importance",
    "train_gammas",
    "training_bill",
]
