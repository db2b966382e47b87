r"""Compress the layers of any torch model, each by a method that sees its weight and the Hessian of its inputs.

Notation: W weight (out, inp), $H = 2XX^\top$ of the layer's inputs X, Ŵ = method(W, H).
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, section 3; inputs taken from the already compressed
part: Hubara et al. 2021, arXiv:2006.10518 (sequential AdaQuant).   Syllabus: 2.01
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mlcomp.checks import check_choice
from mlcomp.context import isolated_run
from mlcomp.formats.stored import Stored
from mlcomp.layerwise.attention import attention_split
from mlcomp.layerwise.fit import copy_model
from mlcomp.layerwise.hessian_sum import HessianSum
from mlcomp.layerwise.inputs import collect_hessians
from mlcomp.layerwise.kept import pack_parts, unpack_parts
from mlcomp.layerwise.matrix import Layer
from mlcomp.layerwise.plan import Chosen, Method, check_layers, make_plan, needed_inputs
from mlcomp.layerwise.report import CompressionReport, LayerRow, left_out, skipped_row
from mlcomp.layerwise.running import check_batches, without_cache, without_logits
from mlcomp.layerwise.staging import all_from_the_dense, one_after_the_other, without_inputs
from mlcomp.layerwise.task import Outcome, Piece
from mlcomp.layerwise.valid import Valid, check_valid
from mlcomp.modes import evaluating
from mlcomp.resume import ResumeFolder, hash_batches, hash_model, hash_values
from mlcomp.workers import Map, check_map

__all__ = ["CompressionReport", "LayerRow", "collect_hessians", "compress"]

PIECES = "packed"  # how a resume folder holds a layer: one begun by a version that did otherwise is another run's


@isolated_run
def compress(
    model: nn.Module,
    batches: Iterable | None,
    method: Method | Mapping[str, Method],
    *,
    layers: Chosen = None,
    sequential: bool = True,
    progress: bool = True,
    resume: str | os.PathLike | None = None,
    held_out: Iterable | None = None,
    valid: Valid = None,
    tied: str = "skip",
    on_error: str = "raise",
    layers_per_pass: int | None = None,
    dtype: torch.dtype = torch.float32,
    errors: bool = False,
    inplace: bool = False,
    map: Map = map,
) -> tuple[nn.Module, CompressionReport]:
    r"""Return a copy of ``model`` with compressed layers, and a report with one row for each layer.

    Each chosen layer's W is replaced by ``method(W, H)`` with $H = 2XX^\top$ of its own inputs. H is a sum, not a
    mean: scaling it by a positive number changes no method's result (damping is relative), so no count is needed.
    A grouped convolution is compressed group by group, each with its own H.

    Args:
        model: any module with linear or convolutional layers (:func:`mlcomp.layerwise.is_layer`); never modified. It
            runs in eval mode without gradients, so BatchNorm statistics stay. The projections of an
            ``nn.MultiheadAttention`` are layers of its name with "q_proj", "k_proj", "v_proj" and "out_proj". Experts
            that lie in one 3-D parameter (experts, out, inp) are layers "path.parameter.0", … .
        batches: calibration batches, each a tensor, a tuple of positional or a mapping of keyword arguments. They are
            read several times (a list or DataLoader, in the same order each time); an iterator that can be read only
            once needs sequential=False, and all layers' H at once. None if no method looks at the inputs.
        method: method(weight, hessian) → a tensor like weight, or a result with ``.dequantize()`` and ``.nbytes``
            (:class:`mlcomp.quant.Quantized`). Options are bound by functools.partial; a torch.Generator among them
            begins anew for each layer. A method of the weight alone
            (:func:`mlcomp.quant.rtn`, :func:`mlcomp.prune.magnitude`) is called with it alone, one whose second
            argument is ``input_norm`` (:func:`mlcomp.prune.wanda`) with the norms of the inputs. No H is made for
            these, and where all methods are of the weight alone, the model is not run. A mapping from layer names to
            methods compresses those layers, each by its own.
        layers: names, or a predicate (name, module) → bool. None: all, or the keys of a mapping.
        sequential: take a layer's inputs from the model whose earlier layers are compressed already. False: all from
            the dense model.
        progress: show a progress bar.
        resume: folder in which finished layers are stored, packed as the report counts them; a run with the same
            settings continues after the last. The report's results stay in these files, and take no memory until
            they are looked at.
        held_out: batches on which the error is also measured.
        valid: padded positions to ignore, see :func:`collect_hessians`.
        tied: a weight whose memory another module holds, too (an output head tied to the embedding, a transposed
            view) is left alone with "skip", and an error if the layer was asked for by name; "untie" gives the layer
            a weight of its own.
        on_error: a layer whose method raises ValueError, or that no sample reaches (an expert, once the layers before
            it are compressed), is an error ("raise") or left as it is, with the message in the report ("skip").
        layers_per_pass: with sequential=False, how many layers' H are held at once, one pass each. None: those of
            one block, and of all layers that are in no block.
        dtype: of H, float32 or float64. The weight is passed in float32 (float64 if it is float64).
        errors: measure ``error`` of layers whose method needs no H, too; for this one is made. The held-out error is
            measured wherever there are held-out batches.
        inplace: compress ``model`` itself, for want of memory; an error then leaves it half compressed.
        map: by which the methods are called for layers that do not wait for each other: a callable like the built-in,
            such as the ``map`` of a pool of processes (:mod:`mlcomp.workers`). With sequential=True these are the
            layers of one stage, such as query, key and value; all later ones wait for the compressed weights of
            these, so that more workers are of no use. With sequential=False they are the layers of a block, or
            ``layers_per_pass`` layers; where no method looks at the inputs, all layers.
    Returns:
        The copy, each module in the mode it had, weights in their dtype; and the report, which also has a line for
        each parameter of two or more dimensions that was left, with the reason, and the packed results
        (``report.results``, for :func:`mlcomp.layerwise.save`).
    Raises:
        ValueError: before any layer is compressed: no layer chosen, unknown name, a layer whose weight is no plain
            parameter with values, or that has a forward of its own (an error if it was asked for by name, else left
            with the reason); NaN or inf in a weight or in a layer's input; options that do not fit a layer (all such
            layers are named); a layer that is never called; batches that the model does not take, or that can be read
            only once; a resume folder of other settings. Later: a result of wrong shape or with NaN.
    Guarantee: ``model`` is bit for bit as before; a run killed at any time and resumed gives the same result. So does
        every ``map``, with the same report (but for the seconds) and resume folder, and the same error for the same
        layer, if its workers compute as this process does: with as many threads of torch, on the same kind of device.
    Cost: one pass over all batches to find the order and check them. Where blocks follow one another, as the layers
        of a transformer do (``layerwise/chains.py`` finds them in a run), each is run for its stages (a stage is a
        layer, or several that read the same tensor) and once more for the inputs of the next: some five passes in
        all, or on a CPU little more than one, as what was made in the block is kept while there is room; with
        sequential=False, once. Layers that read the same tensor share one H and its factor. A model without such
        blocks is run from its beginning for each stage, up to its layers: stages/2 passes. Both give the same bits.
        Memory: a second model (none with inplace=True), the H of one stage (of one block with sequential=False), the
        inputs of one block for all batches, and the packed results (none with ``resume``); on a CPU also outputs of
        that block's layers, up to 5 % of the model's bytes.
    """
    _check_options(tied, on_error, sequential, layers_per_pass)
    if batches is not None:
        check_batches(batches, again=_why_again(sequential, resume, layers_per_pass))
    if held_out is not None:
        check_batches(held_out, again="measuring held-out errors")
    result = model if inplace else copy_model(model)
    with attention_split(result) as split:
        plan = make_plan(split, method, layers, tied)
        check_valid(valid, plan.methods)
        check_layers(plan, on_error)
        check_map(map, *plan.methods.values())
        needs = {name: "hessian" if errors else needed_inputs(chosen) for name, chosen in plan.methods.items()}
        reads = held_out is not None or set(needs.values()) != {"nothing"}
        if reads and batches is None:
            raise ValueError("batches is None, and the inputs of the layers are needed: give calibration batches")
        store = None
        if resume is not None:
            options = (sequential, valid, tied, on_error, str(dtype), errors, PIECES)
            print_of = {
                "model": hash_model(model),
                "method": hash_values(plan.methods),
                "options": hash_values(options),
            }
            print_of |= {"batches": hash_batches(batches), "held_out": hash_batches(held_out)}
            store = ResumeFolder(resume, print_of)
        run = CompressionRun(split, plan.layers, (batches, held_out), needs, valid, on_error, dtype, store, map)
        with (
            evaluating(split),
            without_cache(split),
            without_logits(split, plan.methods),
            tqdm(total=len(plan.methods), disable=not progress, desc="layers", unit="layer") as bar,
        ):
            if not reads:
                rows = without_inputs(run, plan, bar)
            elif sequential:
                rows = one_after_the_other(run, plan, bar)
            else:
                rows = all_from_the_dense(run, plan, layers_per_pass, bar)
        rows |= {name: skipped_row(name, plan.layers[name], reason) for name, reason in plan.skipped.items()}
        left = left_out(split, plan.parameters(split, rows))
    ordered = tuple(rows[name] for name in plan.layers if name in rows)
    results = {name: run.results[name] for name in plan.layers if name in run.results}
    return result, CompressionReport(ordered, left, sum(p.numel() for p in model.parameters()), results)


@dataclass
class CompressionRun:
    """What all layers of one call share.

    Attributes:
        largest: bytes of the largest H so far.
    """

    model: nn.Module
    layers: Mapping[str, Layer]
    parts: tuple[Iterable | None, Iterable | None]
    needs: Mapping[str, str]
    valid: Valid
    on_error: str
    dtype: torch.dtype
    store: ResumeFolder | None
    map: Map
    results: dict[str, tuple[Stored, ...]] = field(default_factory=dict)
    largest: int = 0

    def empty_sums(self, names: Iterable[str]) -> list[dict[str, HessianSum]]:
        """Return the sums, of calibration and of held-out batches, that layers which are not finished still need."""
        todo = [name for name in names if self.unfinished(name)]
        sums: list[dict[str, HessianSum]] = [{}, {}]
        for name in todo:
            layer, need = self.layers[name], self.needs[name]
            if need != "nothing":
                sums[0][name] = HessianSum(name, layer, self.dtype, diagonal=need == "norms")
            if self.parts[1] is not None:
                sums[1][name] = HessianSum(name, layer, self.dtype)
        return sums

    def unfinished(self, name: str) -> bool:
        """Return whether the layer is not in the store."""
        return self.store is None or name not in self.store

    def keep(self, name: str, made: Outcome | Piece) -> tuple[Tensor, LayerRow]:
        """Store what a layer's task gave, and return its new weight matrices (groups, out, inp) and row."""
        if self.store is not None:
            piece = made.piece()
            self.store.save(name, piece.tensors, piece.facts)
        return self._read(name, made)

    def finished(self, name: str) -> tuple[Tensor, LayerRow]:
        """Return what :meth:`keep` did for a layer that is in the store."""
        assert self.store is not None
        return self._read(name, Piece(*self.store.load(name)))

    def _read(self, name: str, made: Outcome | Piece) -> tuple[Tensor, LayerRow]:
        matrix, row, parts = made.read(self.layers[name])
        if parts and self.store is not None:  # in its file the result takes no memory
            tensors, facts = pack_parts(parts)
            parts = unpack_parts(self.store.mapped(name, tensors), facts)
        if parts:
            self.results[name] = parts
        return matrix, row


def _why_again(sequential: bool, resume: object, layers_per_pass: int | None) -> str | None:
    if sequential:
        return "sequential=True"
    if resume is not None:
        return "resume"
    return "layers_per_pass" if layers_per_pass is not None else None


def _check_options(tied: str, on_error: str, sequential: bool, layers_per_pass: int | None) -> None:
    check_choice("tied", tied, ("skip", "untie"))
    check_choice("on_error", on_error, ("raise", "skip"))
    if layers_per_pass is not None and (sequential or layers_per_pass < 1):
        raise ValueError(f"layers_per_pass needs sequential=False and must be at least 1, got {layers_per_pass!r}")
