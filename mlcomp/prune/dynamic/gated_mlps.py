"""The gated MLPs of a language model: found by the names of their layers, watched, and replaced by others.

A module is one if it holds ``gate_proj``, ``up_proj``, ``down_proj`` and ``act_fn``, as in LLaMA, Mistral, Qwen or
Gemma of transformers, and computes down(act(gate x) · up x).   Syllabus: 3.13
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mlcomp.checks import check_finite
from mlcomp.layerwise.running import call_model, check_called, check_data, hooked
from mlcomp.layerwise.valid import Valid, ValidPositions, check_valid
from mlcomp.modes import evaluating

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
SITES = ("gate", "product")  # where a threshold may act: on v = act(gate x), or on v · up x


class GatedMLP(nn.Module):
    """down(act(gate x) · up x) with the layers of another module, small activations set to zero.

    It computes densely and then masks: what a layer costs is in :func:`mlcomp.prune.sparse_gated_mlp`.

    Attributes:
        threshold: what is smaller in size becomes zero.
        on: "gate" if that is v = act(gate x); "product" if it is v · up x.
    """

    def __init__(self, source: Any, *, activation: Callable | None = None, threshold: float = 0.0, on: str = "gate"):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (getattr(source, name) for name in PROJECTIONS)
        self.act_fn = source.act_fn if activation is None else activation
        self.threshold, self.on, self.training = threshold, on, source.training

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, of the shape of ``x``."""
        v = self.act_fn(self.gate_proj(x))
        if self.on == "gate":
            hidden = self._large(v) * self.up_proj(x)
        else:
            hidden = self._large(v * self.up_proj(x))
        return self.down_proj(hidden)

    def _large(self, values: Tensor) -> Tensor:
        return values.masked_fill(values.abs() < self.threshold, 0)

    def extra_repr(self) -> str:
        """Return the threshold and where it acts."""
        return f"threshold={self.threshold:.4g}, on={self.on}"


def find_gated_mlps(model: nn.Module) -> dict[str, Any]:
    """Return name → gated MLP, in the order of ``model.named_modules()``.

    Raises:
        ValueError: there is none, or a module with these names computes something else.
    """
    check_data(model)
    found = {
        name: module
        for name, module in model.named_modules()
        if all(isinstance(getattr(module, p, None), nn.Linear) for p in PROJECTIONS)
        and callable(getattr(module, "act_fn", None))
    }
    if not found:
        raise ValueError(
            f"the model has no gated MLP: a module with the linear layers {', '.join(PROJECTIONS)}, act_fn"
        )
    for name, module in found.items():
        if not isinstance(module, GatedMLP):
            _check_formula(name, module)
    return found


def _check_formula(name: str, module: Any) -> None:
    """Raise unless the module gives down(act(gate x) · up x) for a few random x."""
    weight = module.gate_proj.weight
    x = torch.randn(2, weight.shape[1], generator=torch.Generator().manual_seed(0), device="cpu").to(weight)
    with evaluating(module):
        same = torch.allclose(module(x), GatedMLP(module)(x), rtol=0, atol=0, equal_nan=True)
    if not same:
        raise ValueError(f"{name!r} ({type(module).__name__}) computes something else than down(act(gate x) · up x)")


def activations(model: nn.Module, batches: Iterable, *, on: str, valid: Valid = None) -> Iterator[tuple[str, Tensor]]:
    """Yield name of a gated MLP and its activations (tokens, hidden), for each batch and MLP.

    Args:
        model: run in eval mode without gradients; not modified.
        batches: as for :func:`mlcomp.layerwise.compress`.
        on: "gate": v = act(gate x). "product": v · up x, after what a threshold has removed.
        valid: the positions to count; see :func:`mlcomp.layerwise.collect_hessians`.
    Raises:
        ValueError: no batches, an MLP that is never called, NaN or inf, a mask that does not fit.
    """
    mlps = find_gated_mlps(model)
    check_valid(valid, mlps)
    calls = dict.fromkeys(mlps, 0)
    seen: list[tuple[str, Tensor]] = []
    positions = ValidPositions(None, None)

    def see(name: str, mlp: Any, values: Tensor) -> None:
        check_finite(f"the activations of {name!r}", values)
        counted = positions.fitted(name, mlp.down_proj, values)
        rows = values.flatten(0, -2) if counted is None else values[counted.to(values.device)]
        calls[name] += len(rows)
        seen.append((name, rows))

    def hook(name: str, mlp: Any) -> Any:
        if on == "product":
            return mlp.down_proj.register_forward_pre_hook(lambda module, args: see(name, mlp, args[0]))
        return mlp.gate_proj.register_forward_hook(lambda module, args, out: see(name, mlp, mlp.act_fn(out)))

    for batch in batches:
        positions = ValidPositions(batch, valid)
        with evaluating(model), hooked([hook(*item) for item in mlps.items()]):
            call_model(model, batch)
        yield from seen
        seen.clear()
    check_called(calls)
