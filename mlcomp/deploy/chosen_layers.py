"""Which layers are compressed: all but a language model's output head, or those of some names."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import nn

from mlcomp.layerwise.attention import is_attention
from mlcomp.layerwise.experts import find_experts
from mlcomp.layerwise.matrix import is_layer
from mlcomp.layerwise.report import CompressionReport

Layers = Iterable[str] | Callable[[str, nn.Module], bool] | None
HEAD = "skipped: the output head, left alone unless it is named"


def layer_names(model: nn.Module) -> list[str]:
    """Return the names of all layers that could be compressed: also an attention's projections, and experts."""
    names = [name for name, module in model.named_modules() if is_layer(module)]
    attentions = [name for name, module in model.named_modules() if is_attention(module)]
    parts = [f"{name}.{part}" for name in attentions for part in ("q_proj", "k_proj", "v_proj", "out_proj")]
    return [*names, *parts, *find_experts(model)]


def output_head(model: nn.Module) -> str | None:
    """Return the name of a transformers language model's output head, None if it has none."""
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    return (
        next((name for name, module in model.named_modules() if module is head), None) if head is not None else None
    )


def choose(model: nn.Module, layers: Layers, *, language_model: bool) -> Callable[[str, nn.Module], bool]:
    """Return a predicate (name, module) for ``compress``.

    Args:
        model: whose layers they are.
        layers: names, or patterns of names with * and ?; or a predicate; None: all, but the head of a language model.
        language_model: whether the model is one.
    Raises:
        ValueError: a name or a pattern that fits no layer; the message has the nearest names.
    """
    if callable(layers):
        return layers
    if layers is None:
        head = output_head(model) if language_model else None
        return lambda name, module: name != head
    patterns = [layers] if isinstance(layers, str) else list(layers)
    names = layer_names(model)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise ValueError(f"no layer of the model fits {pattern!r}; its layers are named like {', '.join(near)}")
    return lambda name, module: any(fnmatchcase(name, pattern) for pattern in patterns)


def with_head_named(report: CompressionReport, head: str | None) -> CompressionReport:
    """Return the report with the reason why the output head was left."""
    rows = (
        replace(r, status=HEAD) if r.name == head and r.status == "skipped: not chosen" else r for r in report.rows
    )
    return replace(report, rows=tuple(rows))
