"""Every public function against every kind of odd tensor: refused with a clear error, or a finite result.

The functions are found by themselves, with the tensors that they take; one without a good call here makes the first
test fail. Functions of a network are left out: their tensors are whatever the network takes.
"""

import copy
import dataclasses
import functools
import inspect
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mlcomp
from mlcomp.formats import CSR, AdditiveCodes, TwoFour, absmax_int8, pack_signs
from mlcomp.obs import block_fisher_inverse, exact_obs_trace
from mlcomp.prune import magnitude
from mlcomp.quant import double_quantize, pack_nf4, pack_w4, rtn
from tests.contract.public import public_functions
from tests.contract.test_checks import INP, OUT, changed, drawn, layer

ROOT = str(Path(mlcomp.__file__).parent)
# What they return is learned with, so it keeps its gradient.
LEARNED = ("lsq_quantize", "straight_through", "ste_round", "pseudo_noise", "squared_error", "output_loss")
LEARNED = (*LEARNED, "layer_hessian", "hadamard_transform", "random_shift", "additive_matvec", "w4a16_matmul")
LEARNED = (*LEARNED, "soft_targets", "soft_target_loss", "distillation_loss", "hint_loss")
LEARNED = (*LEARNED, "distilbert_loss", "onebit_loss", "minillm_loss", "response_loss")
LEARNED = (*LEARNED, "ensemble_log_probabilities")
LEARNED = (
    *LEARNED,
    "csr_matmul",
    "two_four_matmul",
    "onebit_matmul",
    "nf4_matmul",
    "bias_correction",
    "relu_mean",
    "analytic_correction",
)
LEARNED = (*LEARNED, "gumbel_keep", "ratio_loss", "hard_concrete", "probability_above", "expected_gate")
LEARNED = (*LEARNED, "binarize", "nearest_power", "squared_hinge")
# Parts of methods that have checked their arguments, and loops to read: they check little themselves.
PARTS = ("output_loss", "output_error", "inverse_factor", "straight_through", "literal_exact_obs", "literal_obq")
PARTS = (*PARTS, "masked_attention")
# Kernels on much data: what is not finite passes through, as torch has it.
UNCHECKED = ("mlcomp.kernels.",)


def nearest_class(inputs: Tensor, labels: Tensor) -> Callable:
    """Fit the first sample of each class; the nearer, the likelier."""
    return lambda x: (-torch.cdist(x, inputs[:OUT])).softmax(1)


@functools.cache
def good() -> dict[str, object]:
    """Return a good value of each argument, by name or, where names mean several things, by function and name."""
    weight, vectors, points = layer()["weight"], drawn(6, 8), drawn(12, 4)
    coded = AdditiveCodes(torch.ones(OUT, 4, 2, dtype=torch.uint8), drawn(2, 256, 4), torch.ones(OUT))
    positive = drawn(OUT, 5).abs()
    square = torch.eye(INP) + 0.01
    return {
        **layer(),
        "x": drawn(6, INP),
        "e8_nearest.x": vectors,
        "e8p_encode.x": vectors,
        "additive_matvec.x": drawn(INP),
        "additive_matvec.weight": coded,
        "w4a16_matmul.weight": pack_w4(rtn(weight, bits=4)),
        "nf4_matmul.weight": pack_nf4(double_quantize(weight, block_size=4)),
        "onebit_matmul.signs": pack_signs(weight),
        "onebit_matmul.rows": drawn(OUT),
        "onebit_matmul.columns": drawn(INP),
        "csr_matmul.weight": CSR.from_dense(weight),
        "two_four_matmul.weight": TwoFour.from_dense(magnitude(weight, pattern=(2, 4))),
        "codes": torch.arange(6),
        "packed": torch.arange(3, dtype=torch.uint8),
        "unpack.shape": 8,
        "unpack_planes.shape": (8,),
        "source": drawn(40),
        "tensor": drawn(40),
        "corrected_input_mean": drawn(INP),
        "mean": drawn(5),
        "std": drawn(5).abs(),
        "quantized": weight.round(),
        "delta": weight,
        "output": weight,
        "matrix": weight,
        "pseudo_noise.bits": torch.full((8,), 4.0),
        "quantize_mixed.bits": torch.full((8,), 4, dtype=torch.uint8),
        "v": weight,
        "step": torch.tensor(0.5),
        "value": weight.round(),
        "straight_through.x": weight,
        "lsq_quantize.low": -4,
        "lsq_quantize.high": 3,
        "lsq_initial_step.high": 3,
        "squared_error.target": weight.round(),
        "range_grid.low": -positive,
        "range_grid.high": positive,
        "ldlq_round.low": 0,
        "ldlq_round.high": 7,
        "points": points,
        "kmeans.start": points[:3],
        "kmeans.entries": 3,
        "kmeans.generator": None,
        "kmeans_assign.codebook": points[:3],
        "granularity": "filter",
        "weights": weight,  # in a list, see call()
        "scores": weight,
        "count": 3,
        "bias": drawn(OUT),
        "vectors": vectors,
        "damping": 0.1,
        "losses": positive,
        "total": 4,
        "compressed": weight.round(),
        "l_obs_error_bound.layer_errors": [1.0],
        "inverse": square,
        "k": 3,
        "quant": torch.round,
        "trace": exact_obs_trace(weight, layer()["hessian"]),
        "counts": torch.full((2, OUT), 3),
        "total_bits": torch.tensor([1e3, 1e4, 1e5, 1e6]),
        "loss": torch.tensor([3.0, 2.0, 1.5, 1.2]),
        "curves": {4: ([100, 10_000_000], [3.0, 1.0])},
        "reference": weight,
        "approximation": weight.round(decimals=1),
        "logits": weight.round(decimals=1),
        "embeddings": weight.round(decimals=1),
        "images": drawn(2, 1, 4, 4),
        "confidence": drawn(12).sigmoid(),
        "reliability.correct": drawn(12) > 0,
        "correct": drawn(OUT) > 0,
        "groups": torch.arange(OUT) % 3,
        "expected_calibration_error.logits": weight,
        "fit_temperature.logits": 4 * torch.eye(OUT) + 0.1 * weight[:, :OUT],
        "fit_temperature.labels": torch.tensor([0, 1, 2, 0]),
        "values": drawn(12),
        "ink.images": drawn(2, 1, 4, 4).abs(),
        "slant.images": drawn(2, 1, 4, 4).abs(),
        "tokens": torch.arange(12).view(3, 4),
        "allowed": torch.arange(12) > 3,
        "random_tokens.share": 0.5,
        "add_noise.std": 0.1,
        "majority_vote.answers": torch.tensor([[1, 2], [1, 0], [3, 0]]),
        "majority_vote.seed": 0,
        "voting_accuracy.probabilities": torch.tensor([0.5, 0.3, 0.2]),
        "voting_accuracy.samples": 5,
        "group_products.seed": 0,
        "group_products.without": torch.tensor([[1, 2, 3, 4]]),
        "int8_matmul.x": absmax_int8(weight, dim=-1),
        # a root with two leaves
        "left": torch.tensor([1, -1, -1]),
        "right": torch.tensor([2, -1, -1]),
        "feature": torch.tensor([0, -2, -2]),
        "drawn_submodels.present": drawn(20) > 0,
        "drawn_submodels.count": 5,
        "drawn_submodels.share": 0.3,
        "drawn_submodels.seed": 0,
        "module_scores.losses": drawn(OUT),
        "bonsai.utility": lambda removed: -float(removed.sum()),
        "bonsai.sizes": drawn(6).abs() + 1,
        "tree_leaves.threshold": torch.tensor([0.1, -2.0, -2.0]),
        "splits": torch.tensor([True, False, False]),
        "impurity": torch.tensor([0.5, 0.1, 0.0]),
        "samples": torch.tensor([4.0, 2.0, 2.0]),
        "errors": positive,
        "features": points,
        "lasso.targets": drawn(12),
        "lasso_path.targets": drawn(12),
        "penalty": 0.5,
        "hidden": weight,  # in a list, see call()
        "squared_hinge.labels": torch.tensor([0, 2, 1, 5]),
        "fold_thresholds.largest": 9,
        "rank": 2,
        "nonzeros": 5,
        "ebd_saliency.weights": drawn(6),
        "gradient": drawn(6),
        "curvature": drawn(6).abs() + 0.1,
        "obert_saliency.weights": drawn(8),
        "obert_saliency.group_size": 2,
        "obert_saliency.inverse": block_fisher_inverse(vectors, damping=0.1, block_size=4),
        **{f"{name}.weights": drawn(8) for name in ("woodfisher", "obert", "mfac", "joint_step")},
        "gradients": vectors,
        "student": weight,
        "teacher": weight.round(),
        "labels": torch.arange(OUT),
        "minillm_loss.student": drawn(2, 3, 5),
        "minillm_loss.teacher": drawn(2, 3, 5).round(),
        "minillm_loss.outputs": torch.tensor([[1, 0, 2], [3, 4, 1]]),
        "minillm_loss.end": 0,
        "fit_gaussian.weights": torch.tensor([0.7, 0.3]),
        "gaussian_divergence.weights": torch.tensor([0.7, 0.3]),
        "gaussian_divergence.mean": drawn(3),
        "gaussian_divergence.std": drawn(3).abs() + 0.5,
        "means": torch.tensor([-2.0, 3.0]),
        "stds": torch.tensor([0.6, 1.0]),
        "direction": "reverse",
        "temperature": 2.0,
        "alpha": 0.5,
        "projected": weight,
        "hint": drawn(12, 5),
        "hint_loss.hint": weight.round(),
        "onebit_loss.student_hidden": drawn(OUT, 5),  # in a list, as the teacher's
        "onebit_loss.teacher_hidden": drawn(OUT, 5).round(),
        "student_hidden": drawn(OUT, 5),
        "teacher_hidden": drawn(OUT, 5).round(),
        "joint_step.removed": drawn(8) > 0,
        "sparse_gated_mlp.x": vectors,
        "gate": drawn(5, 8),
        "up": drawn(5, 8),
        "down": drawn(4, 5),
        "sparse_gated_mlp.threshold": 0.0,  # every weight is read
        "probabilities": vectors.softmax(1),
        "best": 2,
        "fit": nearest_class,
        "fits": (nearest_class, nearest_class),
        "views": (weight, weight),
        "self_training.inputs": weight,
        "unlabelled": drawn(6, INP),
        "co_training.unlabelled": (drawn(6, INP), drawn(6, INP)),
        "rounds": 2,
        "best_per_class": 1,
        "gumbel_keep.logits": drawn(6, 2),
        "log_alpha": weight,
        "decisions": torch.rand(OUT, 5, generator=torch.Generator().manual_seed(0)).round(),  # in a list
        "ratios": [0.5],
    }


# In a list of tensors every tensor is odd in turn.
LISTS = ("layer_normalized", "global_magnitude", "random_pruning", "erdos_renyi")
IN_A_LIST = (
    *(f"{name}.weights" for name in LISTS),
    "l_obs_error_bound.compressed",
    "ratio_loss.decisions",
    "outlier_features.hidden",
    "ensemble_log_probabilities.logits",
    "onebit_loss.student_hidden",
    "onebit_loss.teacher_hidden",
)
# Options that a good call needs beside what has no default, and those that exclude each other.
OPTIONS = ("sparsity", "best", "generator", "code_bits", "bias", "corrected_input_mean", "kmeans.start")
OPTIONS = (*OPTIONS, "group_products.without")


def is_tensor(parameter: inspect.Parameter) -> bool:
    text = f"{parameter.annotation} {getattr(parameter.annotation, '__name__', '')}"
    by_name = "Callable" in text or ("Mapping" in text and "Sequence" not in text)
    return hasattr(parameter.annotation, "dim_str") or ("Tensor" in text and not by_name)


def found() -> dict[str, Callable]:
    """Return every public function with a tensor among its arguments and no network."""
    functions = {}
    for home, name, function in public_functions():
        parameters = inspect.signature(function).parameters.values()
        network = any(
            s in str(p.annotation)
            for p in parameters
            for s in ("Module", "FlatNetwork", "nn.modules", "FakeQ", "ViT")
        )
        if any(map(is_tensor, parameters)) and not network and name not in PARTS:
            functions[f"{home}.{name}"] = function
    return functions


FUNCTIONS = found()


def arguments(name: str) -> dict:
    """Return a good call of a function."""
    known, short = good(), name.rsplit(".", 1)[1]
    call = {}
    for n, p in inspect.signature(FUNCTIONS[name]).parameters.items():
        own = f"{short}.{n}"
        if p.default is p.empty or n in OPTIONS or own in OPTIONS:
            call[n] = known[own] if own in known else known[n]
    return copy.deepcopy(call)


def spoiled(x: Tensor, value: float) -> Tensor:
    if not x.is_floating_point():
        raise TypeError("whole numbers are finite")
    return changed(x, value) if x.numel() > 1 else x * value


# Refused whatever the function does with numbers.
REFUSED: dict[str, Callable[[Tensor], object]] = {
    "list": lambda x: x.tolist(),
    "NumPy array": lambda x: x.numpy(),
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "compressed sparse": lambda x: x.reshape(-1, x.shape[-1] if x.ndim else 1).to_sparse_csr(),
    "complex": lambda x: x.to(torch.complex64),
    "nested": lambda x: torch.nested.nested_tensor([x, x]),
    "quantized": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
}
NOT_FINITE: dict[str, Callable[[Tensor], object]] = {
    "NaN": lambda x: spoiled(x, float("nan")),
    "infinite": lambda x: spoiled(x, float("-inf")),
}
# Refused or computed with.
ODD: dict[str, Callable[[Tensor], object]] = {
    "requires grad": lambda x: x.clone().requires_grad_(),
    "parameter": lambda x: torch.nn.Parameter(x.clone()),
    "not contiguous": lambda x: x.repeat_interleave(2, -1)[..., ::2] if x.ndim else x,
    "expanded": lambda x: x[:1].expand(x.shape) if x.ndim else x,
    "one number": lambda x: x.flatten()[0],
    "empty": lambda x: x[:0] if x.ndim else x.reshape(1)[:0],
    "one dimension more": lambda x: x[None],
    "zeros": lambda x: -torch.zeros_like(x),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "float16": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "largest float16": lambda x: (x.sign() * 65504).half(),
    "float64": lambda x: x.double(),
    "int8": lambda x: (x * 10).to(torch.int8),
    "bool": lambda x: x > 0,
    "1e38": lambda x: x.sign() * 1e38,
    "largest float32": lambda x: x.sign() * 3.4e38,
    "1e300": lambda x: x.sign().double() * 1e300,
    "1e59 in float64": lambda x: x.sign().double() * 1e59,
    "1e-310": lambda x: x.double() * 1e-310,
    "denormal": lambda x: x * 1e-41,
    "30 digits apart": lambda x: x * torch.logspace(-15, 14, max(1, x.numel())).reshape(x.shape),
    "indefinite": lambda x: (x + x.mT) / 2 if x.ndim == 2 and len(x) == x.shape[1] else -x,
}


def tensors(x: object, depth: int = 0) -> Iterator[Tensor]:
    """Yield all tensors and floats within a result, and what it decodes to."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, float):
        yield torch.tensor(x, dtype=torch.float64)
    elif depth < 4:
        parts = list(vars(x).values()) if dataclasses.is_dataclass(x) else []
        parts += list(x.values()) if isinstance(x, dict) else list(x) if isinstance(x, list | tuple) else []
        if hasattr(x, "dequantize"):
            parts.append(x.dequantize())
        for part in parts:
            yield from tensors(part, depth + 1)


def bits(x: object) -> Tensor | None:
    """Return the bytes of an ordinary tensor."""
    plain = isinstance(x, Tensor) and x.layout == torch.strided and not x.is_meta and not x.is_nested
    if not plain or x.is_quantized or not x.numel():
        return None
    return x.detach().contiguous().clone().reshape(-1).view(torch.uint8)


def trial(name: str, argument: str, kind: str, make: Callable) -> str | None:
    """Call a function with one odd argument; return what is wrong with what happens, None if nothing is."""
    call, short = arguments(name), name.rsplit(".", 1)[1]
    try:
        odd = make(call[argument])
    except (RuntimeError, NotImplementedError, TypeError):
        return None  # there is no such tensor: of whole numbers, of this shape
    call[argument] = odd
    before = {n: bits(v) for n, v in call.items()}
    given = f"{name}({argument}={kind})"
    passed = {n: [v] if f"{short}.{n}" in IN_A_LIST else v for n, v in call.items()}
    try:
        result = list(tensors(FUNCTIONS[name](**passed)))
    except (ValueError, TypeError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = last.filename.startswith(ROOT) and "raise" in (last.line or "")
        wrong = None if said else f"{type(error).__name__} of {last.filename}:{last.lineno}: {error}"
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        documented = type(error) is RuntimeError and short in MAY_FAIL and "raise" in (last.line or "")
        wrong = None if documented else f"{type(error).__name__} of {last.filename}:{last.lineno}: {error}"
    else:
        wrong = None
        if kind in REFUSED or (kind in NOT_FINITE and not name.startswith(UNCHECKED)):
            wrong = None if short in ACCEPTED.get(kind, ()) else "accepted"
        checked = [x for x in result if x.is_floating_point() and not name.startswith(UNCHECKED)]
        unbounded = torch.isnan if short in INFINITE else lambda x: ~torch.isfinite(x)
        if any(bool(unbounded(x).any()) for x in checked if x.element_size() > 1):
            wrong = "a result that is not finite"
        if short not in LEARNED and any(x.requires_grad for x in result):
            wrong = "a result with a gradient"
    for n, value in call.items():
        now = bits(value)
        if (now is None) != (before[n] is None) or (now is not None and not torch.equal(now, before[n])):
            wrong = f"{n} changed"
    if isinstance(odd, Tensor) and odd.is_leaf and odd.grad is not None:
        wrong = "a gradient written"
    return f"{given}: {wrong}" if wrong else None


# Infinite scores have a place in an order, and what is counted is not computed with.
ACCEPTED: dict[str, tuple[str, ...]] = {
    "NaN": ("stored_nbytes",),
    "infinite": ("stored_nbytes", "smallest_mask", "nm_mask"),
}
# No bound is −∞, and no noise an infinite ratio.
INFINITE = ("certify", "snr_db")
# They say so where a search or a solver fails.
MAY_FAIL = ("quantization_bound", "best_pruned", "best_quantized")


def cells(name: str) -> list[tuple[str, str, Callable]]:
    """Return each argument of a function with each kind of odd tensor that it may be."""
    # The interpreter makes an error of an overflow in a kernel.
    kinds = REFUSED if name.startswith(UNCHECKED) else {**REFUSED, **NOT_FINITE, **ODD}
    return [
        (a, kind, make) for a, v in arguments(name).items() if isinstance(v, Tensor) for kind, make in kinds.items()
    ]


@pytest.mark.slow
def test_every_function_has_a_good_call(as_user):
    assert len(FUNCTIONS) > 90
    for name in FUNCTIONS:
        call, short = arguments(name), name.rsplit(".", 1)[1]
        if name.startswith(UNCHECKED):
            continue  # their own tests call them
        FUNCTIONS[name](**{n: [v] if f"{short}.{n}" in IN_A_LIST else v for n, v in call.items()})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_some_odd_tensors(name, as_user):
    # Others for each function, the same ones each time: together they are all kinds.
    first = zlib.crc32(name.encode())
    mine = cells(name)
    wrong = trial(name, *mine[first % len(mine)])
    assert not wrong, wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_all_odd_tensors(name, as_user):
    wrong = [trial(name, *cell) for cell in cells(name)]
    assert not any(wrong), "\n".join(filter(None, wrong))
