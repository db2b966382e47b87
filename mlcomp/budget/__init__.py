"""Which level of compression for which layer, within a budget for the whole network."""

from mlcomp.budget.build_database import build_database
from mlcomp.budget.choose_levels import Choice, choose_levels
from mlcomp.budget.database import Database, Entry, Level, density_levels, load_database
from mlcomp.budget.stitch import level_losses, stitch

__all__ = [
    "Choice",
    "Database",
    "Entry",
    "Level",
    "build_database",
    "choose_levels",
    "density_levels",
    "level_losses",
    "load_database",
    "stitch",
]
