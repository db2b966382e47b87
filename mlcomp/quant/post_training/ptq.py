"""Post-training quantization of a whole network: fold, round the weights, correct, calibrate the activations.

Notation: WbAc means b bits for weights and c for the inputs of linear and convolutional layers.
Source: Jacob et al. 2018, arXiv:1712.05877 (folding, grids); Nagel et al. 2019, arXiv:1906.04721, section 4.2 (bias
correction); Hubara et al. 2021, arXiv:2006.10518 (re-estimation of BatchNorm).   Syllabus: 1.08
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mlcomp.checks import check_bits, check_choice
from mlcomp.context import isolated_run
from mlcomp.layerwise.attention import attention_split, split_attention
from mlcomp.layerwise.batchnorm import reestimate_batchnorm
from mlcomp.layerwise.bias_correction import correct_biases
from mlcomp.layerwise.fit import choose_layers, copy_model
from mlcomp.layerwise.inputs import watching
from mlcomp.layerwise.matrix import Layer, find_layer, find_layers, set_weight_matrix, weight_rows
from mlcomp.layerwise.running import call_model, check_batches
from mlcomp.layerwise.weights import replace_module
from mlcomp.metrics.model import snr_db
from mlcomp.modes import evaluating
from mlcomp.quant.post_training.batchnorm_folding import CannotFold, fold_batchnorm
from mlcomp.quant.post_training.calibration import activation_grid, observer
from mlcomp.quant.post_training.fake_quantized import FakeQuantized
from mlcomp.quant.quantized import Quantized
from mlcomp.quant.rtn import rtn


@dataclass(frozen=True)
class PTQRow:
    """One quantized layer.

    Attributes:
        name: as in ``model.named_modules()`` of the model given.
        weight_bits, input_bits: bits of the codes; input_bits is None where the input stays in floating point.
        weight_snr_db: signal-to-noise ratio of the weight that was rounded [dB].
        input_range: (low, high) of the calibrated input; None without one.
        nbytes_before, nbytes: of weight, bias and grids, before and after.
        bits_per_weight: of the weight with its steps and zero codes.
    """

    name: str
    weight_bits: int
    input_bits: int | None
    weight_snr_db: float
    input_range: tuple[float, float] | None
    nbytes_before: int
    nbytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class PTQResult:
    """The quantized copy, in eval mode, and what happened to each layer.

    Attributes:
        model: each quantized layer is a :class:`FakeQuantized`.
        rows: in the order of ``model.named_modules()``.
        nbytes_before, nbytes: of all parameters and buffers of the model: packed weights, grids, biases, and what is
            not quantized (BatchNorm) as it is.
        skipped: layer → reason of those that were left as they are.
    """

    model: nn.Module
    rows: tuple[PTQRow, ...]
    nbytes_before: int
    nbytes: int
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{'layer':<24} {'bits':>6} {'weight dB':>10} {'input range':>18} {'bits/w':>7}"]
        for r in self.rows:
            bits = f"W{r.weight_bits}A{r.input_bits or 32}"
            span = "" if r.input_range is None else f"{r.input_range[0]:.3f} … {r.input_range[1]:.3f}"
            lines.append(f"{r.name:<24} {bits:>6} {r.weight_snr_db:>10.1f} {span:>18} {r.bits_per_weight:>7.2f}")
        lines += [f"{name:<24} left as it is: {reason}" for name, reason in self.skipped.items()]
        return "\n".join([*lines, f"{self.nbytes_before} → {self.nbytes} bytes"])


@isolated_run
def ptq(
    model: nn.Module,
    batches: Iterable,
    *,
    weight_bits: int = 8,
    input_bits: int | None = 8,
    overrides: Mapping[str, tuple[int, int | None]] | None = None,
    layers: Iterable[str] | None = None,
    symmetric: bool = True,
    clip: str = "mse",
    calibration: str = "mse",
    batchnorm: str = "fold",
    bias_correction: bool = False,
) -> PTQResult:
    """Quantize the linear and convolutional layers of ``model``: weights by channel, inputs by tensor.

    In this order: BatchNorm is folded (if asked); weights are rounded to nearest, one grid for each output channel;
    BatchNorm is re-estimated or biases are corrected (if asked); the ranges of the layers' inputs are collected from
    that network, and the inputs get their grids.

    Args:
        model: not modified.
        batches: calibration batches without labels, as for :func:`mlcomp.layerwise.compress`; read several times.
        weight_bits: 1 to 8. input_bits: 1 to 8, or None for inputs in floating point.
        overrides: name → (weight_bits, input_bits) of layers that get others, such as the first and the last.
        layers: names of the layers to quantize. None: all whose weight can be exchanged; a tied one (an output head
            that is the embedding, too) or a packed one is left as it is, and the result says so; a computed one is an
            error.
        symmetric: the weights' zero code is fixed; inputs always have a zero code of their own.
        clip: of the weights' grids, "minmax" or "mse".
        calibration: rule of the inputs' ranges, see :func:`mlcomp.quant.observer`.
        batchnorm: "fold"; "keep" leaves it as it is in floating point; "reestimate" keeps it and re-estimates its
            statistics with the rounded weights.
        bias_correction: correct each layer's mean output, see :func:`mlcomp.layerwise.correct_biases`. Re-estimation
            does that already, so the two exclude each other.
    Returns:
        the quantized copy and the report.
    Raises:
        ValueError: bits outside 1..8, unknown option or layer, no layer, a named layer whose weight cannot be
            exchanged, empty batches, a layer that is never called, BatchNorm that cannot be folded.
    Deviations: an ``nn.MultiheadAttention`` becomes a :class:`mlcomp.layerwise.attention.SplitAttention`, whose
        projections are layers that are called.
    Cost: two or three passes over the batches, and one more for each layer with ``bias_correction``.
    """
    bits, skipped = layer_bits(model, weight_bits, input_bits, overrides, layers)
    check_choice("batchnorm", batchnorm, ("fold", "keep", "reestimate"))
    if bias_correction and batchnorm == "reestimate":
        raise ValueError("re-estimating BatchNorm corrects the means already: switch bias_correction off")
    check_batches(batches, again="ptq")
    fold = batchnorm == "fold" and any(isinstance(module, _BatchNorm) for module in model.modules())
    float_model = split_attention(_folded(model) if fold else copy_model(model).eval())
    result = copy_model(float_model)
    weights = {}
    for name, (bits_w, _) in bits.items():
        layer = find_layer(result, name)
        weights[name] = rtn(weight_rows(layer).detach(), bits=bits_w, symmetric=symmetric, clip=clip)
        set_weight_matrix(layer, weights[name].dequantize())
    if batchnorm == "reestimate":
        result = reestimate_batchnorm(result, batches)
    if bias_correction:
        result = correct_biases(result, float_model, batches, bits)
    ranges = input_ranges(result, batches, {n: b for n, (_, b) in bits.items() if b is not None}, calibration)
    rows = []
    for name, (_, bits_x) in bits.items():
        grid = None if bits_x is None else activation_grid(*ranges[name], bits=bits_x)
        quantized = FakeQuantized(result.get_submodule(name), weights[name], grid)
        rows.append(ptq_row(name, find_layer(float_model, name), quantized, weights[name], ranges.get(name)))
        result = replace_module(result, name, quantized)
    return PTQResult(result, tuple(rows), network_nbytes(model), network_nbytes(result), skipped)


def _folded(model: nn.Module) -> nn.Module:
    try:
        return fold_batchnorm(model)
    except CannotFold as problem:
        raise ValueError(
            f'{problem.reason}: batchnorm="keep" leaves BatchNorm as it is, batchnorm="reestimate" also estimates '
            "its statistics anew"
        ) from problem


@isolated_run
def input_ranges(
    model: nn.Module, batches: Iterable, bits: Mapping[str, int], rule: str
) -> dict[str, tuple[float, float]]:
    """Return (low, high) of the input of each layer in ``bits`` (name → bits of its grid), in one pass.

    Raises:
        ValueError: unknown rule, empty batches, a layer that is never called, NaN or inf.
    """
    watches = {name: observer(rule, bits=b) for name, b in bits.items()}
    if not watches:
        return {}
    with attention_split(model) as split, evaluating(split):
        with watching(split, find_layers(split, watches), lambda name, x: watches[name].add(x)):
            for batch in batches:
                call_model(split, batch)
    silent = [name for name, watch in watches.items() if watch.low > watch.high]
    if silent:
        raise ValueError(f"layer(s) {silent} saw no sample: batches is empty, or the model never calls them")
    return {name: watch.range() for name, watch in watches.items()}


def layer_bits(
    model: nn.Module,
    weight_bits: int,
    input_bits: int | None,
    overrides: Mapping | None,
    layers: Iterable[str] | None,
) -> tuple[dict[str, tuple[int, int | None]], dict[str, str]]:
    """Return name → (weight bits, input bits) of the layers to quantize, checked, and name → reason of those left."""
    overrides = dict(overrides or {})
    if overrides:
        choose_layers(model, overrides)  # raises for a name that is no layer, or one that cannot be exchanged
    chosen, skipped = choose_layers(model, layers)
    computed = [name for name in skipped if "weight" not in find_layer(model, name)._parameters]
    if computed:  # the caller can mend that, and would not expect them left out
        raise ValueError("; ".join(f"layer {name!r}: {skipped[name]}" for name in computed))
    plan = {name: overrides.get(name, (weight_bits, input_bits)) for name in chosen}
    for pair in plan.values():
        check_bits(pair[0])
        if pair[1] is not None:
            check_bits(pair[1])
    return plan, skipped


def ptq_row(
    name: str, original: Layer, layer: FakeQuantized, weight: Quantized, span: tuple[float, float] | None
) -> PTQRow:
    """Return the report of one layer; ``original`` is the floating-point layer, ``span`` the range of its input."""
    before = sum(p.nbytes for p in original.parameters())
    noise = snr_db(weight_rows(original).detach(), weight.dequantize()) if original.weight.any() else torch.inf
    return PTQRow(name, weight.bits, layer.input_bits, noise, span, before, layer.nbytes, weight.bits_per_weight)


def network_nbytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, quantized layers as packed, shared tensors counted once."""
    layers = [m for m in model.modules() if isinstance(m, FakeQuantized)]
    packed = {id(t) for m in layers for t in itertools.chain(m.parameters(), m.buffers())}
    rest: dict[int, Tensor] = {id(t): t for t in itertools.chain(model.parameters(), model.buffers())}
    return sum(m.nbytes for m in layers) + sum(t.nbytes for key, t in rest.items() if key not in packed)
