r"""CoFi: gates on sublayers, their units and the stream are learned with the weights, until so much is gone.

Notation: s expected sparsity, t its target, of the weights in the sublayers' matrices; every gate is a hard concrete
one (:mod:`mlcomp.prune.structured.hard_concrete`). The loss is
$L_\mathrm{distil} + \lambda_1(s - t) + \lambda_2(s - t)^2$: weights and gates go down, λ go up its gradient. t rises
linearly from 0 over the first steps. At the end each gate is 0 or not, what is 0 is removed, and what is left is
trained on.
Source: Xia, Zhong, Chen 2022, arXiv:2204.00408, sections 3.1 and 3.2, eqs. (1) to (4); Louizos, Welling, Kingma
2018, arXiv:1712.01312.   Syllabus: 4.11
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mlcomp.checks import check_interval, check_positive, check_whole
from mlcomp.context import isolated_run
from mlcomp.distill.hints import hints_loss
from mlcomp.distill.soft_targets import soft_target_loss
from mlcomp.distill.teaching import Seen, teach
from mlcomp.distill.train_student import train_student
from mlcomp.layerwise.fit import copy_model
from mlcomp.modes import evaluating, home
from mlcomp.prune.structured.hard_concrete import deterministic_gates, hard_concrete, probability_above
from mlcomp.prune.structured.residual_stream import (
    Gates,
    ResidualStream,
    check_norms,
    gated_size,
    gating,
    open_gates,
    remove_gated,
    residual_stream,
)
from mlcomp.train.loop import batch_starts

LEVELS = ("layers", "units", "dimensions")


@dataclass(frozen=True)
class CoFiSteps:
    """Step by step: expected sparsity before it, the target, both multipliers, and the distillation loss."""

    sparsity: list[float] = field(default_factory=list)
    target: list[float] = field(default_factory=list)
    linear: list[float] = field(default_factory=list)
    quadratic: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class CoFi:
    """What pruning came to.

    Attributes:
        model: the small network, trained on if ``finetune_epochs`` said so.
        removed: the small network as it was before that.
        whole: the network of the full size, with the weights that were trained under the gates.
        gates: on ``whole``, as decided at the end; 0 is removed.
        stream: what the gates stand on.
        sparsity: share of the sublayers' weights that is gone.
        steps: see :class:`CoFiSteps`.
    """

    model: nn.Module
    removed: nn.Module
    whole: nn.Module
    gates: Gates
    stream: ResidualStream
    sparsity: float
    steps: CoFiSteps


class GatedModel(nn.Module):
    """A model with a learned gate on each thing that can go; drawn anew in each training step, fixed in eval mode."""

    def __init__(self, model: nn.Module, stream: ResidualStream, levels: Iterable[str], log_alpha: float) -> None:
        super().__init__()
        self.model, self.stream, self.levels = model, stream, tuple(levels)
        self.whole = open_gates(stream).map(lambda z: z.to(home(model)))
        self.sizes = [len(z) for z in (self.whole.layers, self.whole.dimensions, *self.whole.units)]
        self.log_alpha = nn.Parameter(
            torch.full_like(torch.cat((self.whole.layers, self.whole.dimensions, *self.whole.units)), log_alpha)
        )
        self.multipliers = nn.Parameter(torch.zeros_like(self.log_alpha[:2]))
        self.weights = float(gated_size(stream, self.whole))

    def split(self, values: Tensor) -> Gates:
        """Return one value for each gate as gates, with 1 on the levels that have none."""
        layers, dimensions, *units = values.split(self.sizes)
        made = Gates(layers, tuple(units), dimensions)
        return Gates(**{level: getattr(made if level in self.levels else self.whole, level) for level in LEVELS})

    def decided(self) -> Gates:
        """Return the deterministic gates; each sublayer's is decided by itself."""
        layers, dimensions, *units = self.log_alpha.split(self.sizes)
        parts = [deterministic_gates(layers[:, None])[:, 0], *map(deterministic_gates, (dimensions, *units))]
        return self.split(torch.cat(parts))

    def sparsity(self) -> Tensor:
        """Return the expected share of the sublayers' weights that is gone, differentiable in log α."""
        return 1 - gated_size(self.stream, self.split(probability_above(self.log_alpha))) / self.weights

    def forward(self, batch: Tensor) -> Any:
        """Return what the model makes of a batch under its gates."""
        gates = self.split(hard_concrete(self.log_alpha)) if self.training else self.decided()
        with gating(self.model, self.stream, gates):
            return self.model(batch)


@isolated_run
def cofi(
    model: nn.Module,
    inputs: Tensor,
    *,
    sparsity: float,
    epochs: int,
    lr: float,
    finetune_epochs: int = 0,
    warmup: float = 0.5,
    gate_lr: float = 0.1,
    log_alpha: float = 3.0,
    levels: Iterable[str] = LEVELS,
    temperature: float = 1.0,
    hints: Mapping[str, str] | None = None,
    hint_weight: float = 1.0,
    **options: Any,
) -> CoFi:
    """Prune a transformer at several levels at once, taught by itself.

    Args:
        model: a transformer with a residual stream (:func:`mlcomp.prune.residual_stream`) that returns its logits;
            its own teacher, and not modified.
        inputs: (n, …), moved to the model's device; no labels are needed.
        sparsity: t, in (0, 1), the share of the weights in the sublayers' matrices to remove.
        epochs, lr: of weights under gates, as for :func:`mlcomp.train.train`.
        finetune_epochs: passes over the data after the removal, with the same ``lr`` and loss; 0 for none.
        warmup: share of the steps over which the target rises from 0 to ``sparsity``.
        gate_lr: learning rate of log α and of λ (AdamW), constant; as in the authors' code.
        log_alpha: at the start, of all gates: 3 leaves each open with probability 0.99, 0 with 0.83.
        levels: those with gates, of "layers" (whole sublayers), "units" and "dimensions" (of the stream; there all
            norms must be RMSNorm).
        temperature: of :func:`mlcomp.distill.soft_target_loss`.
        hints, hint_weight: layers of the pruned model to compare with layers of the model, as for
            :func:`mlcomp.distill.train_student`; {"blocks.1": "blocks.1"}, say.
        options: all others of ``train`` but ``loss``, ``optimizer`` and ``checkpoint``.
    Returns:
        see :class:`CoFi`.
    Raises:
        ValueError: options out of range, another level, a model without stream or which cannot run without what has
            a gate, all dimensions removed in the end, and what ``train`` refuses.
    Guarantee: ``removed`` computes what ``whole`` does under the gates, up to rounding, and has in its sublayers'
        matrices exactly the share 1 − ``sparsity`` of the weights. That is near t, not t: see ``steps``.
    Deviation: the paper compares each layer of the teacher with the student's nearest one, found anew in each step;
        here ``hints`` says which.
    Cost: that of training with a teacher; log α and λ are some hundred numbers.
    """
    _check(sparsity, warmup, gate_lr, log_alpha, finetune_epochs, options)
    chosen = _chosen(levels)
    if len(inputs) == 0:
        raise ValueError("inputs holds no sample")
    stream = residual_stream(model, inputs[:1])
    gated = GatedModel(copy_model(model), stream, chosen, log_alpha)
    _check_removable(gated, inputs[:1])
    options |= {"lr": lr, "hints": dict(hints or {})}
    steps = epochs * len(batch_starts(len(inputs), options.get("batch_size", 64)))
    lagrangian = _Lagrangian(gated, sparsity, warmup * steps, gate_lr)
    lagrangian.train(model, inputs, temperature, hint_weight, epochs=epochs, **options)
    gates = gated.decided()
    removed = remove_gated(gated.model, stream, gates)
    left = float(gated_size(stream, gates.map(lambda z: (z > 0).float()))) / gated.weights
    taught: dict[str, Any] = {"temperature": temperature, "hint_weight": hint_weight, "epochs": finetune_epochs}
    small = train_student(removed, model, inputs, **taught, **options).model if finetune_epochs else removed
    return CoFi(small, removed, gated.model, gates, stream, 1 - left, lagrangian.steps)


class _Lagrangian:
    """The loss with its two multipliers, which go up while all else goes down."""

    def __init__(self, gated: GatedModel, sparsity: float, rising: float, lr: float) -> None:
        self.gated, self.sparsity, self.rising, self.lr = gated, sparsity, rising, lr
        self.steps = CoFiSteps()

    def target(self, step: int) -> float:
        """Return t of the n-th step, n = 1, 2, …"""
        return self.sparsity * min(1.0, step / max(self.rising, 1.0))

    def train(
        self, teacher: nn.Module, inputs: Tensor, temperature: float, hint_weight: float, **options: Any
    ) -> None:
        """Train the gated model, in place."""
        own = options.pop("before_step", None)
        hints = {f"model.{ours}": theirs for ours, theirs in options.pop("hints").items()}

        def loss(seen: Seen, taught: Seen, index: Tensor) -> Tensor:
            value = soft_target_loss(seen.logits, taught.logits, temperature=temperature)
            value = value + hint_weight * hints_loss(seen, taught) if hints else value
            return value + self.penalty(float(value.detach()))

        def ascend(step: int, optimizer: Optimizer) -> bool | None:
            gradient = self.gated.multipliers.grad
            assert gradient is not None  # it is (s − t, (s − t)²)
            gradient.neg_()
            optimizer.param_groups[-1]["lr"] = self.lr
            return None if own is None else own(step, optimizer)

        options |= {"before_step": ascend, "optimizer": self.optimizer}
        teach(self.gated, teacher, inputs, loss, hints=hints, **options)

    def penalty(self, loss: float) -> Tensor:
        """Return λ₁(s − t) + λ₂(s − t)² of the next step, and write it down."""
        sparsity, target = self.gated.sparsity(), self.target(len(self.steps.loss) + 1)
        linear, quadratic = self.gated.multipliers
        for name, value in {"sparsity": sparsity, "linear": linear, "quadratic": quadratic}.items():
            getattr(self.steps, name).append(float(value.detach()))
        self.steps.target.append(target)
        self.steps.loss.append(loss)
        return linear * (sparsity - target) + quadratic * (sparsity - target) ** 2

    def optimizer(self, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> Optimizer:
        """Return AdamW over the weights and, with a learning rate of their own, over log α and λ."""
        own = [self.gated.log_alpha, self.gated.multipliers]
        among = set(map(id, own))
        weights = [p for p in parameters if id(p) not in among]
        groups: list[dict[str, Any]] = [{"params": weights}, {"params": own, "lr": self.lr, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)


def _check_removable(gated: GatedModel, batch: Tensor) -> None:
    """Raise unless the model runs without what has a gate, and then gives what it does under the gates."""
    if "dimensions" in gated.levels:
        check_norms(gated.model, gated.stream)
    ends = [
        torch.linspace(0, 1, size, dtype=gated.log_alpha.dtype, device=gated.log_alpha.device) for size in gated.sizes
    ]  # the first sublayer is off, the last one on
    trial = gated.split(torch.cat(ends).to(home(gated.model)))
    with evaluating(gated.model), gating(gated.model, gated.stream, trial):
        want = gated.model(batch.to(home(gated.model)))
    small = remove_gated(gated.model, gated.stream, trial)
    with evaluating(small):
        try:
            got = small(batch.to(home(gated.model)))
        except (RuntimeError, ValueError) as problem:
            raise ValueError(
                f"{type(gated.model).__name__} does not run without some of its parts ({problem}): the sizes in its "
                "forward have to follow from its weights"
            ) from problem
    if not torch.allclose(got, want, rtol=1e-3, atol=1e-3 * float(want.abs().max())):
        raise ValueError(
            f"{type(gated.model).__name__} without some of its parts is not what it is with these at zero: give "
            "levels that can be removed from it"
        )


def _chosen(levels: Iterable[str]) -> tuple[str, ...]:
    chosen = tuple(levels)
    if not chosen or isinstance(levels, str) or set(chosen) - set(LEVELS):
        raise ValueError(f"levels must be some of {', '.join(LEVELS)}, got {levels!r}")
    return chosen


def _check(
    sparsity: float, warmup: float, gate_lr: float, log_alpha: float, finetune_epochs: int, options: Mapping
) -> None:
    check_interval("sparsity is the share of the weights to remove and", sparsity, "(0, 1)")
    check_interval("warmup is a share of the steps and", warmup, "[0, 1]")
    check_positive("gate_lr", gate_lr)
    check_interval("log_alpha", log_alpha, "[-20, 20]")
    check_whole("finetune_epochs", finetune_epochs, 0)
    taken = [name for name in ("loss", "optimizer", "checkpoint") if name in options]
    if taken:
        raise ValueError(
            f"{taken[0]} is taken: loss and optimizer follow from the method, and there are two trainings"
        )
