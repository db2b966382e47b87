r"""Calibration of a pruned network, layer after layer: weight correction, bias correction, masked fine-tuning.

Notation: X a layer's inputs in the dense network, $\hat X$ those in the pruned one, whose earlier layers are
calibrated already; the layer should give the dense layer's outputs Y on $\hat X$.
Source: Lazarevich, Kozlov, Malinin 2021, arXiv:2104.15023, the formulas up to eq. (6).   Syllabus: 1.17, 1.21
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mlcomp.context import isolated_run
from mlcomp.layerwise.attention import attention_split
from mlcomp.layerwise.bias_correction import bias_correction
from mlcomp.layerwise.fit import choose_layers, copy_model
from mlcomp.layerwise.inputs import first_argument, first_calls, trace_layers
from mlcomp.layerwise.matrix import Layer, find_layer, input_matrices, is_layer, set_weight_matrix, weight_matrix
from mlcomp.layerwise.running import call_model, check_batches, check_called, hooked
from mlcomp.modes import evaluating
from mlcomp.prune.post_training.masked_finetune import FinetunedLayer, masked_finetune
from mlcomp.prune.post_training.weight_correction import weight_correction

STEPS = ("weight", "bias", "finetune")


@isolated_run
def calibrate(
    dense: nn.Module,
    pruned: nn.Module,
    batches: Iterable,
    *,
    steps: Collection[str] = STEPS,
    exact_mean: bool = False,
    fit: Callable[..., FinetunedLayer] = masked_finetune,
    max_samples: int = 2**14,
    seed: int = 0,
    **finetuning: Any,
) -> nn.Module:
    r"""Return a copy of ``pruned`` whose layers with zeros give, as far as they can, the dense network's outputs.

    A shift goes into the layer's bias; if it has none, into the running mean of the BatchNorm that reads its output,
    which subtracts it (another reader of that output does not see the shift); if there is none either, the layer gets
    a bias. A layer that is called more than once is calibrated on its first call.

    Args:
        dense: the original network; not modified. pruned: the same network with zeros in the weights of its linear
            and convolutional layers; not modified. Layers without zeros stay as they are.
        batches: calibration inputs, as for :func:`mlcomp.layerwise.compress`; a list, it is read several times.
        steps: which of "weight" (:func:`weight_correction`, needs no data), "bias"
            (:func:`mlcomp.layerwise.bias_correction`) and "finetune" (:func:`masked_finetune`) to take; always in
            this order.
        exact_mean: of the weight correction.
        fit: what "finetune" calls: ``fit(weight, inputs, targets, bias=…, seed=…)`` returns a new weight with the
            same zeros, and a new bias: descent, or a closed form of yours. ``targets`` are the dense layer's outputs
            on the *dense* network's inputs, without its bias.
        max_samples: of a layer's samples (rows, tokens, patches) at most so many are drawn for fine-tuning, from
            ``seed``; the means of the bias correction are over all.
        finetuning: options of ``fit``: ``finetune_steps`` (``steps`` is taken), ``batch_size`` and ``learning_rate``
            of :func:`masked_finetune`.
    Returns:
        The copy, each module in the mode it had; exactly the zeros of ``pruned``.
    Raises:
        ValueError: unknown step, networks that do not match, no zeros, a layer that is never called, batches that are
            empty or can be read only once.
    Guarantee: with "bias" each calibrated layer's mean output over the batches is that of the dense network, until
        fine-tuning moves it; the zeros stay.
    Cost: two forward passes over the batches for each layer, up to that layer, one more pass to find the order, and
        the patches of one layer in memory.
    """
    check_batches(batches, again="calibrating layer after layer")
    unknown = set(steps) - set(STEPS)
    if unknown:
        raise ValueError(f"steps may hold {STEPS}, got {sorted(unknown)}")
    result = copy_model(pruned)
    finetuning = {"steps" if key == "finetune_steps" else key: value for key, value in finetuning.items()}
    with attention_split(dense) as dense, attention_split(result) as network, evaluating(dense), evaluating(network):
        names = _layers_with_zeros(dense, network)
        trace = trace_layers(dense, batches, names)
        check_called(trace.calls)
        order = [name for stage in trace.stages for name in stage]
        norms = _following_norms(network, next(iter(batches)), order)
        for name in order:
            layer = _Layer(find_layer(dense, name), find_layer(network, name), norms.get(name))
            if "weight" in steps:
                layer.correct_weights(exact_mean)
            if "bias" in steps or "finetune" in steps:
                draw = torch.Generator().manual_seed(seed)
                layer.collect(dense, network, name, batches, max_samples, draw)
            if "bias" in steps:
                layer.correct_bias()
            if "finetune" in steps:
                layer.finetune(fit, seed=seed, **finetuning)
    return result


class _Layer:
    """One layer of both networks, and what it sees there."""

    def __init__(self, dense: Layer, pruned: Layer, norm: _BatchNorm | None) -> None:
        self.dense, self.pruned, self.norm = dense, pruned, norm
        self.original = weight_matrix(dense)
        self.shifted = torch.zeros(self.original.shape[:2], dtype=torch.float64, device=self.original.device)

    def correct_weights(self, exact_mean: bool) -> None:
        pairs = zip(self.original, weight_matrix(self.pruned), strict=True)
        set_weight_matrix(
            self.pruned, torch.stack([weight_correction(w, p, exact_mean=exact_mean) for w, p in pairs])
        )

    def collect(
        self,
        dense: nn.Module,
        result: nn.Module,
        name: str,
        batches: Iterable,
        max_samples: int,
        draw: torch.Generator,
    ) -> None:
        """Means of the inputs over all samples (groups, inp), and the same drawn samples of both networks."""
        parts: list[list[Tensor]] = []
        sums, count = [torch.zeros_like(self.original[:, 0], dtype=torch.float64)] * 2, 0
        pairs = zip(_inputs(dense, name, batches), _inputs(result, name, batches), strict=True)
        for x, x_hat in pairs:
            matrices = [torch.cat(list(input_matrices(self.pruned, t)), -1) for t in (x, x_hat)]
            sums = [s + m.double().sum(-1) for s, m in zip(sums, matrices, strict=True)]
            count += matrices[0].shape[-1]
            parts.append(matrices)
        self.mean, self.mean_hat = sums[0] / count, sums[1] / count
        share = min(1.0, max_samples / count)
        chosen = [_draw(m.shape[-1], share, draw).to(m.device) for m, _ in parts]
        self.x, self.x_hat = (
            torch.cat([pair[i][..., c] for pair, c in zip(parts, chosen, strict=True)], -1) for i in (0, 1)
        )

    def correct_bias(self) -> None:
        current = weight_matrix(self.pruned)
        groups = zip(self.original, current, self.mean, self.mean_hat, strict=True)
        shift = torch.stack([bias_correction(w, c, m, corrected_input_mean=n) for w, c, m, n in groups])
        self._shift(shift)

    def finetune(self, fit: Callable[..., FinetunedLayer], **options: Any) -> None:
        """Learn on the drawn samples. Only differences of biases matter, so the dense layer's is left out."""
        current, made = weight_matrix(self.pruned), []
        for w, start, x, x_hat, shift in zip(self.original, current, self.x, self.x_hat, self.shifted, strict=True):
            made.append(fit(start, x_hat, w @ x, bias=shift.to(w.dtype), **options))
        set_weight_matrix(self.pruned, torch.stack([m.weight for m in made]))
        self._shift(torch.stack([m.bias for m in made]).double() - self.shifted)

    def _shift(self, shift: Tensor) -> None:
        """Move the layer's outputs by (groups, out/groups)."""
        self.shifted = self.shifted + shift
        flat = shift.flatten()
        if self.pruned.bias is not None:
            self.pruned.bias.add_(flat.to(self.pruned.bias.dtype))
        elif self.norm is not None and self.norm.running_mean is not None:
            self.norm.running_mean.sub_(flat.to(self.norm.running_mean.dtype))
        else:
            self.pruned.bias = nn.Parameter(flat.to(self.pruned.weight.dtype))


def _draw(size: int, share: float, draw: torch.Generator) -> Tensor:
    return torch.randperm(size, generator=draw, device="cpu")[: max(1, round(share * size))]


def _layers_with_zeros(dense: nn.Module, pruned: nn.Module) -> list[str]:
    originals = dict(dense.named_modules())
    names: list[str] = []
    for name, module in pruned.named_modules():
        if not is_layer(module):
            continue
        other = originals.get(name)
        if other is None or not is_layer(other) or other.weight.shape != module.weight.shape:
            raise ValueError(f"the networks do not match: layer {name!r} of the pruned one is not in the dense one")
        if (module.weight == 0).any():
            names.append(name)
    if not names:
        raise ValueError("pruned has no zeros in any linear or convolutional weight: there is nothing to calibrate")
    choose_layers(pruned, names, tied="allow", product=True)  # raises for a layer whose weight is no plain parameter
    return names


def _inputs(model: nn.Module, name: str, batches: Iterable) -> Iterator[Tensor]:
    """Yield the input of the layer's first call for each batch that reaches it."""
    for args, kwargs in first_calls(model, name, batches):
        yield first_argument(args, kwargs)


def _following_norms(model: nn.Module, batch: Any, names: Collection[str]) -> dict[str, _BatchNorm]:
    """Return name → the BatchNorm with running statistics that reads the layer's output, where there is one."""
    outputs: list[tuple[str, Tensor]] = []
    found: dict[str, _BatchNorm] = {}

    def after(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            outputs.append((name, output))

        return hook

    def before(module: _BatchNorm, args: tuple) -> None:
        found.update({name: module for name, output in outputs if args and args[0] is output})

    handles = [model.get_submodule(name).register_forward_hook(after(name)) for name in names]
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    handles += [m.register_forward_pre_hook(before) for m in norms]
    with hooked(handles):
        call_model(model, batch)
    return found
