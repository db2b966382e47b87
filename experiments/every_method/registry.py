"""Where a method enters the table: its name, its rows of the syllabus, the function, and the settings to run.

A method is a function (weight, hessian, **setting), called for each layer. It returns a pruned weight (a tensor), or
a result with ``dequantize()`` and ``nbytes``. A method of the whole network is a function (subject, **setting) and
returns a ``networks.Compressed``. To add one, call :func:`register` in ``methods.py``; nothing else needs to change.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mlcomp.compare.every_method import KINDS


@dataclass(frozen=True)
class Entry:
    """One method of the table.

    Attributes:
        name: unique; what the table shows.
        syllabus: rows of the syllabus.
        kind: "reference" (nothing is compressed), "scalar" (each weight on its own), "compensated" (scalar codes
            chosen with the Hessian), "vector", "pruning", "both" (pruning and quantization), or "tuned" (towards the
            outputs of blocks or of the network).
        function: the library's function that does the work; the contract test looks for it.
        method: (weight, hessian, **setting) → tensor or result; if ``whole``, (subject, **setting) → Compressed.
        settings: the runs, each a mapping of options.
        data_free: the method does not look at the Hessian.
        whole: the method works on the network instead of one layer.
    """

    name: str
    syllabus: str
    kind: str
    function: Callable[..., Any]
    method: Callable[..., Any]
    settings: tuple[Mapping[str, Any], ...]
    data_free: bool
    whole: bool


ENTRIES: dict[str, Entry] = {}


def register(
    name: str,
    syllabus: str,
    kind: str,
    function: Callable[..., Any],
    *settings: Mapping[str, Any],
    method: Callable[..., Any] | None = None,
    data_free: bool = False,
    whole: bool = False,
) -> None:
    """Put a method into the table.

    Args:
        name, syllabus, kind, function, data_free, whole: as in :class:`Entry`.
        settings: at least one mapping of options for ``method``.
        method: None: ``function`` itself, called without the Hessian if it is data-free.
    Raises:
        ValueError: a name that is taken, an unknown kind, no setting.
    """
    if name in ENTRIES:
        raise ValueError(f"{name!r} is registered already")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if not settings:
        raise ValueError(f"{name!r} needs at least one setting")
    if method is None and data_free:

        def method(weight, hessian, **setting):
            return function(weight, **setting)

    ENTRIES[name] = Entry(name, syllabus, kind, function, method or function, settings, data_free, whole)


def describe(setting: Mapping[str, Any]) -> str:
    """Return a setting as the table shows it: ``bits=4 group_size=64``; a pattern (2, 4) as ``2:4``."""
    shown = {k: f"{v[0]}:{v[1]}" if isinstance(v, tuple) else str(v) for k, v in setting.items()}
    return " ".join(f"{k}={v.removeprefix('torch.')}" for k, v in shown.items())
