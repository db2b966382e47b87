"""Experts whose matrices lie in one tensor: (experts, out, inp), each multiplied by its own slice.

Mixtures of experts are stored so in transformers. No module is called for one expert, so the products themselves are
watched: each expert is a linear layer on the memory of its slice, and a product with that slice is its call.
Source: Shazeer et al. 2017, arXiv:1701.06538 (mixtures of experts).   Syllabus: 2.01
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mlcomp.layerwise.attention import SplitAttention, is_attention
from mlcomp.layerwise.matrix import Layer, is_layer

PRODUCTS = (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__)


def find_experts(model: nn.Module) -> dict[str, nn.Linear]:
    """Return "path.parameter.index" → a linear layer on each slice of the parameters with three dimensions.

    Convolutions and attention are no mixtures. Whether the rest are is seen only when the model runs.
    """
    found = {}
    for path, module in model.named_modules():
        if is_layer(module) or is_attention(module) or isinstance(module, SplitAttention):
            continue
        for key, parameter in module._parameters.items():
            if parameter is None or parameter.ndim != 3 or parameter.is_meta or not parameter.is_floating_point():
                continue
            for index, matrix in enumerate(parameter.detach()):
                layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
                layer.weight = nn.Parameter(matrix, parameter.requires_grad)
                found[".".join(part for part in (path, key, str(index)) if part)] = layer
    return found


class ExpertCalls(TorchFunctionMode):
    """While active, ``see(name, x)`` is called before each product of ``x`` with the slice of an expert."""

    def __init__(self, experts: Mapping[str, Layer], see: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self.names = {_key(layer.weight): name for name, layer in experts.items()}
        self.see = see

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            self._product(*args[:2], **(kwargs or {}))
        elif func in PRODUCTS and len(args) == 2 and args[1].ndim == 2:
            self._product(args[0], args[1].T)
        return func(*args, **(kwargs or {}))

    def _product(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        name = self.names.get(_key(weight))
        if name is not None and input.numel():
            self.see(name, input)


def _key(weight: Tensor) -> tuple:
    return weight.data_ptr(), tuple(weight.shape), weight.stride()


@contextmanager
def expert_by_expert(model: nn.Module) -> Iterator[None]:
    """Have transformers' mixtures multiply one expert after the other, not all in one grouped product."""
    every: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(config): config for config in every if hasattr(config, "_experts_implementation")}
    before = {key: config._experts_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._experts_implementation = "eager"
        yield
    finally:
        for key, config in configs.items():
            config._experts_implementation = before[key]
