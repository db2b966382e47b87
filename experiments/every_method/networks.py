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
from mlcomp.formats import absmax_int8
from mlcomp.layerwise import replace_module
from mlcomp.prune import calibrate, gradual_pruning, layer_normalized, with_weights
from mlcomp.quant import (
    SizeTarget,
    brecq,
    diffq_codes,
    double_quantize,
    finish_qat,
    llm_int8,
    meet_size,
    prepare_diffq,
    prepare_qat,
    ptq,
)
from mlcomp.train import add_lora, lora_layers, train

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
    return Compressed(made.model, {name: made.model.get_submodule(name).quantized for name in subject.hessians})


def aware_training(subject: Subject, *, bits: int) -> Compressed:
    """QAT with learned steps, weights only."""
    model = prepare_qat(subject.model, subject.inputs.split(BATCH), weight_bits=bits, input_bits=None)
    made = finish_qat(trained(only_blocks(model, subject), subject, targets(subject))).model
    return Compressed(made, {name: made.get_submodule(name).quantized for name in subject.hessians})


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


class MixedInt8(nn.Linear):
    """A linear layer that multiplies as LLM.int8() does, with weights that lie on their 8-bit grid."""

    threshold: float

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        y = llm_int8(x.flatten(0, -2), self.weight, threshold=self.threshold)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], self.out_features)


def mixed_int8(subject: Subject, *, threshold: float) -> Compressed:
    """LLM.int8(), weights and inputs of all layers in 8 bits but for outlying columns of the inputs."""
    model, results = copy.deepcopy(subject.model), {}
    for name in subject.hessians:
        layer = model.get_submodule(name)
        layer.__class__, layer.threshold = MixedInt8, threshold  # its weight and bias stay
        results[name] = absmax_int8(layer.weight, -1)
    return Compressed(model, results)


@dataclass(frozen=True)
class Corrected:
    """Codes and, beside them, a product of two thin matrices in float16."""

    codes: Any
    left: Tensor
    right: Tensor

    def dequantize(self) -> Tensor:
        """Return the weight that both stand for."""
        return self.codes.dequantize() + self.left.float() @ self.right.float()

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and both matrices."""
        return self.codes.nbytes + self.left.nbytes + self.right.nbytes


def low_rank_beside_codes(subject: Subject, *, rank: int) -> Compressed:
    """QLoRA: NF4 codes that stay, and corrections that are trained towards the dense network's outputs."""
    names = list(subject.hessians)
    codes = {name: double_quantize(subject.model.get_submodule(name).weight) for name in names}
    base = with_weights(subject.model, {name: code.dequantize() for name, code in codes.items()})
    model = trained(add_lora(base, names, rank=rank, alpha=2 * rank, seed=SEED), subject, targets(subject))
    halves = {name: (layer.scaling * layer.lora_B.detach()).half() for name, layer in lora_layers(model).items()}
    rights = {name: layer.lora_A.detach().half() for name, layer in lora_layers(model).items()}
    results = {name: Corrected(codes[name], halves[name], rights[name]) for name in names}
    return Compressed(with_weights(subject.model, {name: r.dequantize() for name, r in results.items()}), results)


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
