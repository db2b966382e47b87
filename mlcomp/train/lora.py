r"""LoRA: a frozen layer and, beside it, the product of two thin matrices, which alone is trained.

Notation: W frozen weight (out, inp), A (r, inp), B (out, r), r rank, α scale: $y = Wx + \frac{\alpha}{r} B A x$.
Source: Hu et al. 2022, arXiv:2106.09685, section 4.1; on a quantized W: Dettmers et al. 2023, arXiv:2305.14314.
Syllabus: 4.08
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlcomp.checks import check_interval, check_positive, check_whole
from mlcomp.context import isolated


class LoRALinear(nn.Module):
    """A frozen linear layer, dense or packed, with a trained correction of low rank.

    Attributes:
        layer: anything that is called on (…, inp), returns (…, out) and knows ``in_features`` and ``out_features``.
        lora_A: (rank, inp), drawn as the weight of ``nn.Linear`` is.
        lora_B: (out, rank), zeros at first: the layer computes what it did, to the bit.
        scaling: alpha/rank.
    """

    layer: Any
    lora_A: nn.Parameter
    lora_B: nn.Parameter

    def __init__(
        self,
        layer: nn.Module,
        *,
        rank: int,
        alpha: float | int,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Take over ``layer``; A and B are float32 at least, on its device; options as in :func:`add_lora`."""
        super().__init__()
        check_lora(rank=rank, alpha=alpha, dropout=dropout)
        if not is_adaptable(layer):
            raise TypeError(f"layer must have in_features and out_features, got {type(layer).__name__}")
        self.layer = layer
        self.in_features: int = self.layer.in_features
        self.out_features: int = self.layer.out_features
        self.rank, self.alpha, self.scaling = rank, float(alpha), alpha / rank
        self.dropout = nn.Dropout(dropout)
        held = [*layer.parameters(), *layer.buffers()]
        wide = any(tensor.dtype == torch.float64 for tensor in held)
        like: Any = {"dtype": torch.float64 if wide else torch.float32, "device": held[0].device if held else None}
        drawn = torch.empty(rank, self.in_features, dtype=torch.float64, device="cpu")
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(drawn.to(**like))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, **like))
        layer.requires_grad_(False)
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output plus the correction, in the dtype of the layer's output."""
        y = self.layer(x)
        correction = F.linear(F.linear(self.dropout(x.to(self.lora_A.dtype)), self.lora_A), self.lora_B)
        return (y + self.scaling * correction).to(y.dtype)  # rounded once, where y is narrower

    def correction(self) -> Tensor:
        """Return (α/r) B A, (out, inp), differentiable."""
        return self.scaling * (self.lora_B @ self.lora_A)

    @property
    def weight(self) -> Tensor:
        """The weight that the layer stands for, W + (α/r) B A: what reads it past ``forward`` finds the right one."""
        weight = self.layer.weight
        return (weight + self.correction()).to(weight.dtype)

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias."""
        return self.layer.bias

    def extra_repr(self) -> str:
        """Name the rank and the scale."""
        return f"rank={self.rank}, alpha={self.alpha:g}"


def is_adaptable(module: nn.Module) -> bool:
    """Return whether the module is a linear layer, dense or packed: it says how many features it takes and gives."""
    sizes = (getattr(module, name, None) for name in ("in_features", "out_features"))
    return all(isinstance(size, int) and size > 0 for size in sizes)


def adaptable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return name → linear layer, dense or packed; what lies within one (a layer that another wraps) is none."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if name and not inside and is_adaptable(module):
            found[name] = module
    return found


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Return name → layer with a correction, in the order of ``model.named_modules()``."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return what an optimizer is to train: A and B of each layer that has them."""
    return [p for layer in lora_layers(model).values() for p in (layer.lora_A, layer.lora_B)]


@isolated
def add_lora(
    model: nn.Module,
    layers: Iterable[str] | Callable[[str, nn.Module], bool],
    *,
    rank: int,
    alpha: float | int,
    dropout: float = 0.0,
    seed: int = 0,
) -> nn.Module:
    r"""Freeze ``model`` and give the chosen layers a trainable correction, in place, and return the model.

    In place, because the frozen weights are what takes the memory.

    Args:
        model: any; its linear layers may be dense or packed (:func:`mlcomp.layerwise.load` with ``packed=True``).
        layers: names, or a predicate (name, layer) → bool over all linear layers.
        rank: of the correction.
        alpha: the correction is multiplied by alpha/rank, so that another rank needs no other learning rate.
        dropout: share of the inputs of A that are zeroed while training.
        seed: of all A.
    Raises:
        ValueError: before anything is changed: an unknown name or a layer of another kind, none chosen, a model that
            has corrections already, bad options.
    Guarantee: the outputs are as before, to the bit; only A and B require a gradient.
    """
    check_lora(rank=rank, alpha=alpha, dropout=dropout, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    chosen = choose_adaptable(model, layers)
    model.requires_grad_(False)
    new = {}
    for name, layer in chosen.items():
        new[name] = LoRALinear(layer, rank=rank, alpha=alpha, dropout=dropout, generator=generator)
    _replace(model, {chosen[name]: module for name, module in new.items()})
    return model


def check_lora(*, rank: int, alpha: float | int, dropout: float, seed: int = 0) -> None:
    """Raise ValueError unless these are options of :func:`add_lora`."""
    check_whole("rank", rank, 1)
    check_positive("alpha", alpha)
    check_interval("dropout", dropout, "[0, 1)")
    check_whole("seed", seed, 0)


def choose_adaptable(
    model: nn.Module, layers: Iterable[str] | Callable[[str, nn.Module], bool]
) -> dict[str, nn.Module]:
    """Return name → layer of those that are to get a correction; errors as in :func:`add_lora`."""
    if lora_layers(model):
        raise ValueError("the model has corrections already: merge_lora(model) first")
    known = adaptable_layers(model)
    names = [name for name in known if layers(name, known[name])] if callable(layers) else list(layers)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"the model has no linear layer {unknown[0]!r}; it has {', '.join([*known][:4])}, …")
    if not names:
        raise ValueError("layers chooses none")
    return {name: known[name] for name in names}


@isolated
def merge_lora(model: nn.Module) -> nn.Module:
    r"""Add each correction to the weight beside it, in place, and return the model: $W + \frac{\alpha}{r} B A$.

    Raises:
        ValueError: before anything is changed: no corrections; a layer whose weight is packed, or held by another
            module, too (a head tied to the embedding).
    Guarantee: the outputs are those from before up to rounding, once, in the dtype of the weight.
    """
    merged = lora_layers(model)
    if not merged:
        raise ValueError("the model has no corrections: add_lora(model, …) gives it some")
    holders = Counter(p.data_ptr() for m in model.modules() for p in m._parameters.values() if p is not None)
    for name, layer in merged.items():
        weight = layer.layer._parameters.get("weight")
        if weight is None or not weight.is_floating_point():
            raise ValueError(f"layer {name!r} is packed: load it dense, or keep its correction beside it")
        if holders[weight.data_ptr()] > 1:
            raise ValueError(f"layer {name!r} has a weight that another module holds, too: give it one of its own")
    with torch.no_grad():
        for layer in merged.values():
            layer.layer.weight.copy_(layer.weight)
    _replace(model, {layer: layer.layer for layer in merged.values()})
    return model


def _replace(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put modules in the places of others, under every name that these have."""
    for parent in list(model.modules()):
        if parent in new.values():
            continue  # it holds what it replaces
        for child, present in parent._modules.items():
            if present is not None and present in new:
                parent._modules[child] = new[present]
