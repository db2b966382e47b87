r"""AQLM's block fine-tuning: codebooks, scales, norms and biases of a block against the dense block's output.

Notation: $L = \lVert \mathrm{block}(X) - Y \rVert^2$ over the continuous parameters θ; codes stay.
Source: Egiazarian et al. 2024, arXiv:2401.06118, Algorithm 1, lines 16–20.   Syllabus: 1.13
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlcomp.checks import check_dtype
from mlcomp.context import isolated_run
from mlcomp.formats.additive_codebook import AdditiveCodes
from mlcomp.layerwise.inputs import first_calls
from mlcomp.layerwise.running import check_batches
from mlcomp.modes import evaluating
from mlcomp.quant.additive.additive_student import AdditiveBlock, AdditiveStudent
from mlcomp.quant.additive.aqlm import DTYPES
from mlcomp.quant.additive.continuous_tuning import AdamSteps, check_rounds, tune_in_rounds


@isolated_run
def tune_block(
    block: nn.Module,
    inputs: Tensor,
    layers: Mapping[str, AdditiveCodes],
    *,
    targets: Tensor | None = None,
    tau: float = 0.01,
    max_rounds: int = 20,
    steps: int = 20,
    learning_rate: float = 3e-3,
    batch_size: int = 8,
    train_rest: bool = True,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> AdditiveBlock:
    """Train the continuous parameters of a block whose layers have additive codes.

    Args:
        block: a module from one tensor to one tensor (see :func:`capture_block`); not modified.
        inputs: (samples, …) what the block is fed, from the part of the network that is compressed already.
        layers: the codes of its Linear or Conv2d layers, by name.
        targets: (samples, …) the outputs to reach; None: those of ``block`` itself on ``inputs``.
        tau: stop after a round of ``steps`` Adam steps that lowers the loss by less than this share.
        max_rounds: rounds at the most.
        learning_rate: of Adam, times the root mean square of each tensor.
        batch_size, seed: of the batches, drawn in random order.
        train_rest: tune the parameters that have no codes, too.
        dtype: of the stored codebooks and scales.
    Returns:
        The tuned copy after its best round, the layers with the same codes, and the loss after each round.
    Raises:
        ValueError: malformed inputs or targets, a layer that is not there or does not fit its codes, bad options.
    Guarantee: the codes are those given; the loss on ``inputs`` does not rise (before the rounding to ``dtype``).
    """
    check_rounds(rounds=max_rounds, steps=steps, learning_rate=learning_rate, tolerance=tau)
    check_dtype("dtype", dtype, DTYPES)
    student = AdditiveStudent(
        block, inputs, layers, targets=targets, loss=None, batch_size=batch_size, train_rest=train_rest, seed=seed
    )
    adam = AdamSteps(student, steps=steps, learning_rate=learning_rate)
    history = tune_in_rounds(student, [adam], rounds=max_rounds, tolerance=tau)
    return student.result(dtype, history)


class BlockCall(nn.Module):
    """A block as a function of its first input; everything else is as it was when the block was captured."""

    def __init__(self, block: nn.Module, args: tuple, kwargs: Mapping[str, Any]):
        super().__init__()
        self.block, self.args, self.kwargs = block, args, dict(kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, the first one where it returns several."""
        output = self.block(x, *self.args, **self.kwargs)
        return output[0] if isinstance(output, tuple) else output


@dataclass(frozen=True)
class CapturedBlock:
    """A block of a model as a function of one tensor, and the inputs that it was called with."""

    block: BlockCall
    inputs: Tensor


@isolated_run
def capture_block(model: nn.Module, batches: Iterable, name: str) -> CapturedBlock:
    """Run ``model`` on ``batches`` and record what its part ``name`` is called with.

    Positions, masks and the like must be the same in all batches, since only the first batch's are kept: token
    sequences of one length, without padding.

    Args:
        model: run in evaluation mode without gradients; not modified.
        batches: calibration batches, as for :func:`mlcomp.layerwise.compress`.
        name: of a module that is called once in a forward pass.
    Returns:
        The block itself (not a copy) wrapped in a ``BlockCall``, and its inputs (samples, …).
    Raises:
        ValueError: unknown name, a block never called, batches whose other arguments differ.
    """
    check_batches(batches)
    modules = dict(model.named_modules())
    if name not in modules:
        raise ValueError(f"the model has no part {name!r}")
    inputs: list[Tensor] = []
    others: list[tuple[tuple, dict]] = []

    with evaluating(model):
        for args, kwargs in first_calls(model, name, batches):
            x, *rest = args if args else (kwargs.pop("hidden_states"),)
            inputs.append(x.detach().clone())
            others.append((tuple(rest), kwargs))
            if not _broadcasts_like(others[0], others[-1]):
                raise ValueError(
                    f"{name!r} is called with other positions or masks in batch {len(inputs) - 1} than in "
                    "the first: use sequences of one length, without padding"
                )
    if not inputs:
        raise ValueError(f"{name!r} was never called: batches is empty, or the model does not use it")
    args, kwargs = _for_any_batch(others[0])
    # A cache of keys and values would grow from call to call.
    kwargs |= {key: None for key in kwargs if key.startswith(("past_key_value", "layer_past"))}
    kwargs |= {key: False for key in kwargs if key == "use_cache"}
    return CapturedBlock(BlockCall(modules[name], args, kwargs), torch.cat(inputs))


def _first_row(value: Any) -> Any:
    """Return tensors that repeat along the batch cut to their first row, so that they broadcast to any batch."""
    if isinstance(value, Tensor):
        return value[:1] if value.ndim > 1 else value
    if isinstance(value, tuple):
        return tuple(_first_row(v) for v in value)
    return value


def _for_any_batch(call: tuple[tuple, dict]) -> tuple[tuple, dict]:
    args, kwargs = call
    return _first_row(args), {key: _first_row(value) for key, value in kwargs.items()}


def _same(a: Any, b: Any) -> bool:
    """Return whether two arguments are the same for every row of their batches."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.ndim < 2:
            return a.shape == b.shape and bool(torch.equal(a, b))
        return a.shape[1:] == b.shape[1:] and bool((b == a[:1]).all()) and bool((a == a[:1]).all())
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b)  # caches, flags: what is not a tensor does not depend on the batch


def _broadcasts_like(a: tuple[tuple, dict], b: tuple[tuple, dict]) -> bool:
    return _same(a[0], b[0]) and a[1].keys() == b[1].keys() and all(_same(a[1][k], b[1][k]) for k in a[1])
