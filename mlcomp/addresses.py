"""Addresses that lead to a module although it lives elsewhere: short ones, and those of version 0.1.

A room is for people: ``mlcomp.quant.gptq`` and ``mlcomp.quant.post_training.gptq`` are one module, so whoever guesses
is right. Modules that stood at the root before 0.2 are found at their old address, with a DeprecationWarning.
"""

import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Old address → new one, of modules that no package hands on. They go with version 0.3.
MOVED = {
    "mlcomp.asset_list": "mlcomp.assets.wheels",
    "mlcomp.batchnorm": "mlcomp.layerwise.batchnorm",
    "mlcomp.hardware": "mlcomp.cost.hardware",
    "mlcomp.layer_inputs": "mlcomp.layerwise.inputs",
    "mlcomp.layer_matrix": "mlcomp.layerwise.matrix",
    "mlcomp.layer_report": "mlcomp.layerwise.report",
    "mlcomp.pareto": "mlcomp.compare.pareto",
    "mlcomp.prune.network": "mlcomp.layerwise.weights",
    "mlcomp.pruning_vs_quantization": "mlcomp.compare.pruning_vs_quantization",
    "mlcomp.roofline": "mlcomp.cost.roofline",
    "mlcomp.scaling": "mlcomp.compare.scaling_law",
}


class MovedModules(Loader):
    """Import hook for the addresses in MOVED; it comes last, so it slows no other import."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Answer for old addresses only."""
        return ModuleSpec(name, self) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the real module in the place of the empty one that the import system made."""
        old = module.__name__
        warnings.warn(f"{old} is now {MOVED[old]}; the old address goes with mlcomp 0.3", DeprecationWarning, 2)
        sys.modules[old] = import_module(MOVED[old])


def shorten(face: Mapping[str, object]) -> None:
    """Give every module from which a package hands names on an address in that package, without the room.

    Args:
        face: ``globals()`` of the package's ``__init__``, after its imports.
    """
    for thing in list(face.values()):
        home = getattr(thing, "__module__", None)
        if home in sys.modules and home.startswith("mlcomp."):
            sys.modules.setdefault(f"{face['__name__']}.{home.rpartition('.')[2]}", sys.modules[home])


def handed_on(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` for names that now live in a package above it, imported when first asked for.

    Args:
        package: the package that handed these names out before.
        homes: name → module in which it lives.
    """

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return __getattr__
