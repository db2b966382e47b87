r"""Binarized neural networks: weights and activations are +1 or −1, in training and after it.

Notation: w real weight, kept for the optimizer only; $w_b = \mathrm{sign}(w)$ with sign(0) = +1 is what the network
computes with. Hard sigmoid $\sigma(x) = \mathrm{clip}((x+1)/2, 0, 1)$; a stochastic neuron is +1 with probability
σ(x). Backward, both signs have the derivative of the hard tanh, $1_{|x| \le 1}$.
Source: Courbariaux et al. 2016, arXiv:1602.02830, eq. (1)-(4), algorithm 1; the same 2015, arXiv:1511.00363 (clipped
weights, binary weights alone).   Syllabus: 4.03
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from mlcomp.checks import check_choice, check_codes, check_finite, check_floating, check_matrix, check_whole
from mlcomp.context import isolated, isolated_run
from mlcomp.quant.aware_training.ste import straight_through


@isolated
def binarize(
    x: Float[Tensor, "*shape"], *, stochastic: bool = False, generator: torch.Generator | None = None
) -> Float[Tensor, "*shape"]:
    """Return +1 or −1 for each number, with the gradient of the hard tanh.

    Args:
        x: any shape and float dtype; not modified.
        stochastic: draw each sign, +1 with probability clip((x + 1)/2, 0, 1). Else +1 where x ≥ 0.
        generator: of the draws; None: the global one, as dropout does.
    Raises:
        ValueError: NaN or inf. TypeError: not floating point.
    Guarantee: the gradient is passed on where |x| ≤ 1 and is 0 elsewhere. Stochastic signs have the mean
        clip(x, −1, 1).
    """
    check_floating("x", x)
    check_finite("x", x)
    values = x.detach()
    if stochastic:
        draws = torch.rand(x.shape, generator=generator, device=x.device)
        positive = draws < ((values.float() + 1) / 2).clamp(0, 1)
    else:
        positive = values >= 0
    ones = torch.ones_like(values)
    return straight_through(x.clamp(-1, 1), torch.where(positive, ones, -ones))


class BinarySign(nn.Module):
    """The activation: signs. With ``stochastic``, drawn while training; after it always deterministic."""

    def __init__(self, *, stochastic: bool = False) -> None:
        super().__init__()
        self.stochastic = stochastic

    def forward(self, x: Tensor) -> Tensor:
        """Return +1 or −1 for each number."""
        return binarize(x, stochastic=self.stochastic and self.training)


class BinaryLinear(nn.Module):
    """A linear layer without bias that computes with the signs of its weight (a BatchNorm follows, and shifts)."""

    def __init__(self, inp: int, out: int) -> None:
        """Draw the real weights uniformly from −1 to 1, with the global generator as ``nn.Linear`` does."""
        super().__init__()
        check_whole("inp", inp, 1)
        check_whole("out", out, 1)
        self.weight = nn.Parameter(torch.empty(out, inp).uniform_(-1, 1))

    def forward(self, x: Float[Tensor, "... inp"]) -> Float[Tensor, "... out"]:
        """Return x · sign(weight)ᵀ."""
        return F.linear(x, binarize(self.weight))


WEIGHTS: dict[str, Callable[[int, int], nn.Module]] = {
    "binary": BinaryLinear,
    "real": lambda inp, out: nn.Linear(inp, out, bias=False),
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sign": BinarySign,
    "stochastic": lambda: BinarySign(stochastic=True),
    "relu": nn.ReLU,
}


@isolated
def binarized_mlp(
    sizes: Sequence[int],
    *,
    weights: str = "binary",
    activation: str = "sign",
    norm: Callable[[int], nn.Module] = nn.BatchNorm1d,
    seed: int = 0,
) -> nn.Sequential:
    """Return an untrained perceptron: linear, norm, activation, …, linear, norm. Its inputs are numbers, not signs.

    Args:
        sizes: of the inputs, the hidden layers and the outputs, at least two.
        weights: "binary", or "real" for comparison.
        activation: "sign", "stochastic", or "relu" for comparison.
        norm: makes the normalization of so many units.
        seed: of the start; the global random state is left alone.
    Raises:
        ValueError: fewer than two sizes, or not whole ones; an unknown word.
    """
    check_choice("weights", weights, WEIGHTS)
    check_choice("activation", activation, ACTIVATIONS)
    if len(sizes) < 2:
        raise ValueError(f"sizes must be at least two, those of the inputs and of the outputs, got {list(sizes)}")
    for size in sizes:
        check_whole("sizes", size, 1)
    modules: list[nn.Module] = [nn.Flatten()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for inp, out in pairwise(sizes):
            modules += [WEIGHTS[weights](inp, out), norm(out), ACTIVATIONS[activation]()]
    return nn.Sequential(*modules[:-1])


@isolated_run
def clip_weights(model: nn.Module) -> Callable[[int], None]:
    """Return an ``after_step`` for :func:`mlcomp.train.train` that keeps the real weights of ``model`` in [−1, 1].

    Beyond, a weight's sign is far from changing, and the gradient of its sign is 0: it could never come back.

    Raises:
        ValueError: the model has no binary layer.
    """
    layers = [module for module in model.modules() if isinstance(module, BinaryLinear)]
    if not layers:
        raise ValueError(f"the model must have a BinaryLinear layer, got {type(model).__name__} without one")

    def after_step(step: int) -> None:
        with torch.no_grad():
            for layer in layers:
                layer.weight.clamp_(-1, 1)

    return after_step


def scaled_rates(optimizer: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    r"""Return an optimizer's constructor that gives each weight matrix √((in + out)/1.5) times the learning rate.

    That undoes what the usual start, uniform on $\pm\sqrt{1.5/(in + out)}$ (Glorot), would do for weights that begin
    on ±1. Everything that is no matrix keeps the rate.

    Args:
        optimizer: called with groups of parameters and the options, as :func:`mlcomp.train.train` does.
    """

    def make(parameters: Iterable[Tensor], *, lr: float, **options: Any) -> Optimizer:
        parameters = list(parameters)
        groups: list[dict[str, Any]] = [{"params": [p for p in parameters if p.ndim != 2], "lr": lr}]
        groups += [{"params": [p], "lr": lr * (sum(p.shape) / 1.5) ** 0.5} for p in parameters if p.ndim == 2]
        return optimizer([group for group in groups if group["params"]], lr=lr, **options)

    return make


@isolated
def squared_hinge(logits: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"]) -> Float[Tensor, ""]:
    r"""Return the mean of $\max(0, 1 - t\,y)^2$ over samples and classes, with t = +1 for the label, else −1.

    Raises:
        ValueError: logits that are no finite matrix, not one label a row, labels outside 0 … classes − 1.
        TypeError: labels are no whole numbers.
    """
    check_matrix("logits", logits)
    check_codes("labels", labels, logits.shape[1] - 1)
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels must be ({len(logits)},) like the rows of logits, got {tuple(labels.shape)}")
    wide = logits if logits.dtype == torch.float64 else logits.float()
    targets = 2 * F.one_hot(labels.long(), logits.shape[1]) - 1
    return (1 - targets * wide).clamp(min=0).square().mean()
