r"""A network with additive codes for weights, in training: it decodes on the way; gradients reach the codebooks.

Notation: $\hat W$ the decoded weight of a layer, C its codebooks, s its scales, b its codes; the rest of the
parameters (norms, biases) are trained as they are.
Source: Egiazarian et al. 2024, arXiv:2401.06118, section 3.4 (phase 3); Malinovskii et al. 2024, arXiv:2405.14852.
Syllabus: 1.13, 1.15
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from mlcomp.checks import check_finite, check_like, check_size, check_tensor, check_values, check_whole
from mlcomp.context import isolated
from mlcomp.formats.additive_codebook import AdditiveCodes
from mlcomp.layerwise.attention import join_attention, split_attention
from mlcomp.layerwise.fit import choose_layers, copy_model
from mlcomp.layerwise.matrix import find_layer, set_weight_matrix, weight_from_rows, weight_rows
from mlcomp.quant.additive.aqlm import stored
from mlcomp.quant.additive.aqlm_codebooks import decode_sum

Loss = Callable[[Tensor, Tensor], Tensor]


@isolated
def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Return ‖z − ẑ‖² / ‖z‖² of a batch.

    Raises:
        ValueError: NaN or inf, shapes that differ, a target that is zero. TypeError: not floating point.
    """
    check_values("target", target)
    check_like("output", output, target.shape, "the target")
    check_size("output", output)
    norm = target.square().sum()
    if not norm > 0:
        raise ValueError("the target is zero, and an error relative to it has no meaning: use a batch that is not")
    return (output - target).square().sum() / norm


@dataclass(frozen=True)
class AdditiveBlock:
    """A copy of a block with decoded weights (and tuned norms and biases), and the codes of each layer by name.

    ``history`` holds the loss on all inputs before the first and after each round.
    """

    block: nn.Module
    layers: dict[str, AdditiveCodes]
    history: tuple[float, ...]


class AdditiveWeight(nn.Module):
    """Parameters ``codebooks`` and ``scale``, buffer ``codes``; called, it returns the decoded matrix (out, inp)."""

    codes: Tensor

    def __init__(self, quantized: AdditiveCodes) -> None:
        super().__init__()
        self.codebooks = nn.Parameter(quantized.codebooks.float().clone())
        self.scale = nn.Parameter(quantized.scale.float().clone())
        self.register_buffer("codes", quantized.codes.clone())

    def forward(self) -> Float[Tensor, "out inp"]:
        """Return the decoded matrix; gradients flow to codebooks and scales."""
        return decode_sum(self.codes, self.codebooks) * self.scale[:, None]

    @isolated
    def quantized(self) -> AdditiveCodes:
        """Return the present state, in float32."""
        return AdditiveCodes(self.codes.clone(), self.codebooks.detach().clone(), self.scale.detach().clone())


class AdditiveStudent:
    """A frozen copy of a block, the codes of its layers, and the data that it learns from."""

    def __init__(
        self,
        block: nn.Module,
        inputs: Tensor,
        layers: Mapping[str, AdditiveCodes],
        *,
        targets: Tensor | None,
        loss: Loss | None,
        batch_size: int,
        train_rest: bool,
        seed: int,
    ) -> None:
        self.block = split_attention(copy_model(block).eval().requires_grad_(False))
        self.loss = loss or squared_error
        self.batch_size = batch_size
        _check(self.block, inputs, layers, batch_size)
        self.names = {name: f"{name}.weight" if name else "weight" for name in layers}
        self.layers = {path: find_layer(self.block, name) for name, path in self.names.items()}
        self.weights = {name: AdditiveWeight(quantized) for name, quantized in layers.items()}
        coded = set(self.names.values())
        self.rest = {
            name: nn.Parameter(p.detach().clone())
            for name, p in self.block.named_parameters()
            if train_rest and name not in coded and p.is_floating_point()
        }
        self.inputs = inputs
        with torch.no_grad():
            if targets is None:
                targets = torch.cat([self.block(x) for x in inputs.split(batch_size)])
            self.targets = targets
        check_tensor("targets", self.targets)
        if len(self.targets) != len(inputs):
            raise ValueError(f"targets must have one entry for each of {len(inputs)} inputs, got {len(self.targets)}")
        if self.targets.is_floating_point():
            check_finite("targets", self.targets)
        self.seed = seed

    def batch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of the ``chosen`` samples."""
        return self.inputs[chosen.to(self.inputs.device)], self.targets[chosen.to(self.targets.device)]

    def decoded(self) -> list[Tensor]:
        """Return the matrix of each layer."""
        return [weight() for weight in self.weights.values()]

    def batch_loss(self, matrices: list[Tensor], x: Tensor, target: Tensor) -> Tensor:
        """Return the loss of one batch with these matrices for weights."""
        parameters: dict[str, Tensor] = dict(self.rest)
        for name, matrix in zip(self.names.values(), matrices, strict=True):
            layer = self.layers[name]
            parameters[name] = weight_from_rows(layer, matrix).to(layer.weight.dtype)
        return self.loss(functional_call(self.block, parameters, (x,)), target)

    @torch.no_grad()
    def mean_loss(self, chosen: Tensor | None = None) -> float:
        """Return the mean loss of the ``chosen`` samples; None: of all."""
        parts = [float(self.batch_loss(self.decoded(), x, z)) * len(x) for x, z in self._data(chosen)]
        return sum(parts) / (len(self.inputs) if chosen is None else len(chosen))

    def gradients(self, matrices: list[Tensor], chosen: Tensor | None = None) -> list[Tensor]:
        """Return the gradient of the mean loss of the ``chosen`` samples with respect to the matrices."""
        leaves = [m.detach().requires_grad_() for m in matrices]
        total = [torch.zeros_like(m) for m in matrices]
        count = len(self.inputs) if chosen is None else len(chosen)
        with torch.enable_grad():
            for x, z in self._data(chosen):
                loss = self.batch_loss(leaves, x, z) * (len(x) / count)
                total = [t + g for t, g in zip(total, torch.autograd.grad(loss, leaves), strict=True)]
        return total

    def optimizer(self, learning_rate: float, latent: Iterable[nn.Parameter] = ()) -> torch.optim.Adam:
        """Return Adam on all that is learned, and on ``latent``.

        The rate of each tensor is ``learning_rate`` times its root mean square.
        """
        continuous = [p for weight in self.weights.values() for p in weight.parameters()]
        groups = []
        for p in [*continuous, *self.rest.values(), *latent]:
            size = float(p.detach().square().mean().sqrt()) or 1.0  # zeros, a new bias say: the rate itself
            groups.append({"params": [p], "lr": learning_rate * size})
        return torch.optim.Adam(groups)

    def state(self) -> list[Tensor]:
        """Return copies of everything that is learned."""
        return [t.detach().clone() for t in self._learned()]

    @torch.no_grad()
    def restore(self, state: list[Tensor]) -> None:
        """Go back to a state."""
        for now, then in zip(self._learned(), state, strict=True):
            now.copy_(then)

    @torch.no_grad()
    def result(self, dtype: torch.dtype, history: Iterable[float]) -> AdditiveBlock:
        """Return the block with weights decoded from what is stored."""
        layers = {name: stored(weight.quantized(), dtype) for name, weight in self.weights.items()}
        done = copy_model(self.block)
        for name, quantized in layers.items():
            set_weight_matrix(find_layer(done, name), quantized.dequantize())
        for name, p in self.rest.items():
            done.get_parameter(name).copy_(p)
        return AdditiveBlock(join_attention(done), layers, tuple(history))

    def _learned(self) -> list[Tensor]:
        return [*(t for weight in self.weights.values() for t in weight.state_dict().values()), *self.rest.values()]

    def _data(self, chosen: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        every = torch.arange(len(self.inputs), device="cpu") if chosen is None else chosen
        for part in every.split(self.batch_size):
            yield self.batch(part)


def _check(block: nn.Module, inputs: Tensor, layers: Mapping[str, AdditiveCodes], batch_size: int) -> None:
    check_tensor("inputs", inputs)
    if inputs.ndim < 2 or inputs.numel() == 0:
        raise ValueError(f"inputs must be (samples, …) with at least one sample, got {tuple(inputs.shape)}")
    if inputs.is_floating_point():
        check_finite("inputs", inputs)
    check_whole("batch_size", batch_size, 1)
    if not layers:
        raise ValueError("layers names no layer: give the AdditiveCodes of at least one")
    chosen, _ = choose_layers(block, layers)
    for name, quantized in layers.items():
        if not isinstance(quantized, AdditiveCodes):
            raise TypeError(f"layers[{name!r}] must be AdditiveCodes, got {type(quantized).__name__}")
        shape = tuple(weight_rows(chosen[name]).shape)
        if (len(quantized.codes), quantized.inp) != shape:
            raise ValueError(
                f"layer {name!r}: codes of a matrix {(len(quantized.codes), quantized.inp)}, not {shape}"
            )
