"""The one training loop of the course: mini-batches, any optimizer, warm-up and cosine decay, checkpoints.

Notation: an epoch is one pass over the inputs in a fresh random order.
Source: Loshchilov & Hutter 2019, arXiv:1711.05101 (AdamW); the same 2017, arXiv:1608.03983, eq. (5)
(cosine decay, one cycle without restarts).
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from tqdm.auto import tqdm

from mlcomp.checks import check_finite, check_positive, check_whole
from mlcomp.context import isolated_run
from mlcomp.modes import home, keeping_modes
from mlcomp.resume import hash_model, hash_values, replacing


@dataclass(frozen=True)
class History:
    """Mean training loss of each epoch, from the first."""

    loss: tuple[float, ...]


@isolated_run
def train(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    lr: float,
    batch_size: int = 64,
    seed: int = 0,
    weight_decay: float = 0.0,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    optimizer: Callable[..., Optimizer] = torch.optim.AdamW,
    before_step: Callable[[int, Optimizer], bool | None] | None = None,
    after_step: Callable[[int], None] | None = None,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
) -> History:
    """Train ``model`` in place and return the history; every module's mode is kept.

    Args:
        model: its parameters that require a gradient are trained, where they lie (any device).
        inputs: (n, …), moved to the model's device batch by batch.
        labels: (n, …), whatever ``loss`` takes.
        epochs: passes over the inputs.
        lr: peak learning rate, reached linearly over the first tenth of the steps; then it falls to zero as a cosine.
        batch_size: the last batch of an epoch may be smaller, unless it would hold one sample (BatchNorm needs two).
        seed: of the order, the augmentation and layers such as dropout; the global random state is left alone.
        weight_decay: decoupled, as in AdamW (added to the gradient by an optimizer that does so).
        augment: ``augment(batch, generator)`` returns the batch to train on.
        loss: ``loss(model(batch), labels)``, a scalar mean.
        optimizer: ``optimizer(parameters, lr=…, weight_decay=…)``; others than AdamW, or other options of it, by
            ``functools.partial(torch.optim.SGD, momentum=0.9)`` and its like.
        before_step: ``before_step(n, optimizer)`` is called before the n-th step of the optimizer, when the gradients
            are there; it may change them (a penalty's gradient, say), the model and the optimizer's state in place.
            If it returns False, the weights make no step; the learning rate goes on.
        after_step: ``after_step(n)`` is called after the n-th optimizer step, n = 1, 2, … through all epochs; it may
            change the model in place (keep masked weights at zero, say). What either remembers between calls is not
            in the checkpoint unless it is a parameter or buffer of the model, or the optimizer's state.
        checkpoint: a file written after each epoch; if it exists, training goes on from it. It belongs to this
            start of ``model``, these data, options and functions, and to no others (see ``mlcomp.fingerprint``).
        progress: show a tqdm bar.
    Returns:
        the mean loss of each epoch, those before a resumption included.
    Raises:
        ValueError: bad options, NaN in the inputs, a checkpoint that is damaged or of another run (another start,
            other data, options or functions: the message names them), or a loss that is NaN or infinite.
    Guarantee: the same arguments give the same weights, bit for bit, on the same machine and number of threads,
        whether or not the run was interrupted and resumed.
    """
    _check(model, inputs, labels, epochs=epochs, lr=lr)
    trained = [p for p in model.parameters() if p.requires_grad]
    starts = batch_starts(len(inputs), batch_size)
    state = _State(model, optimizer(trained, lr=lr, weight_decay=weight_decay), [])
    for group in state.optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    calls = _Calls(learning_rate_share(epochs * len(starts)), augment, loss, before_step, after_step)
    run: dict[str, object] = {}
    if checkpoint is not None:
        run = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "seed": seed, "weight_decay": weight_decay}
        run |= {"model": hash_model(model), "trained": [n for n, p in model.named_parameters() if p.requires_grad]}
        parts: dict[str, object] = {
            "inputs": inputs,
            "labels": labels,
            "augment": augment,
            "loss": loss,
            "optimizer": optimizer,
        }
        parts |= {"before_step": before_step, "after_step": after_step}
        run |= {name: hash_values(part) for name, part in parts.items()}
        state.load(Path(checkpoint), run)
    with keeping_modes(model):
        model.train()
        bar = tqdm(range(len(state.loss), epochs), desc="epochs", disable=not progress)
        for epoch in bar:
            state.loss.append(_epoch(state, inputs, labels, starts, batch_size, (seed, epoch), calls))
            bar.set_postfix(loss=f"{state.loss[-1]:.4f}")
            if checkpoint is not None:
                state.save(Path(checkpoint), run)
    return History(tuple(state.loss))


def batch_starts(samples: int, batch_size: int) -> list[int]:
    """Return where the batches of an epoch start: as many as it has steps. A last batch of one sample is left out."""
    check_whole("batch_size", batch_size, 1)
    return [i for i in range(0, samples, batch_size) if i == 0 or samples - i > 1]


def random_batches(samples: int, batch_size: int, *, seed: int) -> Iterator[Tensor]:
    """Yield the indices of random batches for ever: epochs in random order, without a short last batch.

    For tuning by a number of steps; :func:`train` counts epochs and sees every sample.

    Args:
        samples: how many there are, at least 1.
        batch_size: at least 1; more than ``samples`` means all of them.
        seed: the same seed gives the same batches; the global generator is left alone.
    """
    check_whole("samples", samples, 1)
    check_whole("batch_size", batch_size, 1)
    generator = torch.Generator().manual_seed(seed)
    size = min(batch_size, samples)
    while True:
        for chosen in torch.randperm(samples, generator=generator, device="cpu").split(size):
            if len(chosen) == size:
                yield chosen


def learning_rate_share(steps: int) -> Callable[[int], float]:
    """Return the share of the peak learning rate at step 0, 1, …, ``steps`` − 1: never zero, 1 when warm-up ends."""
    warm = max(1, round(0.1 * steps))

    def share(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step + 1 - warm) / (steps + 1 - warm)))

    return share


def _epoch(
    state: "_State",
    inputs: Tensor,
    labels: Tensor,
    starts: list[int],
    batch_size: int,
    seeds: tuple[int, int],
    calls: "_Calls",
) -> float:
    """Train one epoch; all its randomness comes from (seed, epoch), so that a resumed run repeats it."""
    generator = torch.Generator().manual_seed(seeds[0] * 1_000_003 + seeds[1])
    order = torch.randperm(len(inputs), generator=generator, device="cpu")
    device = home(state.model)
    total, seen = 0.0, 0
    rng = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with rng, torch.enable_grad():  # whatever the caller has set
        torch.manual_seed(
            int(torch.randint(2**62, (), generator=generator, device="cpu"))
        )  # for dropout and its like
        for done, start in enumerate(starts, seeds[1] * len(starts) + 1):
            chosen = order[start : start + batch_size]
            batch = inputs[chosen] if calls.augment is None else calls.augment(inputs[chosen], generator)
            value = calls.loss(state.model(batch.to(device)), labels[chosen].to(device))
            check_finite(f"the loss in epoch {seeds[1]}", value.detach())
            state.optimizer.zero_grad()
            value.backward()
            for group in state.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * calls.share(done - 1)
            if calls.before_step is None or calls.before_step(done, state.optimizer) is not False:
                state.optimizer.step()
            if calls.after_step is not None:
                calls.after_step(done)
            total, seen = total + float(value.detach()) * len(chosen), seen + len(chosen)
    return total / seen


@dataclass(frozen=True)
class _Calls:
    """The share of the learning rate at each step, and the caller's functions."""

    share: Callable[[int], float]
    augment: Callable[[Tensor, torch.Generator], Tensor] | None
    loss: Callable[[Tensor, Tensor], Tensor]
    before_step: Callable[[int, Optimizer], bool | None] | None
    after_step: Callable[[int], None] | None


@dataclass
class _State:
    """What a checkpoint holds."""

    model: nn.Module
    optimizer: Optimizer
    loss: list[float]

    def save(self, path: Path, run: dict) -> None:
        saved: dict = {k: getattr(self, k).state_dict() for k in ("model", "optimizer")}
        saved |= {"run": run, "loss": self.loss}
        with replacing(path) as draft:
            torch.save(saved | {"sha256": hash_values(saved)}, draft)

    def load(self, path: Path, run: dict) -> None:
        """Take over what the file holds, if it is there and of the same run."""
        if not path.exists():
            return
        with path.open("rb") as file:
            try:
                saved = torch.load(file, weights_only=True, map_location="cpu")
                whole = saved.pop("sha256", None) == hash_values(saved)
                then = dict(saved["run"])
            except Exception as problem:  # whatever the bytes of a damaged file lead the reader to
                raise ValueError(f"checkpoint {path} is damaged: delete it, and training begins again") from problem
        changed = sorted(key for key in {*then, *run} if then.get(key) != run.get(key))
        if changed:
            raise ValueError(
                f"checkpoint {path} belongs to another run, with another {', '.join(changed)}: build the model, data "
                "and functions as at that run's start, or delete or move the file to train anew"
            )
        if not whole:
            raise ValueError(f"checkpoint {path} is damaged: delete it, and training begins again")
        for key in ("model", "optimizer"):
            getattr(self, key).load_state_dict(saved[key])
        self.loss[:] = saved["loss"]


def _check(model: nn.Module, inputs: Tensor, labels: Tensor, *, epochs: int, lr: float) -> None:
    if len(inputs) != len(labels) or len(inputs) == 0:
        raise ValueError(f"inputs and labels must have the same length ≥ 1, got {len(inputs)} and {len(labels)}")
    if inputs.is_floating_point():
        check_finite("inputs", inputs)
    check_whole("epochs", epochs, 1)
    check_positive("lr", lr)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("the model has no parameter that requires a gradient, so there is nothing to train")
    if any(p.is_inference() for p in model.parameters()):
        raise ValueError("the model was made in inference mode and cannot be trained: give copy.deepcopy(model)")
