"""Arguments of a call as one tree: tuples, lists and mappings inside each other, and the entries at their ends.

Syllabus: 2.01
"""

from collections.abc import Callable, Iterator
from typing import Any

Place = tuple[Any, ...]


def changed(value: Any, change: Callable[[Place, Any], Any], place: Place = ()) -> Any:
    """Return the same tree with ``change(place, entry)`` in the place of each entry.

    Only plain tuples, lists and dicts are opened: what else holds entries is one itself.
    """
    if type(value) is dict:
        return {key: changed(part, change, (*place, key)) for key, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(changed(part, change, (*place, i)) for i, part in enumerate(value))
    return change(place, value)


def entries(value: Any) -> Iterator[tuple[Place, Any]]:
    """Yield the place of each entry and the entry."""
    found: list[tuple[Place, Any]] = []
    changed(value, lambda place, entry: found.append((place, entry)))
    yield from found


def entry_at(value: Any, place: Place) -> Any:
    """Return the entry at a place."""
    for key in place:
        value = value[key]
    return value
