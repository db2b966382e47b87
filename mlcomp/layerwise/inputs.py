r"""What the layers of a running model see: the Hessian of their inputs, streamed over calibration batches.

Notation: X inputs (inp, samples), $H = 2XX^\top$, one for each group of a grouped convolution.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, section 3.   Syllabus: 2.01
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlcomp.context import isolated, isolated_run
from mlcomp.layerwise.matrix import Layer, find_layers, input_matrices, weight_matrix
from mlcomp.layerwise.running import StopForward, call_model, check_batches, check_called, hooked
from mlcomp.modes import evaluating

Valid = str | Callable[[Any], Tensor | None] | None


class HessianSum:
    """Running sum of $2XX^\top$ of one layer, (groups, inp, inp).

    ``samples`` counts the columns of X: input vectors of a linear layer, patches of a convolution. Each group of a
    grouped convolution has an X of its own, with as many columns as every other; they are counted once, not summed.
    """

    @isolated
    def __init__(self, name: str, module: Layer, dtype: torch.dtype) -> None:
        groups, _, inp = weight_matrix(module).shape
        self.name = name
        self.samples = 0
        self.hessian = torch.zeros(groups, inp, inp, dtype=dtype, device=module.weight.device)

    @isolated
    def add(self, module: Layer, x: Tensor, valid: Tensor | None = None) -> None:
        """Add the samples of one call; ``valid`` (a boolean for each position) leaves out padded tokens."""
        if not torch.isfinite(x).all():
            bad = int((~torch.isfinite(x)).sum())
            raise ValueError(f"layer {self.name!r}: its input holds {bad} NaN or infinite value(s) of {x.numel()}")
        if valid is not None and isinstance(module, nn.Linear) and valid.numel() * x.shape[-1] == x.numel():
            x = x.reshape(-1, x.shape[-1])[valid.reshape(-1).to(x.device, torch.bool)]
        for columns in input_matrices(module, x.to(self.hessian.dtype)):
            self.samples += columns.shape[-1]
            self.hessian.baddbmm_(columns, columns.mT, alpha=2)


def _valid_mask(batch: Any, valid: Valid) -> Tensor | None:
    if valid is None:
        return None
    return batch[valid] if isinstance(valid, str) else valid(batch)


def add_hessians(
    model: nn.Module, batches: Iterable, sums: Mapping[str, HessianSum], *, stop: bool, valid: Valid = None
) -> None:
    """Run ``model`` (in eval mode already) on ``batches`` and add each layer's inputs to its sum in ``sums``.

    Args:
        stop: end each forward pass as soon as all the layers were called once.
        valid: see :func:`collect_hessians`.
    """
    mask: Tensor | None = None
    waiting: set[str] = set()

    def hook(name: str) -> Callable:
        def before(module: Layer, args: tuple, kwargs: dict) -> None:
            sums[name].add(module, args[0] if args else kwargs["input"], mask)
            waiting.discard(name)
            if stop and not waiting:
                raise StopForward

        return before

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_pre_hook(hook(name), with_kwargs=True) for name in sums]
    with hooked(handles):
        for batch in batches:
            mask, waiting = _valid_mask(batch, valid), set(sums)
            try:
                call_model(model, batch)
            except StopForward:
                pass


def first_calls(model: nn.Module, name: str, batches: Iterable) -> Iterator[tuple[tuple, dict[str, Any]]]:
    """Yield the (positional, named) arguments of the module's first call for each batch that reaches it.

    The model runs in the mode it has, and only as far as the module.
    """
    found: list[tuple[tuple, dict[str, Any]]] = []

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        found.append((args, kwargs))
        raise StopForward

    for batch in batches:
        with hooked([model.get_submodule(name).register_forward_pre_hook(before, with_kwargs=True)]):
            try:
                call_model(model, batch)
            except StopForward:
                yield found.pop()


@dataclass(frozen=True)
class LayerTrace:
    """How a model calls its layers: ``stages`` in order of execution, ``calls`` per forward pass (the most seen).

    Layers of one stage read the same tensor (query, key and value, say), so that one pass serves them all.
    """

    stages: tuple[tuple[str, ...], ...]
    calls: Mapping[str, int]


@isolated_run
def trace_layers(model: nn.Module, batches: Iterable, names: Iterable[str]) -> LayerTrace:
    """Run ``model`` (in eval mode already) on all ``batches`` and note when each layer is called, and on what.

    Layers called only for some batches (experts, say) come after those that were seen before them.
    Cost: one forward pass over the calibration set; the inputs of one batch are kept alive for its time.
    """
    names = list(names)
    modules = dict(model.named_modules())
    order: list[str] = []
    calls = dict.fromkeys(names, 0)
    leaders: dict[str, list[str | None]] = {name: [] for name in names}
    seen: list[tuple[str, Tensor, int]] = []

    def hook(name: str) -> Callable:
        def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
            x = args[0] if args else kwargs["input"]
            # A tensor made in inference mode counts no writes: each call may have seen other numbers in it.
            seen.append((name, x, -len(seen) - 1 if x.is_inference() else x._version))

        return before

    handles = [modules[name].register_forward_pre_hook(hook(name), with_kwargs=True) for name in names]
    with hooked(handles):
        for batch in batches:
            seen.clear()
            call_model(model, batch)
            first: dict[tuple[int, int], str] = {}
            leader: dict[str, str] = {}
            for name, x, version in seen:
                leader.setdefault(name, first.setdefault((id(x), version), name))
            for name in names:
                calls[name] = max(calls[name], sum(name == other for other, _, _ in seen))
                leaders[name].append(leader.get(name))
            order.extend(name for name in leader if name not in order)
    stages: dict[tuple, list[str]] = {}
    for name in order:
        # A layer that is called twice gets a stage of its own: its pass must not stop at the first call.
        key = (name,) if calls[name] > 1 else tuple(leaders[name])
        stages.setdefault(key, []).append(name)
    return LayerTrace(tuple(tuple(stage) for stage in stages.values()), calls)


@isolated_run
def collect_hessians(
    model: nn.Module,
    batches: Iterable,
    layers: Iterable[str] | None = None,
    *,
    valid: Valid = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    r"""Return $H = 2XX^\top$ of each layer's inputs on the calibration ``batches``, in one pass over them.

    Args:
        model: any module with ``nn.Linear`` or ``nn.Conv2d`` in it; run in eval mode without gradients, not modified.
        batches: iterable of batches, each a tensor, a tuple of positional or a mapping of keyword arguments.
        layers: names as in ``model.named_modules()``. None: all linear and convolutional layers.
        valid: the positions to count, for padded text: the key of a mapping batch ("attention_mask"), or a function
            from a batch to a boolean tensor (or None). It applies to linear layers whose input has one vector for
            each entry of the mask; other layers count all positions.
        dtype: of the sums, float32 or float64.
    Returns:
        name → (inp, inp), or (groups, inp, inp) for a grouped convolution; on the device of the layer's weight.
    Raises:
        ValueError: unknown name, not a linear or convolutional layer, a layer that is never called, no batches, NaN
            or inf in a layer's input (the message names the layer).
    Cost: one forward pass and 2·inp²·samples FLOPs a layer; memory Σ inp², whatever the number of batches.
    """
    sums = {name: HessianSum(name, layer, dtype) for name, layer in find_layers(model, layers).items()}
    check_batches(batches)
    with evaluating(model):
        add_hessians(model, batches, sums, stop=False, valid=valid)
    check_called({name: total.samples for name, total in sums.items()})
    return {name: total.hessian[0] if len(total.hessian) == 1 else total.hessian for name, total in sums.items()}
