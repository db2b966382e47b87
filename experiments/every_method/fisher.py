"""Methods on the inverse Fisher matrix of each layer: they need gradients of a likelihood, one a piece of text.

The encoder has no labels. Its outputs are taken as means of Gaussians, and labels are drawn from them: the gradient
of the log likelihood at the dense weights is then that of ⟨outputs, noise⟩, and the mean of its outer products is the
Fisher matrix. Layers are pruned one by one, each to the same sparsity; λ is a hundredth of the mean of F's diagonal.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from experiments.every_method.networks import BATCH, SEED, Compressed
from mlcomp.compare.subject import Subject
from mlcomp.prune import with_weights

STRETCHES, DAMP = 128, 0.01


def on_gradients(pruner: Callable[..., Tensor], **fixed: object) -> Callable[..., Compressed]:
    """Return the method that calls ``pruner(weights, gradients, damping=…, **setting)`` for each layer."""

    def method(subject: Subject, **setting: float) -> Compressed:
        seen = inputs_and_noise(subject)
        results = {}
        for name, (inputs, deltas) in seen.items():
            weight = subject.model.get_submodule(name).weight.detach()
            gradients = torch.einsum("sto,sti->soi", deltas, inputs).flatten(1)
            damping = DAMP * float(gradients.square().mean())
            flat = pruner(weight.flatten(), gradients, damping=damping, **fixed, **setting)
            results[name] = flat.reshape(weight.shape)
        return Compressed(with_weights(subject.model, results), results)

    return method


def inputs_and_noise(subject: Subject) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Return for each layer its inputs, and the gradients that reach its outputs: (stretches, tokens, …) both."""
    inputs: dict[str, list[Tensor]] = {name: [] for name in subject.hessians}
    deltas: dict[str, list[Tensor]] = {name: [] for name in subject.hessians}

    def watch(name: str, module: torch.nn.Module, args: tuple, output: Tensor) -> None:
        inputs[name].append(args[0].detach())
        output.register_hook(lambda gradient: deltas[name].append(gradient))

    generator = torch.Generator().manual_seed(SEED)
    handles = [subject.model.get_submodule(n).register_forward_hook(partial(watch, n)) for n in subject.hessians]
    try:
        for batch in subject.inputs[:STRETCHES].split(BATCH):
            outputs = subject.output(subject.model, batch)
            noise = torch.randn(outputs.shape, generator=generator)
            torch.autograd.grad((outputs * noise).sum(), list(subject.model.parameters()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (_by_token(inputs[name]), _by_token(deltas[name])) for name in subject.hessians}


def _by_token(parts: list[Tensor]) -> Tensor:
    whole = torch.cat(parts)
    return whole.reshape(len(whole), -1, whole.shape[-1])  # a network of vectors has one token
