"""Methods that need more than a weight and a Hessian: they look at a block's outputs, or train the whole network.

Each takes (subject, **setting) and returns a :class:`Compressed`. All see the same text, and no labels: the target is
what the dense network gives. Embeddings stay; biases and norms are tuned where the method tunes them.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.aqlm_smollm2 import SETTINGS, block_and_targets, compress_block
from mlcomp.compare.subject import Subject
from mlcomp.layerwise import replace_module
from mlcomp.prune import calibrate, gradual_pruning, layer_normalized, with_weights
from mlcomp.quant import (
    SizeTarget,
    brecq,
    diffq_codes,
    finish_qat,
    meet_size,
    prepare_diffq,
    prepare_qat,
    ptq,
)
from mlcomp.train import train

BATCH = 16
# One recipe for all that train: 32 steps an epoch, a rate as for fine-tuning. No method was given its own.
EPOCHS, RATE, SEED = 6, 1e-4, 0
SPEED = 500.0  # of DiffQ's bits: at RATE they would not leave their start


@dataclass(frozen=True)
class Compressed:
    """A compressed copy of the network, and for each compressed layer what is stored of its weight.

    Attributes:
        model: its layers are those of the subject, or :class:`mlcomp.quant.FakeQuantized`.
        results: layer name → pruned weight, or a result with ``dequantize()`` and ``nbytes``.
    """

    model: nn.Module
    results: Mapping[str, Any]


class Student(nn.Module):
    """A network as a function of one batch of inputs, to the outputs that it should keep."""

    def __init__(self, model: nn.Module, output: Callable[[nn.Module, Tensor], Tensor]) -> None:
        """Wrap ``model``; ``output(model, batch)`` is the function."""
        super().__init__()
        self.model, self.output = model, output

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        return self.output(self.model, x)


def targets(subject: Subject) -> Tensor:
    """Return the dense network's outputs on all inputs."""
    with torch.no_grad():
        return torch.cat([subject.output(subject.model, x) for x in subject.inputs.split(BATCH)])


def only_blocks(model: nn.Module, subject: Subject) -> nn.Module:
    """Let only the parameters inside the blocks be trained, in place; return the model."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(block + "." for block in subject.blocks)))
    return model


def trained(
    model: nn.Module, subject: Subject, goal: Tensor, loss: Callable = F.mse_loss, epochs: int | None = None
) -> nn.Module:
    """Train what may be trained of ``model``, in place, towards ``goal`` (see ``targets``); return the model."""
    train(
        Student(model, subject.output), subject.inputs, goal, epochs=epochs or EPOCHS, lr=RATE,
        batch_size=BATCH, seed=SEED, loss=loss, progress=False,
    )  # fmt: skip
    return model.eval()


def plain_layers(model: nn.Module, names: Mapping[str, Any]) -> nn.Module:
    """Put the layers inside wrappers (QAT, DiffQ) back in their places, in place; return the model."""
    for name in names:
        model = replace_module(model, name, model.get_submodule(name).layer)
    return model


def post_training(subject: Subject, *, weight_bits: int, input_bits: int) -> Compressed:
    """PTQ, inputs of the layers rounded, too."""
    made = ptq(subject.model, subject.inputs.split(BATCH), weight_bits=weight_bits, input_bits=input_bits)
    return Compressed(made.model, {name: made.model.get_submodule(name).weight for name in subject.hessians})


def aware_training(subject: Subject, *, bits: int) -> Compressed:
    """QAT with learned steps, weights only."""
    model = prepare_qat(subject.model, subject.inputs.split(BATCH), weight_bits=bits, input_bits=None)
    made = finish_qat(trained(only_blocks(model, subject), subject, targets(subject))).model
    return Compressed(made, {name: made.get_submodule(name).weight for name in subject.hessians})


def learned_bits(subject: Subject, *, target_bits: float) -> Compressed:
    """DiffQ with a number of bits for each layer, and a target for the size."""
    model = prepare_diffq(subject.model, layers=list(subject.hessians), group_size=None, speed=SPEED)
    target = sum(model.get_submodule(name).layer.weight.numel() for name in subject.hessians) * target_bits / 8
    goal, aim = targets(subject), SizeTarget(model, target, loss=F.mse_loss)
    fitted = meet_size(trained(only_blocks(model, subject), subject, goal, aim, epochs=EPOCHS - 1), target)
    codes = diffq_codes(trained(fitted, subject, goal, epochs=1))
    return Compressed(plain_layers(fitted, codes), codes)


def block_rounding(subject: Subject, *, bits: int, steps: int) -> Compressed:
    """BRECQ block after block, each fed by the blocks that are rounded already."""
    model, results = copy.deepcopy(subject.model), {}
    for block in subject.blocks:
        here, goal = block_and_targets(model, subject.model, block, subject.inputs.split(BATCH), BATCH)
        made = brecq(here.block, here.inputs, bits=bits, targets=goal, steps=steps, batch_size=BATCH, seed=SEED)
        model.get_submodule(block).load_state_dict(made.block.block.state_dict())
        results |= {block + name.removeprefix("block"): codes for name, codes in made.layers.items()}
    return Compressed(model, results)


def additive(subject: Subject, *, tuning: str, **sizes: int) -> Compressed:
    """AQLM block after block, each tuned by ``tuning``, the name of a method of ``aqlm_smollm2``; sizes as there."""
    model, results = copy.deepcopy(subject.model), {}
    settings = SETTINGS | {"batch_size": BATCH} | sizes
    for block in subject.blocks:
        made = compress_block(model, subject.model, block, list(subject.inputs.split(BATCH)), tuning, settings)
        results |= made["layers"]
    return Compressed(model, results)


def ranked(pruner: Callable[..., Mapping[str, Tensor]]) -> Callable[..., Compressed]:
    """Return the method that ranks the weights of all layers together by ``pruner``."""

    def method(subject: Subject, *, sparsity: float) -> Compressed:
        weights = {name: subject.model.get_submodule(name).weight.detach() for name in subject.hessians}
        results = pruner(weights, sparsity=sparsity)
        return Compressed(with_weights(subject.model, results), results)

    return method


def calibrated(subject: Subject, *, sparsity: float) -> Compressed:
    """Layer-normalised magnitude, then corrections of weights and biases and masked fine-tuning, layer by layer."""
    pruned = ranked(layer_normalized)(subject, sparsity=sparsity).model
    batches = list(subject.inputs.split(BATCH))
    model = calibrate(subject.model, pruned, batches, max_samples=4096, seed=SEED)
    return Compressed(model, {name: model.get_submodule(name).weight.detach() for name in subject.hessians})


def gradual(subject: Subject, *, sparsity: float) -> Compressed:
    """Prune on the cubic schedule while the blocks are trained."""
    student = Student(only_blocks(copy.deepcopy(subject.model), subject), subject.output)
    made = gradual_pruning(
        student, subject.inputs, targets(subject), sparsity=sparsity, epochs=EPOCHS, batch_size=BATCH, lr=RATE,
        loss=F.mse_loss, layers=["model." + name for name in subject.hessians], seed=SEED, progress=False,
        pruner=layer_normalized,
    )  # fmt: skip
    model = made.model.model.eval()
    return Compressed(model, {name: model.get_submodule(name).weight.detach() for name in subject.hessians})
