"""Every public function of the library, found by itself: what the contract tests run over."""

import importlib
import inspect
from collections.abc import Callable, Iterator

from tools.inventory import api


def public_functions() -> Iterator[tuple[str, str, Callable]]:
    """Yield home module, name and function, in the order of the API page."""
    for homes in api().values():
        for home, names in homes.items():
            for name in names:
                function = getattr(importlib.import_module(home), name)
                if inspect.isfunction(function):
                    yield home, name, function
