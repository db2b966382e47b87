"""The projections of ``nn.MultiheadAttention`` as four linear layers.

It multiplies by its weights without calling a module: one tensor holds those of query, key and value, and the output
projection's weight is read from a layer that is never called. So that they can be watched and replaced like any other
layer, the attention is split into four ``nn.Linear`` on the same memory, and put together again.
Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2.   Syllabus: 2.01
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def is_attention(module: nn.Module) -> bool:
    """Return whether ``module`` is an ``nn.MultiheadAttention`` that computes as torch's own does."""
    return isinstance(module, nn.MultiheadAttention) and type(module).forward is nn.MultiheadAttention.forward


def projections(attention: nn.MultiheadAttention) -> dict[str, nn.Linear]:
    """Return "q_proj", "k_proj" and "v_proj" as layers whose weight and bias are those of ``attention``, not copies.

    The fourth, "out_proj", is a layer already.
    """
    packed, bias, size = attention.in_proj_weight, attention.in_proj_bias, attention.embed_dim
    layers = {}
    for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
        part = slice(i * size, (i + 1) * size)
        weight = getattr(attention, f"{name}_weight") if packed is None else packed
        layer = nn.Linear(weight.shape[1], size, bias=bias is not None, device="meta")
        rows = weight.detach() if packed is None else weight.detach()[part]
        layer.weight = nn.Parameter(rows, weight.requires_grad)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach()[part], bias.requires_grad)
        layers[name] = layer.train(attention.training)
    return layers


class _Elsewhere(Tensor):
    """Stands for the packed weight that a split attention does not have.

    A subclass of Tensor, and nothing else, keeps ``nn.TransformerEncoder`` from the fast path on which it would read
    the weights past the layers.
    """


class SplitAttention(nn.Module):
    """What ``nn.MultiheadAttention`` computes, with its projections as layers that are called.

    Cost: two products more than necessary for each projection's output (by the identity), so that masks, dropout and
    the attention weights are torch's own.
    """

    # What nn.TransformerEncoder and its layers ask before they take the fast path.
    in_proj_weight = torch.empty(0).as_subclass(_Elsewhere)
    in_proj_bias = None
    _qkv_same_embed_dim = False

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        for name, layer in projections(attention).items():
            self.add_module(name, layer)
        self.out_proj = attention.out_proj
        self.bias_k, self.bias_v = attention.bias_k, attention.bias_v
        self.batch_first, self.num_heads = attention.batch_first, attention.num_heads
        self.training = attention.training
        self.whole = [attention]  # in a list: it is no child of this module

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the attention does, for the same arguments."""
        whole = self.whole[0]
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        turned = self.batch_first and query.ndim == 3
        if turned:
            q, k, v = (t.transpose(0, 1) for t in (q, k, v))
        one = torch.eye(whole.embed_dim, dtype=q.dtype, device=q.device)
        out, weights = F.multi_head_attention_forward(
            *(q, k, v, whole.embed_dim, whole.num_heads, None, None, self.bias_k, self.bias_v),
            *(whole.add_zero_attn, whole.dropout, one, None),
            training=self.training,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            use_separate_proj_weight=True,
            q_proj_weight=one,
            k_proj_weight=one,
            v_proj_weight=one,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        return self.out_proj(out.transpose(0, 1) if turned else out), weights

    def joined(self) -> nn.MultiheadAttention:
        """Return the attention again, with the weights and biases that the projections have now."""
        whole = self.whole[0]
        parts = [self.q_proj, self.k_proj, self.v_proj]
        whole.out_proj, whole.training = self.out_proj, self.training
        if whole.in_proj_weight is None:
            whole.q_proj_weight, whole.k_proj_weight, whole.v_proj_weight = (p.weight for p in parts)
        else:
            whole.in_proj_weight = _packed(whole.in_proj_weight, [p.weight for p in parts])
        if any(p.bias is not None for p in parts):
            zeros = whole.out_proj.weight.detach().new_zeros(whole.embed_dim)
            biases = [zeros if p.bias is None else p.bias for p in parts]
            whole.in_proj_bias = _packed(whole.in_proj_bias, biases)
        return whole


def _packed(old: nn.Parameter | None, parts: list[Any]) -> nn.Parameter:
    """Return ``old`` if the parts lie in its memory still, else a parameter made of them."""
    if old is not None and all(p.untyped_storage().data_ptr() == old.untyped_storage().data_ptr() for p in parts):
        return old
    return nn.Parameter(torch.cat([p.detach() for p in parts]), parts[0].requires_grad)


def split_attention(model: nn.Module) -> nn.Module:
    """Put a :class:`SplitAttention` in the place of each ``nn.MultiheadAttention``, in place; return the model."""
    return _exchange(model, is_attention, SplitAttention)


def join_attention(model: nn.Module) -> nn.Module:
    """Undo :func:`split_attention`, in place; weights that were changed meanwhile stay changed."""
    return _exchange(model, lambda module: isinstance(module, SplitAttention), SplitAttention.joined)


@contextmanager
def attention_split(model: nn.Module) -> Iterator[nn.Module]:
    """Split the attentions of ``model`` for a while, and yield the model."""
    if not any(is_attention(module) for module in model.modules()):
        yield model
        return
    split = split_attention(model)
    try:
        yield split
    finally:
        join_attention(split)


def _exchange(model: nn.Module, chosen: Callable[[nn.Module], bool], make: Callable[[Any], nn.Module]) -> nn.Module:
    if chosen(model):
        return make(model)
    made: dict[int, nn.Module] = {}  # one that stands at several places is made once
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and chosen(child):
                if id(child) not in made:
                    made[id(child)] = make(child)
                parent._modules[name] = made[id(child)]
    return model
