"""Put a model together from the level database, and measure what each level does to its loss.

Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, section 6 ("stitching").   Syllabus: 2.10
"""

from collections.abc import Callable, Mapping, Sequence

from torch import nn
from tqdm import tqdm

from mlcomp.budget.database import Database
from mlcomp.context import isolated, isolated_run
from mlcomp.layerwise.fit import choose_layers, copy_model
from mlcomp.layerwise.matrix import set_weight_matrix


@isolated
def stitch(model: nn.Module, database: Database, choice: Sequence[int] | Mapping[str, int]) -> nn.Module:
    """Return a copy of ``model`` whose layers are at the chosen levels.

    Args:
        model: not modified.
        database: its weights go into the copy, in the dtype of each layer.
        choice: index of the level, in the order of ``database.layers``, or by name (missing layers stay dense).
    """
    if not isinstance(choice, Mapping):
        if len(choice) != len(database.layers):
            raise ValueError(
                f"choice must have one level for each of {len(database.layers)} layers, got {len(choice)}"
            )
        choice = dict(zip(database.layers, choice, strict=True))
    unknown = set(choice) - set(database.layers)
    if unknown:
        raise ValueError(f"the database has no layer(s) {sorted(unknown)}")
    result = copy_model(model)
    chosen, _ = choose_layers(result, choice, tied="allow") if choice else ({}, {})
    for name, level in choice.items():
        if not 0 <= level < len(database.layers[name]):
            raise ValueError(f"layer {name!r} has levels 0 to {len(database.layers[name]) - 1}, got {level!r}")
        set_weight_matrix(chosen[name], database.layers[name][level].weight)
    return result


@isolated_run
def level_losses(
    model: nn.Module, database: Database, loss: Callable[[nn.Module], float], *, progress: bool = True
) -> list[list[float]]:
    """Return how much ``loss`` grows when one layer alone is at a level: an error measure for ``choose_levels``.

    Unlike the layer's own error it knows how much the network minds. It may be negative. This is what the authors'
    published dynamic program uses; "relative" errors need no labels and no further forward passes.

    Args:
        model: not modified.
        loss: from a model to a number, on calibration data (for example the cross-entropy).
        progress: show a progress bar.
    Cost: layers × levels + 1 evaluations of ``loss``.
    """
    probe = copy_model(model)
    layers, _ = choose_layers(probe, database.layers, tied="allow")
    base = float(loss(probe))
    rows = []
    for name, entries in tqdm(database.layers.items(), disable=not progress, desc="losses", unit="layer"):
        dense, row = layers[name].weight.detach().clone(), []
        for entry in entries:
            set_weight_matrix(layers[name], entry.weight)
            row.append(float(loss(probe)) - base)
        layers[name].weight.data.copy_(dense)
        rows.append(row)
    return rows
