"""Pruning before the first step of training."""

from mlcomp.prune.at_initialization.erdos_renyi import erdos_renyi, erdos_renyi_densities
from mlcomp.prune.at_initialization.grasp import gradient_flow, grasp
from mlcomp.prune.at_initialization.lottery_ticket import Ticket, lottery_tickets, shuffled_zeros
from mlcomp.prune.at_initialization.snip import connection_sensitivity, snip

__all__ = [
    "Ticket",
    "connection_sensitivity",
    "erdos_renyi",
    "erdos_renyi_densities",
    "gradient_flow",
    "grasp",
    "lottery_tickets",
    "shuffled_zeros",
    "snip",
]
