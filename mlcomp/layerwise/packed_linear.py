r"""Layers that multiply from their packed weight: no dense copy of it is kept.

Notation: x inputs (…, inp), $\hat W$ (out, inp) as :class:`mlcomp.formats.Stored`, $y = x\hat W^\top + b$. A tile of
rows of Ŵ is decoded, multiplied and forgotten, then the next.
Source: weight-only quantization as in Frantar et al. 2023, arXiv:2210.17323, section 4 (dequantized on the fly).
Syllabus: 1.03, 2.09
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlcomp.formats.stored import Stored, dtype_name, float_dtype, restore
from mlcomp.layerwise.kept import check_parts
from mlcomp.layerwise.matrix import Layer, weight_from_rows
from mlcomp.layerwise.weights import Replacement

# Weights that are decoded at once. A tile costs about 0.1 ms beside its arithmetic; at 2^20 (4 MB) a CPU no longer
# notices, and the memory is small beside that of a layer's inputs. A GPU wants more of them at once.
TILE, TILE_ON_GPU = 2**20, 2**24


class Packed(Replacement):
    """What packed layers share: the bytes of the packed tensors as buffers.

    They are uint8, whatever they hold, so ``half()`` and ``to(dtype)`` leave them alone: they change the dtype in
    which the layer computes, as for a dense layer. Only the bias can be trained; gradients reach the inputs.

    Args:
        layer: whose weight is not kept.
        parts: the packed weight; those of ``holder`` where there is one.
        holder: a packed layer that holds the same weight: the two stay tied, wherever they are moved.

    Attributes:
        layer: the layer without its weight.
    """

    _like: Tensor

    def __init__(self, layer: Layer | nn.Embedding, parts: Sequence[Stored], holder: "Packed | None" = None) -> None:
        check_parts(layer, parts)
        super().__init__(_without_weight(layer))
        self.held = dtype_name(layer.weight.dtype)
        self.holder = holder
        device = layer.weight.device if not layer.weight.is_meta else next(iter(parts[0].tensors.values())).device
        self.forms: list[tuple[str, dict[str, Any], dict[str, tuple[torch.dtype, torch.Size]]]] = []
        for i, part in enumerate(parts if holder is None else ()):
            for key, tensor in part.tensors.items():
                held = tensor.detach().to(device).contiguous()
                self.register_buffer(_name(i, key), held.reshape(-1).view(torch.uint8))
            shapes = {key: (tensor.dtype, tensor.shape) for key, tensor in part.tensors.items()}
            self.forms.append((part.kind, dict(part.facts), shapes))
        like = torch.empty(0, dtype=layer.weight.dtype, device=device)
        self.register_buffer("_like", like, persistent=False)
        self.train(layer.training)

    @property
    def parts(self) -> tuple[Stored, ...]:
        """The packed weight, one part for each group: views of the buffers."""
        if self.holder is not None:
            return self.holder.parts
        found = []
        for i, (kind, facts, shapes) in enumerate(self.forms):
            buffers = {key: (self.get_buffer(_name(i, key)), *shape) for key, shape in shapes.items()}
            tensors = {key: held.view(dtype).reshape(shape) for key, (held, dtype, shape) in buffers.items()}
            found.append(Stored(kind, tensors, facts))
        return tuple(found)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight."""
        return sum(part.nbytes for part in self.parts)

    @property
    def weight(self) -> Tensor:
        """The dense weight, decoded anew at each call."""
        rows = torch.cat([self._cast(restore(part).dequantize()) for part in self.parts])
        return weight_from_rows(self.layer, rows)

    def extra_repr(self) -> str:
        """Name the kind of the packed weight and its size."""
        return f"kind={self.parts[0].kind}, nbytes={self.nbytes}"

    def _cast(self, rows: Tensor) -> Tensor:
        """Return decoded rows in the dtype of the layer, as a dense layer would hold them."""
        held = float_dtype(self.held)
        if rows.dtype == self._like.dtype and torch.promote_types(rows.dtype, held) == held:
            return rows  # there and back
        wide = torch.float64 if held == torch.float64 else torch.float32
        return rows.to(wide).to(held).to(self._like.dtype)


class PackedLinear(Packed):
    """A linear layer on a packed weight.

    Args:
        layer: nn.Linear or transformers' Conv1D; its weight is not kept.
        parts: the packed weight: one part, see :func:`mlcomp.formats.store`.
        holder: a packed layer that holds the same weight, as an embedding tied to this layer.
    Raises:
        ValueError: parts that do not fit the layer.
    Guarantee: the outputs are those of the dense layer with the decoded weight, up to the order of summation.
    Cost: each call decodes the whole weight, some rows at a time where its kind allows it, at once where it does not
        (rotations as in QuIP, bitmasks, SpQR). A gradient for x decodes it once more, and keeps none until then.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return x Ŵᵀ + b."""
        if torch.is_grad_enabled() and x.requires_grad:
            return _Product.apply(x, self.bias, self)
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """Return x Ŵᵀ + b, without a gradient in x."""
        bias, out = self.bias, self.parts[0].shape[0]
        whole = None
        for at, rows in self.tiles(x.is_cuda):
            tile = F.linear(x, rows, None if bias is None else bias[at])
            if tile.shape[-1] == out:
                return tile
            whole = tile.new_empty(*tile.shape[:-1], out) if whole is None else whole
            whole[..., at] = tile
        assert whole is not None
        return whole

    def tiles(self, on_gpu: bool) -> Iterator[tuple[slice, Tensor]]:
        """Yield which rows, and these rows decoded, one tile after the other."""
        (part,) = self.parts
        out, inp = part.shape
        tile = max(1, (TILE_ON_GPU if on_gpu else TILE) // inp) if part.by_rows else out
        for start in range(0, out, tile):
            stop = min(out, start + tile)
            whole = stop - start == out
            rows = (restore(part) if whole else restore(part, start, stop)).dequantize()
            yield slice(start, stop), self._cast(rows)


class _Product(torch.autograd.Function):
    """The product of a packed layer; its backward pass decodes the weight anew, so that none is kept until then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: PackedLinear) -> Tensor:
        ctx.layer, ctx.dtype, ctx.biased = layer, x.dtype, bias is not None
        return layer.product(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        by_input = by_bias = None
        if ctx.needs_input_grad[0]:
            parts = [grad[..., at] @ rows.to(grad.dtype) for at, rows in ctx.layer.tiles(grad.is_cuda)]
            by_input = torch.stack(parts).sum(0).to(ctx.dtype) if len(parts) > 1 else parts[0].to(ctx.dtype)
        if ctx.biased and ctx.needs_input_grad[1]:
            by_bias = grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.layer.bias.dtype)
        return by_input, by_bias, None


class PackedEmbedding(Packed):
    """An embedding whose vectors are in a narrower dtype than the model computes in.

    Args:
        layer: nn.Embedding; its weight is not kept, and not trained any more.
        parts: the vectors, of kind "dense".
        holder: a packed layer that holds the same weight.
    Raises:
        ValueError: parts that do not fit the layer.
    Guarantee: the vectors are those of the same numbers in the layer's own dtype.
    """

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of these numbers: (…) → (…, embedding_dim)."""
        (part,) = self.parts
        return self._cast(F.embedding(ids, restore(part).dequantize()))


class PackedConv(Packed):
    """A convolution on a packed weight: it is decoded whole, and the layer runs as it does.

    Args:
        layer: nn.Conv1d to 3d or nn.ConvTranspose1d to 3d; its weight is not kept.
        parts: the packed weight, one part for each group, or one for all.
    Raises:
        ValueError: parts that do not fit the layer.
    """

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Return what the layer does with the decoded weight."""
        layer = copy.copy(self.layer)  # shares all but the weight, which is this call's own
        layer.weight = self.weight
        return layer(x, *args)


def packed_layer(layer: Layer | nn.Embedding, parts: Sequence[Stored], holder: Packed | None = None) -> Packed:
    """Return the packed module that computes what ``layer`` does with this weight."""
    if isinstance(layer, nn.Embedding):
        return PackedEmbedding(layer, parts, holder)
    return (PackedConv if isinstance(layer, nn.modules.conv._ConvNd) else PackedLinear)(layer, parts, holder)


def _without_weight(layer: Layer | nn.Embedding) -> Layer | nn.Embedding:
    """Return the same layer with a bias of its own; in the place of its weight stands one that has a shape only."""
    bare = copy.copy(layer)
    bare._parameters = {key: copy.deepcopy(held) for key, held in layer._parameters.items() if key != "weight"}
    bare.weight = torch.empty(layer.weight.shape, dtype=layer.weight.dtype, device="meta")
    return bare


def _name(part: int, key: str) -> str:
    return f"packed_{part}_{key.replace('.', '_')}"
