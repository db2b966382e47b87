r"""BatchNorm and AdaMax in which every multiplication is by a power of two, which a machine does by a shift.

Notation: AP2(x) = sign(x)·2^round(log₂|x|), the nearest power of two on the log scale; AP2(0) = 0.
Source: Courbariaux et al. 2016, arXiv:1602.02830, algorithms 3 (shift-based BatchNorm) and 4 (shift-based AdaMax).
Syllabus: 4.03
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from mlcomp.checks import check_interval, check_positive, check_values, check_whole, narrowed
from mlcomp.context import isolated
from mlcomp.quant.aware_training.ste import straight_through


@isolated
def nearest_power(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Return AP2(x): the power of two, with the sign of x, that is nearest on the log scale; 0 for 0.

    Args:
        x: any shape and float dtype; not modified. The gradient of the result is that of the identity.
    Raises:
        ValueError: NaN or inf, or a power beyond the dtype.
    Guarantee: $|x|/\sqrt2 < |AP2(x)| \le \sqrt2\,|x|$, so the boundary between two powers is their geometric mean.
    """
    check_values("x", x, squared=False)
    mantissa, exponent = torch.frexp(x.detach().double())  # |mantissa| from 1/2 to 1
    exponent = exponent - (mantissa.abs() < 0.5**0.5).int()
    power = torch.where(mantissa == 0, 0.0, torch.ldexp(mantissa.sign(), exponent))
    return straight_through(x, narrowed(power, x.dtype))


class ShiftBatchNorm(nn.Module):
    r"""BatchNorm over (samples, units) with shifts for its products.

    With $C = x - \mu$: variance $v = \mathrm{mean}(C \cdot AP2(C))$, result
    $AP2(\gamma) \cdot C \cdot AP2(1/\sqrt{v + \epsilon}) + \beta$.

    Attributes:
        weight, bias: γ and β, (units,), learned.
        running_mean, running_var: moving averages over batches, used in eval mode.
    """

    running_mean: Tensor
    running_var: Tensor

    @isolated
    def __init__(self, units: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        """Start with γ = 1, β = 0.

        Raises:
            ValueError: units is no whole number of at least 1, eps is not positive, momentum not in [0, 1].
        """
        super().__init__()
        check_whole("units", units, 1)
        check_positive("eps", eps)
        check_interval("momentum", momentum, "[0, 1]")
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(units)), nn.Parameter(torch.zeros(units))
        self.register_buffer("running_mean", torch.zeros(units))
        self.register_buffer("running_var", torch.ones(units))

    @isolated
    def forward(self, x: Float[Tensor, "samples units"]) -> Float[Tensor, "samples units"]:
        """Return the normalized batch; in training mode, move the averages."""
        if self.training:
            mean = x.mean(0)
            centred = x - mean
            variance = (centred * nearest_power(centred)).mean(0)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance, self.momentum)
        else:
            centred, variance = x - self.running_mean, self.running_var
        scale = nearest_power((variance + self.eps).rsqrt())
        return nearest_power(self.weight) * (centred * scale) + self.bias


class ShiftAdaMax(Optimizer):
    r"""AdaMax with shifts for its products.

    $m \leftarrow \beta_1 m + (1 - \beta_1) g$, $v \leftarrow \max(\beta_2 v, |g|)$,
    $w \leftarrow w - AP2(\alpha / (1 - \beta_1^t)) \cdot m \cdot AP2(1/v)$; nothing where v is 0.
    The state v is never rounded: a rounded one would not decay, since 0.999·2^k rounds to 2^k again.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 2**-10,
        *,
        betas: tuple[float, float] = (1 - 2**-3, 1 - 2**-10),
        weight_decay: float = 0.0,
    ) -> None:
        """Keep the parameters; by default with the source's powers of two.

        Args:
            params: tensors, or groups of them.
            lr: α, [units of the parameters].
            betas: β₁ and β₂; 1 − β are powers of two, so that β·x is x − (x shifted).
            weight_decay: must be 0, there is none.
        Raises:
            ValueError: lr is not positive, betas are outside [0, 1), a weight decay.
        """
        check_positive("lr", lr)
        for beta in betas:
            check_interval("betas", beta, "[0, 1)")
        if weight_decay:
            raise ValueError(f"weight_decay must be 0: shift-based AdaMax has none, got {weight_decay!r}")
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step; ``closure`` computes the loss again, as for every optimizer of torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state |= {"step": 0, "mean": torch.zeros_like(p), "largest": torch.zeros_like(p)}
                state["step"] += 1
                state["mean"].lerp_(p.grad, 1 - first)
                torch.maximum(state["largest"] * second, p.grad.abs(), out=state["largest"])
                rate = nearest_power(torch.tensor(group["lr"] / (1 - first ** state["step"])))
                largest = state["largest"]
                inverse = torch.where(largest > 0, nearest_power(1 / largest.clamp(min=1e-30)), 0.0)
                p.sub_(rate * state["mean"] * inverse)
        return loss
