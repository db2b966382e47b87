"""Which layer is compressed by what, and whether all of them can be, before the first one is.

Syllabus: 2.01
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mlcomp.checks import all_finite
from mlcomp.layerwise.dry_run import refusal
from mlcomp.layerwise.experts import find_experts
from mlcomp.layerwise.fit import reasons_to_leave
from mlcomp.layerwise.inputs import find_with_experts
from mlcomp.layerwise.matrix import Layer, find_layers, is_layer, weight_matrix

Method = Callable[..., Any]  # method(weight, hessian), or less: → a tensor or a Quantized
Chosen = Iterable[str] | Callable[[str, nn.Module], bool] | None


@dataclass
class Plan:
    """Which layers are compressed by what, and which are left.

    ``layers`` holds all of the model's, experts included; ``guessed`` the experts that nobody asked for by name: what
    a parameter of three dimensions is for is seen only when the model runs.
    """

    layers: dict[str, Layer]
    methods: dict[str, Method]
    skipped: dict[str, str]
    guessed: set[str]

    def without_idle_experts(self, calls: Mapping[str, int]) -> dict[str, Method]:
        """Return the methods, but for guessed experts of a parameter of which no slice was called."""
        used = {_parameter(name) for name in self.guessed if calls.get(name)}
        return {n: m for n, m in self.methods.items() if n not in self.guessed or _parameter(n) in used}

    def parameters(self, model: nn.Module, names: Iterable[str]) -> set[int]:
        """Return the ids of the parameters of these layers."""
        modules = dict(model.named_modules())
        mine = [modules[n].parameters() if n in modules else [model.get_parameter(_parameter(n))] for n in names]
        return {id(parameter) for parameters in mine for parameter in parameters}


def _parameter(expert: str) -> str:
    return expert.rpartition(".")[0]


def needed_inputs(method: Method) -> str:
    """Return what a method looks at besides the weight: "nothing", the "norms" of the inputs, or the "hessian"."""
    second = _second_argument(method)
    return "nothing" if second is None else "norms" if second == "input_norm" else "hessian"


def call_method(method: Method, weight: Tensor, hessian: Tensor | None) -> Any:
    """Call a method of the weight alone, of the weight and the norms of its inputs, or of the weight and H.

    Args:
        hessian: H; its diagonal is enough for the norms, and None for nothing.
    """
    need = needed_inputs(method)
    if need == "nothing" or hessian is None:
        return method(weight)
    if need == "norms":
        diagonal = hessian if hessian.ndim == 1 else hessian.diagonal()
        return method(weight, (diagonal / 2).sqrt())  # ‖x_j‖ over the samples: H = 2XXᵀ
    return method(weight, hessian)


def with_own_draws(method: Method) -> Method:
    """Return the method with copies of the generators bound to it: no layer's numbers depend on which came before."""
    if not isinstance(method, partial):
        return method
    args, named = (
        [copy.deepcopy(value) if isinstance(value, torch.Generator) else value for value in values]
        for values in (method.args, method.keywords.values())
    )
    return partial(with_own_draws(method.func), *args, **dict(zip(method.keywords, named, strict=True)))


def is_own(method: Method) -> bool:
    """Return whether the method is a function of this library, with options bound to it or not."""
    function = method.func if isinstance(method, partial) else method
    return inspect.isfunction(function) and function.__module__.partition(".")[0] == __name__.partition(".")[0]


def _second_argument(method: Method) -> str | None:
    """Return the name of the second argument by position that a method has, "hessian" where that cannot be told."""
    try:
        parameters = list(inspect.signature(method).parameters.values())
    except (TypeError, ValueError):
        return "hessian"
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return "hessian"
    free = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return free[1] if len(free) > 1 else None


def make_plan(model: nn.Module, method: Method | Mapping[str, Method], layers: Chosen, tied: str) -> Plan:
    """Return what is to be done with each layer of ``model``, a copy; unties where asked."""
    experts = find_experts(model)
    modules = {n: m for n, m in model.named_modules() if is_layer(m)}
    available: dict[str, Layer] = {**modules, **experts} or dict(find_layers(model))  # which raises: there is none
    by_name = True
    if callable(layers):
        by_name, names = False, [name for name in available if layers(name, available[name])]
    elif layers is not None:
        names = list(layers)
    else:
        by_name = isinstance(method, Mapping)
        names = list(method if isinstance(method, Mapping) else available)
    if isinstance(method, Mapping) and set(names) - set(method):
        raise ValueError(f"method has no entry for layer(s) {sorted(set(names) - set(method))}")
    wanted = find_with_experts(model, names)
    skipped = reasons_to_leave(model, wanted, tied="untie" if tied == "untie" else "refuse", product=True)
    if skipped and by_name:
        told = "; ".join(f"layer {name!r}: {reason}" for name, reason in skipped.items())
        raise ValueError(f'{told}. Leave it out, or pass tied="untie" where it is tied')
    methods = {n: method[n] if isinstance(method, Mapping) else method for n in wanted if n not in skipped}
    if not methods:
        raise ValueError(f"no layer is left to compress: {skipped}")
    skipped |= {name: "not chosen" for name in modules if name not in wanted}
    return Plan(available, methods, skipped, set() if by_name else set(experts) & set(methods))


def check_layers(plan: Plan, on_error: str) -> None:
    """Raise if a weight is not finite, or a method would refuse a layer's shape: all such layers are named."""
    problems: dict[str, str] = {}
    asked: dict[tuple, str | None] = {}
    for name, method in plan.methods.items():
        weight = weight_matrix(plan.layers[name])
        if not all_finite(weight):
            problems[name] = f"its weight holds {int((~torch.isfinite(weight)).sum())} NaN or infinite value(s)"
            continue
        out, inp = weight.shape[1:]
        key = (id(method), out, inp, weight.dtype)
        if key not in asked:
            more: dict[str, list] = {"nothing": [], "norms": [(inp,)], "hessian": [(inp, inp)]}
            shapes = [(out, inp), *more[needed_inputs(method)]]
            asked[key] = refusal(with_own_draws(method), shapes, weight.dtype)
        problem = asked[key]
        if problem is not None:
            problems[name] = problem
    if problems and on_error == "raise":
        raise ValueError("; ".join(f"layer {name!r}: {problem}" for name, problem in problems.items()))
