"""A small model with two gated MLPs, as transformers builds them, for the tests beside this."""

import torch
from torch import Tensor, nn

HIDDEN, WIDTH = 24, 8


class MLP(nn.Module):
    """down(act(gate x) · up x)."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.up_proj = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down_proj = nn.Linear(HIDDEN, WIDTH, bias=False)
        self.act_fn = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Residual(nn.Module):
    """Two MLPs on a residual stream of tokens."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, WIDTH)
        self.first, self.second = MLP(activation), MLP(activation)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.first(x)
        return x + self.second(x)


def model(activation: nn.Module | None = None, *, dtype: torch.dtype = torch.float64) -> Residual:
    """Return the model with weights of seed 0, large enough for SiLU to bend."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Residual(activation or nn.SiLU()).to(dtype)
    for mlp in (made.first, made.second):
        mlp.gate_proj.weight.data *= 6
    return made.eval()


def batches(count: int = 3) -> list[Tensor]:
    """Return batches of four sequences of five tokens."""
    return list(torch.randint(32, (4 * count, 5), generator=torch.Generator().manual_seed(1)).split(4))
