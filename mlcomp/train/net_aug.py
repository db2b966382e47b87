r"""NetAug: a tiny network is trained as itself and as a part of wider networks, and only it is kept.

Notation: W the weights of the widest network; $W_t$ those of the tiny one, the leading block of each tensor of W;
$W_w$ the leading blocks of widths w, multiples of the tiny ones that are drawn layer by layer at each step. A step's
loss is $L(W_t) + \alpha L(W_w)$, so the weights of $W_t$, which both contain, get the sum of two gradients.
Source: Cai, Gan, Lin, Han 2022, arXiv:2110.08890, section 3.   Syllabus: 5.01
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mlcomp.checks import check_interval, check_whole
from mlcomp.context import isolated_run
from mlcomp.train.loop import History, train

Build = Callable[[tuple[int, ...]], nn.Module]


@dataclass(frozen=True)
class Augmented:
    """The tiny network, the widest one around it, and the history (of the sum of both losses)."""

    model: nn.Module
    wide: nn.Module
    history: History


@isolated_run
def net_aug(
    build: Build,
    inputs: Tensor,
    labels: Tensor,
    *,
    widths: Sequence[int],
    epochs: int,
    lr: float,
    alpha: float = 1.0,
    multiples: Sequence[int] = (1, 2, 3),
    seed: int = 0,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    **options: Any,
) -> Augmented:
    """Train a tiny network with the help of wider ones that contain it.

    Args:
        build: ``build(widths)`` returns a network whose i-th layer has ``widths[i]`` channels, with random weights.
            The first channels of a wider one must be a network of the same kind: in a grouped convolution they are,
            if each group is one channel.
        inputs, labels, epochs, lr, seed, loss: as for :func:`mlcomp.train.train`; the seed is also that of the start
            and of the widths.
        widths: of the tiny network.
        alpha: α, at least 0.
        multiples: of each of ``widths``, to draw from; the largest make the widest network.
        options: all others of ``train``.
    Returns:
        see :class:`Augmented`.
    Raises:
        ValueError: α below 0; widths or multiples that are empty or no whole numbers of at least 1; networks of which
            the narrow one is no part of the wide one; and all that ``train`` refuses.
    Guarantee: α = 0 gives, bit for bit, what ``train`` makes of the tiny network at its start: the wider pass draws
        nothing from the random stream of the tiny one, and leaves its BatchNorm statistics alone.
    Cost: of each step, a forward and a backward pass of the tiny network and of a wider one.
    Deviations: the authors' code shares BatchNorm's running statistics among all widths, which spoils them, and
        estimates them again before each use; here the tiny network has its own. It also sorts channels by their L1
        norm before each epoch, and draws no wider layers in the second half of the epochs; here no epoch is special.
    """
    check_interval("alpha", alpha, "[0, inf)")
    for name, numbers in {"widths": widths, "multiples": multiples}.items():
        check_whole(f"the number of {name}", len(numbers), 1)
        for number in numbers:
            check_whole(f"each of {name}", number, 1)
    both = AugmentedNet(build, tuple(widths), tuple(multiples), seed)
    settings = {"epochs": epochs, "lr": lr, "seed": seed, **options}
    history = train(both, inputs, labels, loss=partial(augmented_loss, loss=loss, alpha=alpha), **settings)
    return Augmented(both.export(), both.wide, history)


def augmented_loss(
    outputs: tuple[Tensor, Tensor], labels: Tensor, *, loss: Callable[[Tensor, Tensor], Tensor], alpha: float
) -> Tensor:
    """Return L of the tiny network's output plus α times L of the wider one's."""
    return loss(outputs[0], labels) + alpha * loss(outputs[1], labels)


class AugmentedNet(nn.Module):
    """A wide network of which each call runs the tiny part, and a part of drawn widths; both outputs come back."""

    steps: Tensor

    def __init__(self, build: Build, widths: tuple[int, ...], multiples: tuple[int, ...], seed: int) -> None:
        super().__init__()
        self.build, self.widths, self.multiples, self.seed = build, widths, multiples, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.wide = build(tuple(max(multiples) * width for width in widths))
            # A submodule for its running statistics; its weights are read from the wide network at each call.
            self.tiny = build(widths).requires_grad_(False)
        self.parts: dict[tuple[int, ...], nn.Module] = {}
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device="cpu"))
        leading_blocks(self.wide, self.tiny)

    def draw(self) -> tuple[tuple[int, ...], int]:
        """Return the widths of this step, and a seed for what the wider pass draws, made from seed and step."""
        generator = torch.Generator().manual_seed(self.seed * 999_983 + int(self.steps))
        chosen = torch.randint(len(self.multiples), (len(self.widths),), generator=generator, device="cpu").tolist()
        noise = torch.randint(2**62, (), generator=generator, device="cpu")
        return tuple(self.multiples[i] * width for i, width in zip(chosen, self.widths, strict=True)), int(noise)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs of the tiny network and of a wider one."""
        tiny = functional_call(self.tiny, leading_blocks(self.wide, self.tiny), (inputs,))
        widths, noise = self.draw()
        self.steps += 1
        with torch.random.fork_rng(devices=[inputs.device] if inputs.is_cuda else []):
            if widths not in self.parts:  # never the tiny network itself, whose statistics are its own
                self.parts[widths] = self.build(widths).to(inputs.device).train()
            part = self.parts[widths]
            torch.manual_seed(noise)  # after building, which draws weights that nobody uses
            return tiny, functional_call(part, leading_blocks(self.wide, part), (inputs,))

    @torch.no_grad()
    def export(self) -> nn.Module:
        """Return the tiny network with weights of its own."""
        result = copy.deepcopy(self.tiny)
        for name, block in leading_blocks(self.wide, self.tiny).items():
            result.get_parameter(name).copy_(block)
        return result.requires_grad_(True)


def leading_blocks(wide: nn.Module, narrow: nn.Module) -> dict[str, Tensor]:
    """Return name → the leading block of each weight of ``wide`` in the size that ``narrow`` has, connected to it.

    Raises:
        ValueError: their weights have different names or numbers of dimensions, or ``narrow`` is larger somewhere.
    """
    weights, sizes = (dict(net.named_parameters()) for net in (wide, narrow))
    if weights.keys() != sizes.keys():
        raise ValueError(f"the networks that build makes differ in {sorted(weights.keys() ^ sizes.keys())}")
    for name, weight in weights.items():
        size = tuple(sizes[name].shape)
        if len(size) != weight.ndim or any(n > m for n, m in zip(size, weight.shape, strict=True)):
            raise ValueError(f"{name!r} is {size} in the narrow network and {tuple(weight.shape)} in the wide one")
    # Contiguous, as in a network of its own: a product with strided weights may be summed in another order.
    return {name: weight[tuple(map(slice, sizes[name].shape))].contiguous() for name, weight in weights.items()}
