r"""What the layers of a running model see: the Hessian of their inputs, streamed over calibration batches.

Notation: X inputs (inp, samples), $H = 2XX^\top$, one for each group of a grouped convolution.
Source: Frantar, Singh, Alistarh 2022, arXiv:2208.11580, section 3.   Syllabus: 2.01
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mlcomp.context import isolated_run
from mlcomp.layerwise.attention import attention_split
from mlcomp.layerwise.chains import Token, Tokens
from mlcomp.layerwise.experts import ExpertCalls, expert_by_expert, find_experts
from mlcomp.layerwise.fit import unfit
from mlcomp.layerwise.hessian_sum import HessianSum, SharedSums, check_input
from mlcomp.layerwise.matrix import Layer, find_layers
from mlcomp.layerwise.running import StopForward, call_model, check_batches, check_called, hooked
from mlcomp.layerwise.valid import Valid, ValidPositions, check_valid
from mlcomp.modes import evaluating


@contextmanager
def watching(model: nn.Module, layers: Mapping[str, Layer], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Have ``see(name, x)`` called with the input of each call of ``layers``, modules or experts of ``model``."""
    modules = {id(module) for module in model.modules()}

    def hook(name: str) -> Callable:
        def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
            see(name, first_argument(args, kwargs))

        return before

    called = {name: layer for name, layer in layers.items() if id(layer) in modules}
    experts = {name: layer for name, layer in layers.items() if name not in called}
    with ExitStack() as stack:
        handles = [layer.register_forward_pre_hook(hook(n), with_kwargs=True) for n, layer in called.items()]
        stack.enter_context(hooked(handles))
        if experts:
            stack.enter_context(expert_by_expert(model))
            stack.enter_context(ExpertCalls(experts, see))
        yield


def first_argument(args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    """Return the input of a layer's call, given by position or by any name."""
    return args[0] if args else next(iter(kwargs.values()))


Run = tuple[Callable[[], Any], ValidPositions]  # what runs one batch, and which of its positions count


def whole_runs(model: nn.Module, batches: Iterable, valid: Valid) -> Iterator[Run]:
    """Yield what runs the whole model on each batch."""
    for batch in batches:
        yield partial(call_model, model, batch), ValidPositions(batch, valid)


def add_hessians(
    model: nn.Module, runs: Iterable[Run], layers: Mapping[str, Layer], sums: Mapping[str, HessianSum], *, stop: bool
) -> None:
    """Add to ``sums`` the inputs that layers of ``model`` (in eval mode already) have in the runs.

    Sums of layers that read the same tensors hold one H between them (:class:`SharedSums`).

    Args:
        runs: of the model, or of a part of it.
        layers: the layers of ``sums``, which are empty, modules or experts of the model.
        stop: end each run as soon as all the layers were called once.
    """
    positions = ValidPositions(None, None)
    waiting: set[str] = set()
    shared = SharedSums(layers, sums)

    def see(name: str, x: Tensor) -> None:
        shared.add(name, x, positions.fitted(name, layers[name], x))
        waiting.discard(name)
        if stop and not waiting:
            raise StopForward

    with watching(model, {name: layers[name] for name in sums}, see):
        for run, counted in runs:
            positions, waiting = counted, set(sums)
            with suppress(StopForward):
                run()
    shared.finish()


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
def trace_layers(
    model: nn.Module,
    batches: Iterable,
    names: Iterable[str],
    layers: Mapping[str, Layer] | None = None,
    *,
    valid: Valid = None,
) -> LayerTrace:
    """Run ``model`` (in eval mode already) on all ``batches`` and note when each layer is called, and on what.

    Layers called only for some batches (experts, say) come after those that were seen before them.

    Args:
        layers: name → layer; None: what :func:`find_layers` finds.
        valid: only checked against the inputs, see :func:`collect_hessians`.
    Raises:
        ValueError: unknown name; NaN or inf in an input; a mask that does not fit one.
    Cost: one forward pass over the calibration set.
    """
    names = list(names)
    order: list[str] = []
    calls = dict.fromkeys(names, 0)
    leaders: dict[str, list[str | None]] = {name: [] for name in names}
    tokens, seen = Tokens(), list[tuple[str, Token]]()
    positions = ValidPositions(None, None)

    def see(name: str, x: Tensor) -> None:
        check_input(name, x)
        positions.fitted(name, found[name], x)
        seen.append((name, tokens.of(x)))

    with attention_split(model) as split:
        found = find_layers(split, names) if layers is None else layers
        with watching(split, {name: found[name] for name in names}, see):
            for batch in batches:
                seen.clear()
                positions = ValidPositions(batch, valid)
                call_model(split, batch)
                first: dict[Token, str] = {}
                leader: dict[str, str] = {}
                for name, token in seen:
                    leader.setdefault(name, first.setdefault(token, name))
                for name in names:
                    calls[name] = max(calls[name], sum(name == other for other, _ in seen))
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
        model: any module with linear or convolutional layers; run in eval mode without gradients, not modified.
        batches: iterable of batches, each a tensor, a tuple of positional or a mapping of keyword arguments.
        layers: names as in ``model.named_modules()``, or of experts (see :func:`mlcomp.layerwise.compress`). None:
            all linear and convolutional layers.
        valid: the positions to count, for padded text: the key of a mapping batch ("attention_mask"), or a function
            from a batch to a boolean tensor (batch, tokens) or None; for models with several sequences a mapping from
            name prefixes to these ({"encoder": "attention_mask", "decoder": None}). It may stand with tokens first in
            the model; pooled vectors and images count all.
        dtype: of the sums, float32 or float64.
    Returns:
        name → (inp, inp), or (groups, inp, inp) for a grouped convolution; on the device of the layer's weight.
    Raises:
        ValueError: unknown name, not a linear or convolutional layer, a layer with a forward of its own or packed
            weights, a layer that is never called, no batches, NaN or inf in a layer's input (the message names the
            layer), a mask that fits a layer's input in no way or in two.
    Cost: one forward pass and 2·inp²·samples FLOPs a layer; memory Σ inp², whatever the number of batches.
    """
    check_batches(batches)
    with attention_split(model) as split, evaluating(split):
        chosen = find_with_experts(split, layers)
        check_known(chosen)
        check_valid(valid, chosen)
        sums = {name: HessianSum(name, layer, dtype) for name, layer in chosen.items()}
        add_hessians(split, whole_runs(split, batches, valid), chosen, sums, stop=False)
    check_called({name: total.samples for name, total in sums.items()})
    result: dict[str, Tensor] = {}
    for name, total in sums.items():  # layers that share an H each get one of their own
        taken = any(total.hessian is sums[other].hessian for other in result)
        hessian = total.hessian.clone() if taken else total.hessian
        result[name] = hessian[0] if len(hessian) == 1 else hessian
    return result


def find_with_experts(model: nn.Module, names: Iterable[str] | None) -> dict[str, Layer]:
    """Return what :func:`find_layers` does, and the experts of 3-D parameters that are named ("path.weights.0")."""
    if names is None:
        return find_layers(model)
    names = list(names)
    experts = find_experts(model)
    plain = find_layers(model, [n for n in names if n not in experts]) if not set(names) <= set(experts) else {}
    return {name: experts[name] if name in experts else plain[name] for name in names}


def check_known(layers: Mapping[str, Layer]) -> None:
    """Raise if a layer's own product is not what its kind computes, or its weight has no values to multiply.

    A computed weight (parametrized, pruned with a mask) is read like any other.
    """
    reasons = {name: unfit(layer, product=True) for name, layer in layers.items() if "weight" in layer._parameters}
    bad = [f"layer {name!r}: {reason}" for name, reason in reasons.items() if reason is not None]
    if bad:
        raise ValueError("; ".join(bad))
