r"""QLoRA: linear layers in 4 bits, frozen, and beside each a correction of low rank that is trained.

Notation: $\hat W$ the weight of :func:`mlcomp.quant.double_quantize`, $y = \hat W x + \frac{\alpha}{r} B A x$. The
gradient passes through $\hat W$ to the layers before, and only A and B are moved.
Source: Dettmers et al. 2023, arXiv:2305.14314, section 3 (eqs. 5 and 6).   Syllabus: 4.08
"""

from collections.abc import Iterable
from typing import Any, cast

from torch import nn

from mlcomp.context import isolated
from mlcomp.formats.stored import store
from mlcomp.layerwise.fit import choose_layers, copy_model
from mlcomp.layerwise.packed_linear import packed_layer
from mlcomp.layerwise.weights import replace_module
from mlcomp.quant.scalar.double_quantization import double_quantize
from mlcomp.train.lora import add_lora, check_lora


@isolated
def qlora(
    model: nn.Module,
    layers: Iterable[str] | None = None,
    *,
    rank: int,
    alpha: float | int,
    dropout: float = 0.0,
    seed: int = 0,
    inplace: bool = False,
    **options: Any,
) -> nn.Module:
    """Return ``model`` with linear layers in 4 bits, each with a correction that alone is trained.

    Args:
        model: a copy is changed, unless ``inplace``.
        layers: names; None: all linear layers whose weight is their own (a head tied to the embedding is not; the
            paper takes all layers of the blocks, too).
        rank, alpha, dropout, seed: of the corrections, see :func:`mlcomp.train.add_lora`.
        inplace: change ``model`` itself, where a second copy of its weights does not fit.
        options: of :func:`mlcomp.quant.double_quantize`.
    Returns:
        the model, for an optimizer on :func:`mlcomp.train.lora_parameters`.
    Raises:
        ValueError: before anything is changed: an unknown or unfit layer, no linear layer, bad options of the
            corrections.
    Guarantee: at first the outputs are those of the model with the decoded weights, to the bit of a packed layer.
    Cost: each pass decodes the weights, forward once and backward once. Alive are 4.13 bits for each weight, 16 bytes
        for each number of A and B under Adam (value, gradient, two moments), and the activations.
    Deviation: the paper's optimizer moves its moments to the CPU's memory when the GPU's is full ("paged"); on a CPU
        there is nothing to move.
    """
    chosen, _ = choose_layers(model, layers, product=True)
    modules = dict(model.named_modules())
    # The projections of nn.MultiheadAttention are views of its weights, and it reads them itself.
    linear = {name: layer for name, layer in chosen.items() if name and type(modules.get(name)) is nn.Linear}
    others = [] if layers is None else [name for name in chosen if name not in linear]
    if others or not linear:
        told = f"layer {others[0]!r} is none" if others else "the model has none"
        raise ValueError(f"qlora is for linear layers that stand in a model, and {told}")
    check_lora(rank=rank, alpha=alpha, dropout=dropout, seed=seed)
    results = {name: store(double_quantize(layer.weight, **options)) for name, layer in linear.items()}
    result = model if inplace else copy_model(model)
    for name, stored in results.items():
        replace_module(result, name, packed_layer(cast(nn.Linear, result.get_submodule(name)), (stored,)))
    return add_lora(result, list(results), rank=rank, alpha=alpha, dropout=dropout, seed=seed)
