r"""Bias correction: compressing the weights shifts the mean of each output channel; the bias takes the shift back.

Notation: W weight, Ŵ compressed, m = E[x] the mean input of the dense network, $\hat m$ that of the compressed one,
c bias. $E[Wx] - E[\hat W\hat x] = Wm - \hat W\hat m$, so $c \leftarrow c + Wm - \hat W\hat m$.
Where x = relu(u) and BatchNorm has made $u \sim N(\beta, \gamma^2)$, m is known without data.
Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2, eq. (17)-(19), and appendix D (with data); Lazarevich,
Kozlov, Malinin 2021, arXiv:2104.15023, eq. (5), with $\hat m = m$.   Syllabus: 1.08, 1.21
"""

import math
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from mlcomp.checks import check_finite, check_like, check_values, check_weight, narrowed
from mlcomp.context import isolated, isolated_run
from mlcomp.layerwise.attention import attention_split
from mlcomp.layerwise.fit import copy_model
from mlcomp.layerwise.matrix import find_layer, find_layers
from mlcomp.layerwise.running import call_model, check_batches, check_called, hooked
from mlcomp.modes import evaluating


@isolated
def bias_correction(
    weight: Float[Tensor, "out inp"],
    corrected: Float[Tensor, "out inp"],
    input_mean: Float[Tensor, " inp"],
    *,
    corrected_input_mean: Float[Tensor, " inp"] | None = None,
) -> Float[Tensor, " out"]:
    r"""Return what to *add* to the layer's bias: $Wm - W_{corr}\hat m$.

    A layer is linear, so the mean of its outputs is its output for the mean input: no output has to be computed.

    Args:
        weight: (out, inp), dense, any float dtype, computed in float64; not modified.
        corrected: (out, inp), what the layer computes with now: pruned, quantized, corrected.
        input_mean: (inp,), mean of the dense network's inputs (for a convolution: of its patches, padding included).
        corrected_input_mean: (inp,), that of the compressed network's inputs; None: the same, as eq. (5) has it.
    Returns:
        (out,) in float64.
    Raises:
        ValueError: NaN or inf, other shapes.
    Guarantee: with the bias moved by the result, each output's mean over those samples is that of the dense layer.
        Of all biases this one also has the least squared error of the outputs on those samples.
    """
    check_weight(weight)
    check_like("corrected", corrected, weight.shape, "weight")
    seen = input_mean if corrected_input_mean is None else corrected_input_mean
    for name, mean in (("input_mean", input_mean), ("corrected_input_mean", seen)):
        check_like(name, mean, weight.shape[1:], "the weight's inputs")
    return weight.double() @ input_mean.double() - corrected.double() @ seen.double()


@isolated_run
def output_means(model: nn.Module, batches: Iterable, layers: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Return the mean of each output channel of each layer over ``batches``, in float64, in the order of first use.

    Args:
        model: run in eval mode without gradients; not modified.
        batches: as for :func:`mlcomp.layerwise.compress`.
        layers: names of linear or convolutional layers. None: all of them.
    Returns:
        name → (out,), the mean over samples, positions and calls.
    Raises:
        ValueError: unknown name, a layer that is never called, no batches, NaN or inf in an output.
    """
    check_batches(batches)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def hook(name: str) -> Callable:
        def after(module: nn.Module, args: tuple, output: Tensor) -> None:
            check_finite(f"the output of layer {name!r}", output)
            channel = -1 - len(module.kernel_size) if isinstance(module, _ConvNd) else -1
            rows = output.detach().movedim(channel, -1).reshape(-1, output.shape[channel]).double()
            sums[name] = sums.get(name, 0) + rows.sum(0)
            counts[name] += len(rows)

        return after

    with attention_split(model) as split, evaluating(split):
        chosen = find_layers(split, layers)
        counts |= dict.fromkeys(chosen, 0)
        with hooked([layer.register_forward_hook(hook(name)) for name, layer in chosen.items()]):
            for batch in batches:
                call_model(split, batch)
    check_called(counts)
    return {name: total / counts[name] for name, total in sums.items()}


@isolated_run
def correct_biases(
    model: nn.Module, reference: nn.Module, batches: Iterable, layers: Iterable[str] | None = None
) -> nn.Module:
    """Return a copy of ``model`` whose layers have the mean outputs of the same layers of ``reference``.

    Layers are corrected in the order of use, each after those before it, so that it also takes back what their
    rounding did to its input.

    Args:
        model: with quantized weights; not modified.
        reference: the original, with the same module names.
        batches: read once for the reference and once for each layer.
        layers: names; None: all linear and convolutional ones of the reference.
    Returns:
        the copy; a layer without a bias gets one.
    Raises:
        ValueError: as :func:`output_means`, or a layer whose width differs between the two.
    Guarantee: on ``batches``, the mean output of every corrected layer equals the reference's up to rounding, if each
        layer is called once.
    Cost: one pass over the batches for each layer.
    """
    check_batches(batches, again="correct_biases")
    wanted = output_means(reference, batches, layers)
    result = copy_model(model)
    with attention_split(result) as split:
        for name, mean in wanted.items():
            got = output_means(split, batches, [name])[name]
            if got.shape != mean.shape:
                raise ValueError(f"layer {name!r} has {len(got)} outputs, and {len(mean)} in the reference")
            layer = find_layer(split, name)
            shift = (mean - got).to(layer.weight)
            bias = shift if layer.bias is None else layer.bias.detach() + shift
            layer.bias = nn.Parameter(bias, layer.weight.requires_grad)
    return result


@isolated
def relu_mean(mean: Float[Tensor, " n"], std: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    r"""Return $E[\max(u, 0)]$ of $u \sim N(\beta, \gamma^2)$.

    It is $\gamma\,\varphi(\beta/\gamma) + \beta\,\Phi(\beta/\gamma)$ with the Gaussian density φ and its integral Φ.

    Args:
        mean: β, BatchNorm's bias.
        std: |γ|, the magnitude of BatchNorm's weight; 0 gives max(β, 0).
    """
    check_values("mean", mean)
    check_like("std", std, mean.shape, "mean")
    if (std < 0).any():
        raise ValueError("std is a standard deviation and must not be negative: pass |γ|")
    ratio = torch.where(std > 0, mean / std, torch.zeros_like(mean))
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    return torch.where(std > 0, std * density + mean * torch.special.ndtr(ratio), mean.clamp(min=0))


@isolated
def analytic_correction(
    weight: Float[Tensor, "out inp *kernel"],
    quantized: Float[Tensor, "out inp *kernel"],
    input_mean: Float[Tensor, " inp"],
) -> Float[Tensor, " out"]:
    r"""Return what to add to the bias, $(W - \hat W)\,m$, from the mean of each input channel: no data needed.

    A kernel's taps are summed: every position of a channel is taken to have the channel's mean. Padding breaks that
    at the border of an image.
    """
    for name, x in (("weight", weight), ("quantized", quantized), ("input_mean", input_mean)):
        check_values(name, x)
    if (
        weight.shape != quantized.shape
        or weight.ndim < 2
        or input_mean.shape != weight.shape[1:2]
        or not weight.numel()
    ):
        shapes = f"{tuple(weight.shape)}, {tuple(quantized.shape)} and {tuple(input_mean.shape)}"
        raise ValueError(f"weight and quantized must be (out, inp, …) alike and input_mean (inp,), got {shapes}")
    dense, compressed = (w.detach().double().reshape(*w.shape[:2], -1).sum(-1) for w in (weight, quantized))
    return narrowed(bias_correction(dense, compressed, input_mean), weight.dtype)
