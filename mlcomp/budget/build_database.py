r"""Build the level database of a model: every layer at every level, from one ExactOBS trace a layer.

Notation: level = sparsity or n:m pattern, bits, or both; a joint level prunes first, then quantizes what is left.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, section 6 and appendix A.
Syllabus: 2.10
"""

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from safetensors.torch import load
from torch import Tensor, nn
from tqdm import tqdm

from mlcomp.budget.database import Database, Entry, Level, entry_facts, make_entry
from mlcomp.checks import removals
from mlcomp.context import isolated_run
from mlcomp.formats.packing import packed_nbytes
from mlcomp.formats.storage import sparse_nbytes
from mlcomp.layerwise.hessian import output_loss
from mlcomp.layerwise.matrix import Layer, find_layers, weight_matrix
from mlcomp.layerwise.task import as_bytes
from mlcomp.obs.exact_obs import exact_obs, exact_obs_trace
from mlcomp.obs.global_selection import select_counts
from mlcomp.obs.obq import obq
from mlcomp.obs.replay import replay
from mlcomp.resume import ResumeFolder, hash_model, hash_values
from mlcomp.workers import Map, Sent, check_map, mapped


@isolated_run
def build_database(
    model: nn.Module,
    hessians: Mapping[str, Tensor],
    levels: Sequence[Level],
    *,
    prune: Callable[..., Tensor] | None = None,
    quantize: Callable[..., object] | None = None,
    damp: float = 0.01,
    progress: bool = True,
    resume: str | os.PathLike | None = None,
    map: Map = map,
) -> Database:
    """Compress each layer of ``model`` to each level, independently of the other layers.

    Args:
        model: not modified.
        hessians: name → H, from :func:`mlcomp.layerwise.collect_hessians`; the database has these layers. A
            grouped convolution has one H for each group and is compressed group by group.
        levels: at least one, all different; :func:`density_levels`, or any mix.
        prune: prune(weight, hessian, *, sparsity or pattern) → weight. None: ExactOBS with global selection over the
            rows, all sparsities from one trace of the layer.
        quantize: quantize(weight, hessian, *, bits) → Quantized. None: OBQ in greedy order on min–max grids. A joint
            level quantizes the pruned weight. Greedy OBQ keeps its zeros: a zero is on the grid, so its cost is 0
            and it is settled before anything moves.
        damp: damping of ExactOBS and OBQ, as a share of the mean live diagonal.
        progress: show a progress bar.
        resume: folder in which finished layers are kept.
        map: by which all layers, none of which waits for another, are compressed: a callable like the built-in, such
            as the ``map`` of a pool of processes (:mod:`mlcomp.workers`).
    Returns:
        The database. Weights are float32 (float64 for float64 models).
    Raises:
        ValueError: before any work: no or repeated levels, unknown layer, an H that does not fit, a ``map`` that does
            not work, a resume folder of other settings. Later: a quantizer that moves a zero of a joint level. What a
            method raises names the layer.
    Guarantee: the same for every ``map`` whose workers have as many threads of torch as this process: database,
        resume folder, and the error of the first layer that has one.
    Cost: ExactOBS: one trace a layer and one replay of it for all levels; OBQ: one run a level.
    """
    levels = list(levels)
    if not levels or len(set(levels)) < len(levels):
        raise ValueError(f"levels must be at least one and all different, got {[level.name for level in levels]}")
    how = _Levels(levels, prune, quantize or functools.partial(obq, damp=damp), damp)
    tasks = {name: _task(name, layer, hessians[name], how) for name, layer in find_layers(model, hessians).items()}
    check_map(map, how)
    store = None
    if resume is not None:
        store = ResumeFolder(
            resume,
            {
                "model": hash_model(model),
                "hessians": hash_values(dict(hessians)),
                "options": hash_values((levels, prune, quantize, damp)),
            },
        )
    todo = {name: task for name, task in tasks.items() if store is None or name not in store}
    layers = {}
    with closing(mapped(_compressed, todo, map)) as made:
        for name in tqdm(tasks, disable=not progress, desc="database", unit="layer"):
            if name in todo:
                entries = next(made).value
                if store is not None:
                    tensors = {str(i): entry.weight for i, entry in enumerate(entries)}
                    store.save(name, tensors, {"entries": [entry_facts(entry) for entry in entries]})
            else:
                assert store is not None
                tensors, facts = store.load(name)
                entries = tuple(make_entry(fact, tensors[str(i)]) for i, fact in enumerate(facts["entries"]))
            layers[name] = entries
    return Database(layers)


@dataclass(frozen=True)
class _Levels:
    """What all layers share."""

    levels: list[Level]
    prune: Callable[..., Tensor] | None
    quantize: Callable[..., object]
    damp: float


@dataclass(frozen=True)
class _Task:
    """One layer's share: in this process it points to the layer, pickled it holds W and H as plain bytes."""

    name: str
    weight: Callable[[], Tensor]
    hessian: Tensor
    how: _Levels

    def __reduce__(self) -> tuple:
        weight = self.weight()
        data = as_bytes({"weight": weight, "hessian": self.hessian})
        return _arrived, (self.name, data, weight.device.type, self.how)


def _arrived(name: str, data: bytes, device: str, how: _Levels) -> _Task:
    tensors = {key: tensor.to(device) for key, tensor in load(data).items()}
    return _Task(name, functools.partial(tensors.__getitem__, "weight"), tensors["hessian"], how)


def _task(name: str, layer: Layer, hessian: Tensor, how: _Levels) -> _Task:
    weight = functools.partial(weight_matrix, layer)
    groups, _, inp = (shape := weight().shape)
    whole = hessian if hessian.ndim == 3 else hessian[None]
    if whole.shape != (groups, inp, inp):
        raise ValueError(f"layer {name!r}: H {tuple(whole.shape)} does not fit {tuple(shape)}")
    return _Task(name, weight, whole, how)


def _compressed(task: _Task) -> Sent:
    how = task.how
    try:
        entries = _layer_entries(task.weight(), task.hessian, how.levels, how.prune, how.quantize, how.damp)
    except ValueError as problem:
        raise ValueError(f"layer {task.name!r}: {problem}") from problem
    return Sent(entries)


def _layer_entries(
    weight: Tensor, hessian: Tensor, levels: list[Level], prune: Callable | None, quantize: Callable, damp: float
) -> tuple[Entry, ...]:
    pruners = [_pruner(w, h, levels, prune, damp) for w, h in zip(weight, hessian, strict=True)]
    pruned: dict[tuple, Tensor] = {}
    entries = []
    for level in levels:
        key = (level.sparsity, level.pattern)
        if key not in pruned:
            pruned[key] = torch.stack([pruner(level) for pruner in pruners])
        matrix, extra, value_bits = pruned[key], 0, 8 * weight.element_size()
        if level.bits is not None:
            results = [quantize(w, h, bits=level.bits) for w, h in zip(matrix, hessian, strict=True)]
            extra = sum(r.nbytes - packed_nbytes(r.codes.numel(), level.bits) for r in results)
            matrix, zeros = torch.stack([r.dequantize() for r in results]).to(weight.dtype), matrix == 0
            if key != (None, None) and (matrix[zeros] != 0).any():
                raise ValueError(f"level {level.name}: the quantizer moved weights that were pruned to zero")
            value_bits = level.bits
        entries.append(_measure(level, weight, matrix, hessian, extra, value_bits))
    return tuple(entries)


def _pruner(
    weight: Tensor, hessian: Tensor, levels: Iterable[Level], prune: Callable | None, damp: float
) -> Callable[[Level], Tensor]:
    """Return a function from a level to the pruned weight; one ExactOBS trace serves all sparsities."""
    sparsities = sorted({level.sparsity for level in levels if level.sparsity is not None})
    traced: dict[float, Tensor] = {}
    if prune is None and sparsities:
        trace = exact_obs_trace(weight, hessian, damp=damp)
        totals = [removals(sparsity, weight.numel()) for sparsity in sparsities]
        counts = torch.stack([select_counts(trace.losses, total).counts for total in totals])
        traced = dict(zip(sparsities, replay(trace, counts), strict=True))

    def at(level: Level) -> Tensor:
        if level.sparsity is None and level.pattern is None:
            return weight
        if prune is not None:
            target = {"pattern": level.pattern} if level.sparsity is None else {"sparsity": level.sparsity}
            return prune(weight, hessian, **target).to(weight.dtype)
        if level.sparsity is not None:
            return traced[level.sparsity]
        return exact_obs(weight, hessian, pattern=level.pattern, damp=damp)

    return at


def _measure(level: Level, weight: Tensor, matrix: Tensor, hessian: Tensor, extra: int, value_bits: int) -> Entry:
    w, h = weight.double(), hessian.double()
    # Rounding may take a zero error below zero.
    error = max(0.0, float(output_loss(matrix.double() - w, h).sum()) / 2)
    reference = float(output_loss(w, h).sum()) / 2
    nonzeros, shape = int(matrix.count_nonzero()), (1, matrix.numel())
    nbytes = extra + min(
        sparse_nbytes(shape, nonzeros, format=kind, value_bits=value_bits) for kind in ("dense", "bitmask")
    )
    relative = error / reference if reference > 0 else (0.0 if error == 0 else float("inf"))
    return Entry(level, matrix, error, relative, nonzeros, nbytes, value_bits)
