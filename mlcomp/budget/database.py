r"""The level database: each layer compressed to many levels on its own, to be combined under a budget later.

Notation: level = sparsity or n:m pattern, bits, or both; $\lVert\delta W X\rVert^2$ the error of a level.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, section 6 and A.  Density grid: (1 − δ)^i, δ = 0.1.
Syllabus: 2.10
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from jaxtyping import Float
from torch import Tensor

from mlcomp.checks import check_bits, check_choice, check_interval, check_pattern, check_sparsity
from mlcomp.context import isolated
from mlcomp.resume import load_piece, save_piece


@dataclass(frozen=True)
class Level:
    """What is asked of one layer: a share of zeros or a pattern (n, m), bits of what is left, both, or nothing."""

    sparsity: float | None = None
    pattern: tuple[int, int] | None = None
    bits: int | None = None

    def __post_init__(self) -> None:
        if self.sparsity is not None and self.pattern is not None:
            raise ValueError(f"a level has a sparsity or a pattern, got {self.sparsity} and {self.pattern}")
        if self.sparsity is not None:
            check_sparsity(self.sparsity)
        if self.pattern is not None:
            check_pattern(self.pattern)
        if self.bits is not None:
            check_bits(self.bits)

    @property
    def name(self) -> str:
        """Such as "dense", "43.0 %", "2:4", "4 bit", "2:4 + 4 bit"."""
        parts = [] if self.sparsity is None else [f"{100 * self.sparsity:.1f} %"]
        parts += [] if self.pattern is None else ["{}:{}".format(*self.pattern)]
        parts += [] if self.bits is None else [f"{self.bits} bit"]
        return " + ".join(parts) or "dense"


def density_levels(*, delta: float = 0.1, last: float = 0.99) -> tuple[Level, ...]:
    """Return the dense level and sparsities 1 − (1 − δ)^i up to ``last``: each level keeps 1 − δ of the one before.

    The paper takes δ = 0.1.
    """
    check_interval("delta", delta, "(0, 1)")
    check_interval("last", last, "[0, 1)")
    levels, density = [Level()], 1 - delta
    while 1 - density <= last:
        levels.append(Level(sparsity=1 - density))
        density *= 1 - delta
    return tuple(levels)


@dataclass(frozen=True)
class Entry:
    """One layer at one level.

    Attributes:
        weight: (groups, out, inp), as in ``mlcomp.layerwise.weight_matrix``.
        error: ‖δW·X‖² on the calibration inputs.
        relative_error: the same over ‖W·X‖² (0/0 is 0).
        nonzeros: weights that are not zero.
        nbytes: as packed: values or codes of the non-zeros with a bitmask, or dense where that is less; steps and
            zero codes of quantized levels included.
        value_bits: bits of one stored value.
    """

    level: Level
    weight: Float[Tensor, "groups out inp"]
    error: float
    relative_error: float
    nonzeros: int
    nbytes: int
    value_bits: int


@dataclass(frozen=True)
class Database:
    """Layer name → its entries, in the order of the levels. All layers have the same levels."""

    layers: Mapping[str, tuple[Entry, ...]]

    def errors(self, kind: str = "relative") -> list[list[float]]:
        """Return one row for each layer: "relative" errors (‖δWX‖²/‖WX‖², comparable between layers) or "squared"."""
        check_choice("kind", kind, ("relative", "squared"))
        pick = "relative_error" if kind == "relative" else "error"
        return [[getattr(entry, pick) for entry in entries] for entries in self.layers.values()]

    def costs(self, kind: str, positions: Mapping[str, int] | None = None) -> list[list[int]]:
        """Return whole-number costs, one row for each layer.

        Args:
            kind: "flops": 2 · positions · non-zeros; "bops": that times the bits of a value; "nbytes": as packed.
            positions: name → how often the layer's matrix is applied (``model_cost(…).positions``); not for "nbytes".
        """
        if kind == "nbytes":
            return [[entry.nbytes for entry in entries] for entries in self.layers.values()]
        if kind not in ("flops", "bops"):
            raise ValueError(f'kind must be "flops", "bops" or "nbytes", got {kind!r}')
        if positions is None or set(self.layers) - set(positions):
            missing = sorted(set(self.layers) - set(positions or ()))
            raise ValueError(f"{kind} needs the positions of each layer, missing: {missing}")
        return [
            [2 * positions[name] * e.nonzeros * (e.value_bits if kind == "bops" else 1) for e in entries]
            for name, entries in self.layers.items()
        ]

    def save(self, path: str | os.PathLike) -> None:
        """Write everything into one safetensors file, with a hash; killed meanwhile, a file there is as before."""
        tensors, facts = {}, []
        for name, entries in self.layers.items():
            for i, entry in enumerate(entries):
                tensors[f"{i}/{name}"] = entry.weight
            facts.append([name, [entry_facts(entry) for entry in entries]])
        save_piece(path, tensors, facts, of="database")


@isolated
def load_database(path: str | os.PathLike) -> Database:
    """Read what :meth:`Database.save` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or no database; the message names it.
    """
    tensors, facts = load_piece(path, of="database")
    return Database(
        {
            name: tuple(make_entry(fact, tensors[f"{i}/{name}"]) for i, fact in enumerate(entries))
            for name, entries in facts
        }
    )


def entry_facts(entry: Entry) -> dict:
    """Return what JSON can hold of an entry: all but its weight."""
    facts = {key: value for key, value in vars(entry).items() if key != "weight"}
    return facts | {"level": asdict(entry.level)}


def make_entry(facts: dict, weight: Tensor) -> Entry:
    """Return the entry of :func:`entry_facts` and its weight."""
    level = dict(facts["level"])
    level["pattern"] = None if level["pattern"] is None else tuple(level["pattern"])
    return Entry(**{**facts, "level": Level(**level), "weight": weight})
