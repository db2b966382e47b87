r"""Fold BatchNorm into the convolution before it: one layer instead of two, exact in eval mode.

Notation: W, c weight and bias of the convolution; γ, β, μ, σ², ε of BatchNorm. For each output channel
$W \leftarrow W\,\gamma/\sqrt{\sigma^2+\varepsilon}$ and
$c \leftarrow \beta + (c-\mu)\,\gamma/\sqrt{\sigma^2+\varepsilon}$.
Source: Jacob et al. 2018, arXiv:1712.05877, section 3.2, eq. (14).   Syllabus: 1.08
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from mlcomp.context import isolated_run
from mlcomp.layerwise.fit import copy_model

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class CannotFold(ValueError):
    """Why a model cannot be folded, and what :func:`fold_batchnorm` offers instead; others have other offers."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}: {advice}")
        self.reason = reason


def batchnorm_pairs(model: nn.Module) -> tuple[tuple[tuple[str, str], ...], dict[str, str]]:
    """Find each BatchNorm that can be folded, from the data flow that torch.fx traces.

    Order of definition says nothing about order of use, so modules are not paired by their place in the model. A pair
    is a BatchNorm whose input is a convolution's output that nobody else reads, both called exactly once.

    Args:
        model: any module that torch.fx can trace (no control flow that depends on data); not modified.
    Returns:
        the pairs (convolution, BatchNorm) by name, in the order of use, and for every other BatchNorm the reason why
        it cannot be folded.
    Raises:
        ValueError: torch.fx cannot trace the model (the message says why).
    """
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # torch.fx raises whatever the traced code does with its stand-in values
        raise CannotFold(
            f"torch.fx cannot trace {type(model).__name__}, so it is unknown which convolution feeds which BatchNorm "
            f"({str(error).partition(chr(10))[0]})",
            "pass pairs=[(convolution, batchnorm), …]",
        ) from error
    modules = dict(model.named_modules())
    calls = Counter(id(modules[node.target]) for node in graph.nodes if node.op == "call_module")
    pairs, reasons = [], {name: "never called" for name, m in modules.items() if isinstance(m, _BatchNorm)}
    for node in graph.nodes:
        if node.op != "call_module" or node.target not in reasons:
            continue
        source = node.args[0] if node.args else node.kwargs["input"]
        reason = _refusal(modules, calls, node, source)
        if reason is None:
            pairs.append((source.target, node.target))
            del reasons[node.target]
        else:
            reasons[node.target] = reason
    return tuple(pairs), reasons


@isolated_run
def fold_batchnorm(
    model: nn.Module, *, pairs: Sequence[tuple[str, str]] | None = None, partial: bool = False
) -> nn.Module:
    """Return a copy of ``model`` in eval mode with every BatchNorm folded into the convolution before it.

    Args:
        model: not modified.
        pairs: names (convolution, BatchNorm). None: those that :func:`batchnorm_pairs` finds. A given pair is
            believed: that nobody else reads the convolution's output, and that BatchNorm reads nothing else.
        partial: leave a BatchNorm that cannot be folded as it is, instead of refusing.
    Returns:
        the copy; a folded BatchNorm is an ``nn.Identity``, and its convolution has a bias.
    Raises:
        ValueError: no BatchNorm at all; one that cannot be folded (names and reasons), unless ``partial``; a model
            that cannot be traced; a given pair that is no convolution and BatchNorm of equal width.
    Guarantee: the copy's output equals that of ``model.eval()``, up to rounding (float64: about 1e-15 a layer).
    Cost: one copy of the model; the folding itself is computed in float64.
    """
    if pairs is None:
        pairs, reasons = batchnorm_pairs(model)
        if not pairs and not reasons:
            raise ValueError("the model has no BatchNorm layer to fold")
        if reasons and not partial:
            listed = "; ".join(f"{name!r}: {reason}" for name, reason in reasons.items())
            raise CannotFold(f"cannot fold {listed}", "with partial=True they stay as they are")
    result = copy_model(model).eval()
    modules = dict(result.named_modules())
    for conv_name, bn_name in pairs:
        for name in (conv_name, bn_name):
            if name not in modules:
                raise ValueError(f"the model has no module {name!r}")
        conv, bn = modules[conv_name], modules[bn_name]
        reason = _mismatch(conv, bn)
        if reason is not None or not isinstance(conv, Convolution) or not isinstance(bn, _BatchNorm):
            raise ValueError(f"cannot fold {bn_name!r} into {conv_name!r}: {reason}")
        weight, bias = folded(conv, bn)
        requires_grad = conv.weight.requires_grad
        conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad)
        conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad)
        parent, _, child = bn_name.rpartition(".")
        setattr(modules[parent], child, nn.Identity())
    return result


@torch.no_grad()
def folded(conv: Convolution, bn: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return weight and bias, float64, of the convolution that does the work of ``conv`` and then ``bn``.

    A grouped or depthwise convolution needs nothing special: the first dimension of its weight counts the output
    channels of all groups.
    """
    assert bn.running_mean is not None and bn.running_var is not None  # else it cannot be folded
    mean, variance = bn.running_mean.double(), bn.running_var.double()
    gamma = torch.ones_like(mean) if bn.weight is None else bn.weight.double()
    beta = torch.zeros_like(mean) if bn.bias is None else bn.bias.double()
    bias = torch.zeros_like(mean) if conv.bias is None else conv.bias.double()
    factor = gamma / torch.sqrt(variance + bn.eps)
    weight = conv.weight.double() * factor.reshape(-1, *[1] * (conv.weight.ndim - 1))
    return weight, beta + (bias - mean) * factor


def _refusal(modules: dict, calls: Counter, node: fx.Node, source: object) -> str | None:
    """Return why the BatchNorm at ``node`` cannot be folded into what it reads, or None."""
    if not isinstance(source, fx.Node) or source.op != "call_module":
        return "its input does not come straight from a convolution"
    conv, bn = modules[source.target], modules[node.target]
    if calls[id(conv)] > 1 or calls[id(bn)] > 1:
        return "it or the layer before it is called more than once"
    if len(source.users) > 1:
        return f"the output of {source.target!r} is also read elsewhere"
    return _mismatch(conv, bn)


def _mismatch(conv: nn.Module, bn: nn.Module) -> str | None:
    if not isinstance(bn, _BatchNorm):
        return f"{type(bn).__name__} is no BatchNorm"
    if not isinstance(conv, Convolution):
        return f"it follows {type(conv).__name__}, not a convolution (nn.Conv1d, 2d or 3d)"
    if bn.running_mean is None:
        return "it keeps no running statistics, so it normalizes with each batch's own"
    if bn.num_features != conv.out_channels:
        return f"it has {bn.num_features} channels and the convolution {conv.out_channels}"
    if parametrize.is_parametrized(conv):
        return "the convolution's weight is computed by a parametrization"
    return None
