"""The axes of a model's weights along which channels lie, and the tensors that are cut along each.

Notation: axis "out" of a layer is its output channels (rows of its weight, entries of its bias), "in" its input
channels (columns). A norm has only "out", its entries; an embedding has "out", its columns, and "in", its rows. A
parameter of a module of no known kind has its dimensions: "0", "1", ….
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import ParametrizationList

from mlcomp.layerwise.matrix import TurnedLinear

# Their parameters are read by code that counts on their sizes.
UNCUT = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Bilinear, ParametrizationList)
ENTRIES = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Axis:
    """One axis of a module.

    Attributes:
        name: of the module; of the parameter where the module is of no known kind.
        axis: "out", "in", or the number of the parameter's dimension.
        size: channels along it.
        cuts: (module, name of a tensor in it, dimension) of all tensors that are cut along it. The inputs of a
            grouped convolution are no dimension of its weight: None.
    """

    name: str
    axis: str
    size: int
    cuts: tuple[tuple[nn.Module, str, int | None], ...]


def find_axes(model: nn.Module) -> Iterator[Axis]:
    """Yield the axes of all modules, in the order of ``model.named_modules()``, "out" before "in"."""
    for name, module in model.named_modules():
        if isinstance(module, UNCUT):
            continue
        held = [key for key, p in module._parameters.items() if p is not None]
        sides = _sides(module) if "weight" in held else None
        for axis, (size, tensors) in (sides or {}).items():
            yield Axis(name, axis, size, tuple((module, key, dim) for key, dim in tensors))
        for key in held if sides is None else ():
            path = f"{name}.{key}" if name else key
            shape = module.get_parameter(key).shape
            if len(shape) == 1:
                yield Axis(path, "out", shape[0], ((module, key, 0),))
            else:
                yield from (Axis(path, str(d), size, ((module, key, d),)) for d, size in enumerate(shape))


def _sides(module: nn.Module) -> dict[str, tuple[int, list[tuple[str, int | None]]]] | None:
    """Return axis → (size, tensors and their dimension) of a module of a known kind; None of another."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    bias: list[tuple[str, int | None]] = [("bias", 0)] if getattr(module, "bias", None) is not None else []
    if isinstance(module, _ConvNd):
        turned = isinstance(module, _ConvTransposeNd)
        grouped = module.groups > 1
        out_dim, in_dim = (None if grouped else 1, 0) if turned else (0, None if grouped else 1)
        return {
            "out": (module.out_channels, [("weight", out_dim), *bias]),
            "in": (module.in_channels, [("weight", in_dim)]),
        }
    if isinstance(module, TurnedLinear):
        return {"out": (weight.shape[1], [("weight", 1), *bias]), "in": (weight.shape[0], [("weight", 0)])}
    if isinstance(module, nn.Linear):
        return {"out": (weight.shape[0], [("weight", 0), *bias]), "in": (weight.shape[1], [("weight", 1)])}
    if isinstance(module, nn.Embedding):
        return {"out": (weight.shape[1], [("weight", 1)]), "in": (weight.shape[0], [("weight", 0)])}
    if weight.ndim == 1:  # BatchNorm, LayerNorm, RMSNorm of any library, PReLU
        entries = [key for key in ENTRIES if isinstance(getattr(module, key, None), Tensor)]
        if {key for key, p in module._parameters.items() if p is not None} <= set(entries):
            return {"out": (len(weight), [(key, 0) for key in entries])}
    return None
