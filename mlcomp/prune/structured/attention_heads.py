r"""Which layers are output projections of attention heads, and a model in which heads are masked.

Notation: $\mathrm{MHA}(x) = \sum_h \xi_h\,W_O^{(h)}\,\mathrm{Att}_h(x)$, $\mathrm{Att}_h$ head h of the softmax
attention, $W_O^{(h)}$ its columns of the output projection, $\xi_h$ its mask: 1, or 0 where the head is removed.
Source: Michel, Levy, Neubig 2019, arXiv:1905.10650, section 2.2.   Syllabus: 4.10
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mlcomp.checks import check_floating
from mlcomp.context import isolated_run
from mlcomp.layerwise.matrix import TurnedLinear
from mlcomp.layerwise.running import call_model, hooked
from mlcomp.modes import evaluating


class _LastAttention(TorchFunctionMode):
    """Keeps what the last call of torch's attention returned, (n, heads, length, dim)."""

    last: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            self.last = out
        return out


@isolated_run
def attention_heads(model: nn.Module, batch: Any) -> dict[str, int]:
    """Return the name of each attention's output projection → its number of (query) heads, in the order of the calls.

    Args:
        model: run once, in eval mode without gradients; not modified. Its attention calls
            ``F.scaled_dot_product_attention``, and a linear layer reads the heads side by side, as in the models of
            this library and those of transformers (with ``attn_implementation="sdpa"``, their default).
        batch: one batch (a tensor, a tuple of positional or a mapping of keyword arguments); a small one will do.
    Raises:
        ValueError: no such layer was called, as in a model with ``nn.MultiheadAttention``.
    """
    found: dict[str, int] = {}
    mode = _LastAttention()

    def look(name: str, x: Tensor) -> None:
        heads = mode.last
        if heads is None or heads.ndim != 4 or x.numel() != heads.numel():
            return
        if torch.equal(x.flatten(), heads.transpose(1, 2).flatten()):
            found[name], mode.last = heads.shape[1], None

    handles = [
        module.register_forward_pre_hook(lambda module, args, name=name: look(name, args[0]))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | TurnedLinear)
    ]
    with hooked(handles), evaluating(model), mode:
        call_model(model, batch)
    if not found:
        raise ValueError(
            "no layer reads the heads of F.scaled_dot_product_attention: does the model compute attention otherwise "
            '(transformers: attn_implementation="sdpa"; nn.MultiheadAttention is not taken)?'
        )
    return found


@contextmanager
def inputs_masked(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """Multiply the inputs of some layers by masks for a while, and yield the model.

    Args:
        model: not modified but for hooks, which come off again.
        masks: name of a linear layer → (groups,), one number for each of as many equal blocks of its inputs, or
            (n, groups), the same for each of n examples. Groups of an output projection are heads; groups of the
            second layer of a feed-forward network are blocks of its hidden units. Gradients reach the masks.
    Raises:
        ValueError: a name that is no module; when the model runs, a number of groups that does not divide the inputs.
    """
    modules = dict(model.named_modules())
    for name, mask in masks.items():
        if name not in modules:
            raise ValueError(f"the model has no module {name!r}")
        check_floating(f"the mask of {name!r}", mask)
        if mask.ndim not in (1, 2) or not mask.numel():
            raise ValueError(f"the mask of {name!r} must be (groups,) or (n, groups), got {tuple(mask.shape)}")

    def hook(name: str, mask: Tensor) -> Any:
        def before(module: nn.Module, args: tuple) -> tuple:
            x, groups = args[0], mask.shape[-1]
            if x.shape[-1] % groups:
                raise ValueError(f"{groups} groups do not divide the {x.shape[-1]} inputs of {name!r}")
            each = mask.to(x).repeat_interleave(x.shape[-1] // groups, -1)
            if mask.ndim == 2:  # an example's mask is spread over its positions
                each = each.reshape(len(mask), *[1] * (x.ndim - 2), x.shape[-1])
            return (x * each, *args[1:])

        return before

    handles = [modules[name].register_forward_pre_hook(hook(name, mask)) for name, mask in masks.items()]
    with hooked(handles):
        yield model
