r"""Layer-by-layer distillation (LKD): each block of a quantized network learns to say what the original block says.

Notation: $L_1, L_2, \dots$ the blocks, $\hat L_k$ the quantized ones, X the inputs of the network.
$$ \min_{\hat L_k} \mathrm{MSE}\bigl(L_k L_{k-1} \cdots L_1(X),\; \hat L_k L_{k-1} \cdots L_1(X)\bigr) . $$
One block is trained at a time, and no labels are needed. In the paper both blocks are fed by the original network.
With $\hat L_k \hat L_{k-1} \cdots \hat L_1(X)$ on the right a block sees the errors before it, and may correct them.
Source: Yao et al. 2022, arXiv:2206.01861, section 4.2; inputs of the quantized network with targets of the original
one: Nagel et al. 2020, arXiv:2004.10568, section 3.4 (asymmetric reconstruction).   Syllabus: 4.07
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlcomp.checks import check_choice, check_positive, check_whole
from mlcomp.context import isolated_run
from mlcomp.layerwise.chains import Arguments
from mlcomp.layerwise.follow import run_block
from mlcomp.layerwise.inputs import first_calls
from mlcomp.layerwise.matrix import find_layers
from mlcomp.layerwise.nested import changed
from mlcomp.layerwise.running import check_batches
from mlcomp.modes import evaluating
from mlcomp.quant.aware_training.group_wise import GroupWise, finish_group_wise, prepare_group_wise
from mlcomp.train.loop import learning_rate_share, random_batches

FROM = ("teacher", "student")


@dataclass(frozen=True)
class LayerByLayer(GroupWise):
    """The quantized model, the codes of its layers, and what training brought.

    Attributes:
        errors: for each block, the mean squared error on all batches before and after it was trained.
    """

    errors: tuple[tuple[float, float], ...]


@isolated_run
def layer_by_layer(
    model: nn.Module,
    batches: Iterable,
    blocks: Sequence[str],
    *,
    weight_bits: int,
    inputs: str = "teacher",
    targets: str = "teacher",
    steps: int = 100,
    lr: float = 1e-3,
    seed: int = 0,
    **options: Any,
) -> LayerByLayer:
    """Quantize the blocks of a network one after the other, each trained to the output of the original one.

    Args:
        model: not modified; runs in evaluation mode.
        batches: calibration batches without labels, as for :func:`mlcomp.layerwise.compress`; read once for each
            block, and kept on the device of the model.
        blocks: names of the blocks, in the order in which the model calls them. What is outside stays as it is.
        weight_bits: 2 to 8. options: ``group_size``, ``input_bits``, ``symmetric`` and ``overrides`` as for
            :func:`mlcomp.quant.prepare_group_wise`.
        inputs: what a block is fed: "teacher", what the original block gets inside of the original network (the
            paper's), or "student", what it gets from the blocks before it, quantized and trained.
        targets: what it has to say: "teacher", the original block's output inside of the original network, or
            "student", the original block's output on the same inputs. The two differ for inputs of the student only.
        steps: of Adam for each block, each on one of the batches, in random order; 0 is rounding to nearest.
        lr: peak learning rate for the weights of the block and all its other parameters (biases, norms); it rises and
            falls within each block's steps as in :func:`mlcomp.train.train`.
        seed: of the order.
    Returns:
        the quantized copy in eval mode, the codes of each layer, and the errors of each block.
    Raises:
        ValueError: no block, an unknown one, one within another or without linear layers, one that is never called or
            does not return a tensor first; bad options; an error that is NaN or infinite.
    Guarantee: the same seed gives the same codes; the global generator is not touched.
    Cost: for each block a pass through the blocks up to it (two for inputs of the student), and ``steps`` steps of
        the block alone. Gradients and Adam's moments are those of one block, as are the inputs and targets kept.
    Deviation: the authors' code keeps the learning rate constant. Outputs at padding count like all others, as there.
    """
    check_batches(batches, again="each block")
    check_choice("inputs", inputs, FROM)
    check_choice("targets", targets, FROM)
    check_whole("steps", steps, 0)
    check_whole("seed", seed, 0)
    check_positive("lr", lr)
    student = prepare_group_wise(model, weight_bits=weight_bits, layers=_layers_of(model, blocks), **options)
    errors = []
    for k, name in enumerate(blocks):
        block = student.get_submodule(name)
        taught = _calls(model, name, batches)
        calls = taught if inputs == "teacher" else _calls(student, name, batches)
        said = _outputs(model.get_submodule(name), taught if targets == "teacher" else calls)
        before = _error(block, calls, said, name)
        draws = [int(i) for i in islice(random_batches(len(calls), 1, seed=seed + k), steps)]
        _train(block, calls, said, draws, lr)
        errors.append((before, _error(block, calls, said, name)))
    finished = finish_group_wise(student)
    return LayerByLayer(finished.model, finished.layers, tuple(errors))


def _layers_of(model: nn.Module, blocks: Sequence[str]) -> list[str]:
    """Return the names of the layers inside of the blocks."""
    if isinstance(blocks, str) or not blocks:
        raise ValueError(f"blocks must be names of modules in the order of their calls, got {blocks!r}")
    modules = dict(model.named_modules())
    for i, name in enumerate(blocks):
        if not name or name not in modules:
            raise ValueError(f"the model has no block {name!r}")
        if any(f"{other}.".startswith(f"{name}.") for j, other in enumerate(blocks) if j != i):
            raise ValueError(f"block {name!r} stands twice, or holds another one")
    return [f"{block}.{inner}" if inner else block for block in blocks for inner in find_layers(modules[block])]


def _calls(model: nn.Module, name: str, batches: Iterable) -> list[Arguments]:
    """Return what the block is called with, for each batch."""
    with evaluating(model):
        calls = list(first_calls(model, name, batches))
    if not calls:
        raise ValueError(f"block {name!r} was never called: batches is empty, or the model does not use it")
    return calls


def _output(block: nn.Module, given: Arguments) -> Tensor:
    """Run the block on copies of its arguments; return its output, the first one where it returns several."""
    output = run_block(block, changed(given, lambda _, x: x.detach().clone() if isinstance(x, Tensor) else x))
    output = output[0] if isinstance(output, tuple) else output
    if not isinstance(output, Tensor):
        raise ValueError(f"a block must return a tensor first, got {type(output).__name__}")
    return output


def _outputs(block: nn.Module, calls: list[Arguments]) -> list[Tensor]:
    with evaluating(block):
        return [_output(block, given) for given in calls]


def _error(block: nn.Module, calls: list[Arguments], said: list[Tensor], name: str) -> float:
    """Return the mean squared error over the outputs for all batches."""
    total = 0.0
    for ours, theirs in zip(_outputs(block, calls), said, strict=True):
        total += float((ours.double() - theirs.double()).square().sum())
    error = total / sum(theirs.numel() for theirs in said)
    if not math.isfinite(error):
        raise ValueError(f"the error of block {name!r} is {error}: lower lr, or look for NaN in the batches")
    return error


def _train(block: nn.Module, calls: list[Arguments], said: list[Tensor], draws: list[int], lr: float) -> None:
    """Train the block in place and in evaluation mode, on the calls with the numbers in ``draws``."""
    flags = [(parameter, parameter.requires_grad) for parameter in block.parameters()]
    block.eval().requires_grad_(True)
    optimizer, share = torch.optim.Adam(block.parameters(), lr=lr), learning_rate_share(len(draws))
    with torch.enable_grad():  # whatever the caller has set
        for step, i in enumerate(draws):
            optimizer.param_groups[0]["lr"] = lr * share(step)
            optimizer.zero_grad()
            F.mse_loss(_output(block, calls[i]), said[i]).backward()
            optimizer.step()
    for parameter, flag in flags:
        parameter.grad = None
        parameter.requires_grad_(flag)
