"""In which order the layers of a model are compressed, and what has to run for the inputs of each.

Syllabus: 2.01
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor
from tqdm import tqdm

from mlcomp.layerwise.heap import give_back
from mlcomp.layerwise.hessian import SharedHessian
from mlcomp.layerwise.hessian_sum import HessianSum
from mlcomp.layerwise.inputs import add_hessians, trace_layers, whole_runs
from mlcomp.layerwise.matrix import set_weight_matrix
from mlcomp.layerwise.plan import Plan
from mlcomp.layerwise.report import LayerRow
from mlcomp.layerwise.running import check_called
from mlcomp.layerwise.task import LayerTask, compress_layer
from mlcomp.layerwise.walk import Walk, walks
from mlcomp.workers import mapped

if TYPE_CHECKING:
    from mlcomp.layerwise.compress import CompressionRun

Sums = list[dict[str, HessianSum]]  # of the calibration and of the held-out batches
Rows = dict[str, LayerRow]
Weights = dict[str, Tensor]


def without_inputs(run: "CompressionRun", plan: Plan, bar: tqdm) -> Rows:
    """Compress layers whose methods look at the weight alone; the model runs only to see which experts it uses."""
    batches = run.parts[0]
    calls: dict[str, int] = {}
    if plan.guessed and batches is not None:
        calls = dict(trace_layers(run.model, batches, plan.guessed, plan.layers).calls)
    rows: Rows = {}
    _compress(run, plan, list(plan.without_idle_experts(calls)), [{}, {}], rows, bar, None)
    return rows


def one_after_the_other(run: "CompressionRun", plan: Plan, bar: tqdm) -> Rows:
    """Compress each stage on inputs that come from the layers before it, compressed already."""
    calibration, held_out = run.parts
    assert calibration is not None
    with walks(run.model, run.parts, plan.layers, plan.methods, run.valid) as proven:
        trace = trace_layers(run.model, calibration, plan.methods, plan.layers, valid=run.valid)
        if held_out is not None:  # whatever is wrong with these batches is told before any work, too
            trace_layers(run.model, held_out, plan.methods, plan.layers, valid=run.valid)
    methods = plan.without_idle_experts(trace.calls)
    if run.on_error == "raise" or not any(trace.calls[name] for name in methods):
        check_called({name: trace.calls[name] for name in methods})
    found, rows = proven(), Rows()
    stages = [[name for name in stage if name in methods] for stage in trace.stages]
    stages.append([name for name in methods if not trace.calls[name]])
    for stage in stages:
        # A layer that is called more than once has its inputs all over the pass, so that one must run to the end.
        once = all(trace.calls[name] == 1 for name in stage)
        called = all(trace.calls[name] for name in stage)
        fits = [walk for walk in found if called and walk.block_of(stage) is not None]
        sums = _stage_sums(run, stage, fits[0] if fits else None, stop=once)
        _compress(run, plan, stage, sums, rows, bar, None)
        del sums  # before those of the next stage are made
        for walk in found:
            walk.finished({name: run.layers[name] for name in stage})
    return rows


def _stage_sums(run: "CompressionRun", names: list[str], walk: Walk | None, *, stop: bool) -> Sums:
    """Return the sums of a stage; ``stop``: its layers are called once, on one tensor, so a run can end there."""
    result = run.empty_sums(names)
    block = None if walk is None else walk.block_of(names)
    if walk is not None and block is not None and any(result):
        walk.reach(block)
    for part, (batches, sums) in enumerate(zip(run.parts, result, strict=True)):
        if sums and batches is not None:
            runs = whole_runs(run.model, batches, run.valid) if walk is None else walk.runs(part)
            # Of layers with one sum only the first is watched: the run ends before it, and none of them is computed.
            first = next(iter(sums.values()))
            watched = {first.name: first} if stop and all(map(first.same, sums.values())) else sums
            add_hessians(run.model, runs, run.layers, watched, stop=stop)
            for total in sums.values():
                if total.name not in watched:
                    total.hessian, total.samples = first.hessian, first.samples
    return result


def all_from_the_dense(run: "CompressionRun", plan: Plan, size: int | None, bar: tqdm) -> Rows:
    """Compress each layer on its inputs in the dense model: block by block where there are blocks, else in passes.

    A pass is for ``size`` layers (None: for all that are in no block; then batches that can be read only once are
    read once, for all layers).
    """
    found: list[Walk] = []
    if size is None and not any(isinstance(part, Iterator) for part in run.parts):
        with walks(run.model, run.parts, plan.layers, plan.methods, run.valid) as proven:
            for batches in run.parts:
                for call, _ in () if batches is None else whole_runs(run.model, batches, run.valid):
                    call()
        found = proven()
    rows: Rows = {}
    later: Weights = {}  # written at the end, so that all else is run on the dense model
    walked = {name for walk in found for name in walk.chain.inside}
    names = [name for name in plan.methods if name not in walked]
    for start in range(0, len(names), size or max(1, len(names))):
        part_names = names[start : start + (size or len(names))]
        sums = _stage_sums(run, part_names, None, stop=False)
        seen = {name: total.samples for name, total in sums[0].items()}
        if seen and not found and not any(seen.values()):
            check_called(seen)  # raises
        _compress(run, plan, _used(plan, part_names, sums), sums, rows, bar, later)
    for walk in found:
        _dense_walk(run, plan, walk, rows, bar, None if walk is found[-1] else later)
    for name, weight in later.items():
        set_weight_matrix(run.layers[name], weight)
    return rows


def _dense_walk(run: "CompressionRun", plan: Plan, walk: Walk, rows: Rows, bar: tqdm, later: Weights | None) -> None:
    """Go through the blocks of a chain; each has passed its dense output on before its weights change."""
    blocks: list[list[str]] = [[] for _ in walk.chain.blocks]
    for name in plan.methods:
        if name in walk.chain.inside:
            blocks[walk.chain.inside[name]].append(name)
    last = max((i for i, names in enumerate(blocks) if any(run.empty_sums(names))), default=-1)
    for i, names in enumerate(blocks):
        sums = run.empty_sums(names)
        if i <= last:
            walk.reach(i)
            for part, total in enumerate(sums):
                add_hessians(run.model, walk.runs(part, onward=True), run.layers, total, stop=False)
            walk.moved()
        _compress(run, plan, _used(plan, names, sums), sums, rows, bar, later)
        del sums


def _used(plan: Plan, names: Iterable[str], sums: Sums) -> list[str]:
    """Return the names, but for guessed experts that no sample has reached; those that are finished stay."""
    seen = {name: total.samples for name, total in sums[0].items()}
    used = plan.without_idle_experts(seen)
    return [name for name in names if name not in seen or name in used]


def _compress(
    run: "CompressionRun", plan: Plan, names: list[str], sums: Sums, rows: Rows, bar: tqdm, later: Weights | None
) -> None:
    """Compress layers that do not wait for each other; their weights go into the model, or into ``later``."""
    size = max((total.hessian.nbytes for part in sums for total in part.values()), default=0)
    largest, run.largest = size >= run.largest, max(size, run.largest)
    if largest:  # the most memory is needed here, in pieces that fit no hole which the model's runs have left
        give_back()
    shared: list[SharedHessian] = []
    tasks = {
        name: LayerTask.of(
            name,
            run.layers[name],
            plan.methods[name],
            [part.get(name) for part in sums],
            skip=run.on_error == "skip",
            shared=partial(_shared, shared, name, sums[0]),
        )
        for name in names
        if run.unfinished(name)
    }
    with closing(mapped(compress_layer, tasks, run.map)) as made:
        for name in names:
            weight, rows[name] = run.keep(name, next(made)) if name in tasks else run.finished(name)
            if later is None:
                set_weight_matrix(run.layers[name], weight)
            else:
                later[name] = weight
            bar.update()
    shared.clear()
    if largest:
        give_back()


def _shared(known: list[SharedHessian], name: str, sums: dict[str, HessianSum]) -> SharedHessian | None:
    """Return the layer's H if another layer of ``sums`` has the same tensor: that of ``known``, or put there."""
    total = sums.get(name)
    if total is None or sum(other.hessian is total.hessian for other in sums.values()) < 2:
        return None
    matrix = total.hessian[0]
    if not known or known[-1].hessian.data_ptr() != matrix.data_ptr():  # layers of one tensor follow one another
        known[:] = [SharedHessian(matrix)]
    return known[-1]
