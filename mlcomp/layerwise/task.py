"""One layer's share of the work, as it can be sent away, and what comes back.

In this process a task points to the layer and to the sums of its inputs. Pickled it holds W and H as plain bytes, so
that no view takes a whole parameter along, and what comes back is what a resume folder holds of a layer.

Syllabus: 2.01
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from mlcomp.checks import check_finite
from mlcomp.formats.storage import stored_nbytes
from mlcomp.formats.stored import Stored, store
from mlcomp.layerwise.hessian import SharedHessian, sharing
from mlcomp.layerwise.hessian_sum import HessianSum
from mlcomp.layerwise.kept import kept_matrix, pack_parts, unpack_parts
from mlcomp.layerwise.matrix import Layer, weight_matrix
from mlcomp.layerwise.plan import Method, call_method, is_own, with_own_draws
from mlcomp.layerwise.report import LayerRow, output_error
from mlcomp.layerwise.running import no_sample

Matrices = Float[Tensor, "groups out inp"]


@dataclass(frozen=True)
class Piece:
    """What is kept of a finished layer: tensors, and facts that JSON can hold."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def piece(self) -> "Piece":
        """Return itself."""
        return self

    def read(self, layer: Layer) -> tuple[Matrices, LayerRow, tuple[Stored, ...]]:
        """Return the layer's new matrices, its row, and the packed form of the method's results, if they have one."""
        here = {key: tensor.to(layer.weight.device) for key, tensor in self.tensors.items()}
        parts = unpack_parts(here, self.facts["parts"])
        row = LayerRow(**{**self.facts["row"], "shape": tuple(self.facts["row"]["shape"])})
        return kept_matrix(layer, parts), row, parts if self.facts["kept"] else ()


@dataclass(frozen=True)
class Outcome:
    """What a task gives in this process; pickled it is its :class:`Piece`.

    Attributes:
        matrix: with the values that ``dtype``, that of the layer, can hold.
        parts: the packed form of the method's results, if they have one.
    """

    matrix: Matrices
    row: LayerRow
    parts: tuple[Stored, ...]
    dtype: torch.dtype

    def piece(self) -> Piece:
        """Return what is kept of it."""
        parts = self.parts or (store(self.matrix.flatten(0, 1).to(self.dtype)),)
        tensors, facts = pack_parts(parts)
        return Piece(tensors, {"row": asdict(self.row), "kept": bool(self.parts), "parts": facts})

    def read(self, layer: Layer) -> tuple[Matrices, LayerRow, tuple[Stored, ...]]:
        """Return what :meth:`Piece.read` does."""
        return self.matrix, self.row, self.parts

    def __reduce__(self) -> tuple:
        piece = self.piece()
        return _arrived, (as_bytes(piece.tensors), piece.facts)


def _arrived(data: bytes, facts: Mapping[str, Any]) -> Piece:
    return Piece(load(data), facts)


def as_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the values of tensors as a safetensors file: of a view only what it shows, and no shared memory."""
    return save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})


@dataclass(frozen=True)
class Inputs:
    """What is known of a layer's inputs.

    Attributes:
        hessian: (groups, inp, inp), or where it is the ``diagonal`` alone (groups, inp).
        samples: how many inputs it is the sum of.
    """

    hessian: Tensor
    samples: int
    diagonal: bool


@dataclass(frozen=True)
class LayerTask:
    """What a layer's new weight depends on.

    Attributes:
        weight: gives the matrices (groups, out, inp) of :func:`mlcomp.layerwise.weight_matrix`.
        shape, dtype: of the layer's own weight.
        inputs: of the calibration and of the held-out batches; None where they are not needed.
        skip: a ValueError of the method leaves the layer as it is.
        shared: gives what layers that read the same tensor have in common; it stays in this process.
    """

    name: str
    method: Method
    weight: Callable[[], Matrices]
    shape: tuple[int, ...]
    dtype: torch.dtype
    inputs: tuple[Inputs | None, Inputs | None]
    skip: bool
    shared: Callable[[], SharedHessian | None]

    @classmethod
    def of(
        cls,
        name: str,
        layer: Layer,
        method: Method,
        sums: Sequence[HessianSum | None],
        *,
        skip: bool,
        shared: Callable[[], SharedHessian | None],
    ) -> "LayerTask":
        """Return the task of one layer, whose inputs were summed over both sets of batches."""
        first, second = (None if s is None else Inputs(s.hessian, s.samples, s.diagonal) for s in sums)
        weight = partial(weight_matrix, layer)
        return cls(name, method, weight, tuple(layer.weight.shape), layer.weight.dtype, (first, second), skip, shared)

    def __reduce__(self) -> tuple:
        weight = self.weight()
        sent = {"weight": weight} | {str(i): part.hessian for i, part in enumerate(self.inputs) if part is not None}
        rest = [None if part is None else (part.samples, part.diagonal) for part in self.inputs]
        own = (self.name, self.method, self.shape, self.dtype, self.skip)
        return _sent_task, (as_bytes(sent), weight.device.type, rest, own)


def _sent_task(data: bytes, device: str, rest: Sequence, own: tuple) -> LayerTask:
    tensors = {key: tensor.to(device) for key, tensor in load(data).items()}
    first, second = (None if part is None else Inputs(tensors[str(i)], *part) for i, part in enumerate(rest))
    name, method, shape, dtype, skip = own
    weight = partial(tensors.__getitem__, "weight")
    return LayerTask(name, method, weight, shape, dtype, (first, second), skip, _nothing_shared)


def _nothing_shared() -> None:
    return None


def compress_layer(task: LayerTask) -> Outcome:
    """Call the method on the layer's matrices; return the new ones, packed as well if they can be, and its row."""
    weight, (calibration, held_out) = task.weight(), task.inputs
    start = time.perf_counter()
    try:
        if calibration is not None and not calibration.samples:
            raise ValueError(no_sample([task.name]))
        method, hessian = with_own_draws(task.method), None if calibration is None else calibration.hessian
        with sharing(task.shared()):
            matrix, nbytes, parts = _apply(method, weight, hessian)
        status = "compressed"
    except (ValueError, TypeError) as problem:
        if not task.skip or isinstance(problem, TypeError):
            raise type(problem)(f"layer {task.name!r}: {problem}") from problem
        matrix, nbytes, parts, status = weight, None, (), f"skipped: {problem}"
    seconds = time.perf_counter() - start
    matrix = matrix.to(task.dtype).to(weight.dtype)  # what the model can hold is what is measured
    row = LayerRow(
        name=task.name,
        shape=task.shape,
        status=status,
        error=_error(weight, matrix, calibration),
        held_out_error=_error(weight, matrix, held_out) if held_out is not None and held_out.samples else None,
        samples=0 if calibration is None else calibration.samples,
        nbytes_before=weight.numel() * task.dtype.itemsize,
        nbytes_after=nbytes if nbytes is not None else stored_nbytes(matrix.to(task.dtype)),
        sparsity=(matrix.numel() - int(matrix.count_nonzero())) / matrix.numel(),
        seconds=seconds,
    )
    return Outcome(matrix, row, parts, task.dtype)


def _error(weight: Tensor, matrix: Tensor, inputs: Inputs | None) -> float | None:
    return None if inputs is None or inputs.diagonal else output_error(weight, matrix, inputs.hessian)


def _apply(method: Method, weight: Tensor, hessian: Tensor | None) -> tuple[Tensor, int | None, tuple[Stored, ...]]:
    """Run the method on each group; return the matrices, and bytes and packed form of quantized results.

    A result that has no stored form, and a plain weight, is not kept. The methods of this library leave their
    arguments as they are; whatever another one writes into them, it writes into copies.
    """
    own = is_own(method)
    matrices: list[Tensor] = []
    parts: list[Stored] = []
    nbytes = None
    for w, h in zip(weight, [None] * len(weight) if hessian is None else hessian, strict=True):
        given = (w, h) if own else (w.clone(), None if h is None else h.clone())
        result = call_method(method, *given)
        if not isinstance(result, Tensor):
            if not (hasattr(result, "dequantize") and hasattr(result, "nbytes")):
                raise TypeError(f"the method must return a tensor or a Quantized, got {type(result).__name__}")
            nbytes = (nbytes or 0) + result.nbytes
            parts += [store(result)] if hasattr(result, "stored") else []
            result = result.dequantize()
        if result.shape != w.shape:
            raise ValueError(f"the method returned shape {tuple(result.shape)} for a weight {tuple(w.shape)}")
        check_finite("the method's result", result)
        matrices.append(result.to(w.dtype))
    whole = torch.stack(matrices) if len(matrices) > 1 else matrices[0][None]
    return whole, nbytes, tuple(parts) if len(parts) == len(matrices) else ()
