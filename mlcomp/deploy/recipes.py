"""The recommended options of each method, used where none are given.

A recipe names options of the method; whoever gives one of them has their own value.
"""

from collections.abc import Mapping
from typing import Any

RECIPES: Mapping[str, Mapping[str, Any]] = {}
