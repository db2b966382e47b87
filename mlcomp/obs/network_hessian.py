r"""Exact and Gauss–Newton curvature of a small network's loss over all its parameters, by automatic differentiation.

Notation: θ all trainable parameters in one vector (n,), L(θ) the loss over a batch, $H = \nabla^2 L$, z the outputs,
$J_s = \partial z_s/\partial\theta$ of sample s, $G = \sum_s J_s^\top (\nabla_z^2 L)_s J_s$.
Source: Pearlmutter 1994, Fast exact multiplication by the Hessian; Schraudolph 2002 (Gauss–Newton); LeCun, Denker,
Solla 1989, Optimal Brain Damage, section 2.   Syllabus: 2.02, 2.03
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vjp, vmap

from mlcomp.checks import check_finite
from mlcomp.context import isolated_run
from mlcomp.layerwise.fit import copy_model

LossFn = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class FlatNetwork:
    """A network as a function of one float64 vector of its trainable parameters, in evaluation mode.

    ``prunable`` marks entries of matrices and convolution kernels; biases and norms are False.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    loss_fn: LossFn
    theta: Float[Tensor, " n"]
    prunable: Bool[Tensor, " n"]

    def outputs(self, theta: Tensor, inputs: Tensor) -> Tensor:
        """Return the outputs for ``inputs`` with parameters ``theta``."""
        return functional_call(self.model, self.split(theta), (inputs,))

    def loss(self, theta: Tensor) -> Tensor:
        """Return the loss over the whole batch."""
        return self.loss_fn(self.outputs(theta, self.inputs), self.targets)

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Return a vector over the parameters as tensors by parameter name."""
        parameters = {k: p for k, p in self.model.named_parameters() if p.requires_grad}
        parts = vector.split([p.numel() for p in parameters.values()])
        return {k: part.view_as(p) for (k, p), part in zip(parameters.items(), parts, strict=True)}


@isolated_run
def flatten_network(model: nn.Module, inputs: Tensor, targets: Tensor, loss_fn: LossFn) -> FlatNetwork:
    """Return ``model`` and its loss on a batch as functions of one vector; the model itself is copied, not touched.

    Args:
        model: any network without randomness in evaluation mode.
        inputs: batch, samples first.
        targets: what ``loss_fn`` compares the outputs with.
        loss_fn: (outputs, targets) → scalar, a sum or mean over samples.
    Raises:
        ValueError: no trainable parameters, no samples, NaN or inf in inputs or parameters, a loss that is no scalar.
    """
    model = copy_model(model).double().eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters or len(inputs) == 0:
        raise ValueError(f"need trainable parameters and samples, got {len(parameters)} and {len(inputs)}")
    theta = torch.cat([p.detach().flatten() for p in parameters])
    prunable = torch.cat([torch.full((p.numel(),), p.ndim > 1, device=p.device) for p in parameters])
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    targets = targets.double() if targets.is_floating_point() else targets
    check_finite("inputs", inputs)
    check_finite("the model's parameters", theta)
    flat = FlatNetwork(model, inputs, targets, loss_fn, theta, prunable)
    with torch.no_grad():
        loss = flat.loss(theta)
    if loss.numel() != 1:
        raise ValueError(f"loss_fn must return a scalar, got shape {tuple(loss.shape)}")
    check_finite("the loss", loss)
    return flat


def network_with(model: nn.Module, theta: Float[Tensor, " n"]) -> nn.Module:
    """Return a copy of ``model`` whose trainable parameters are ``theta``, in their own dtypes."""
    model = copy_model(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for p, part in zip(parameters, theta.split([p.numel() for p in parameters]), strict=True):
            p.copy_(part.view_as(p))
    return model


@isolated_run
def network_hessian(flat: FlatNetwork, theta: Float[Tensor, " n"] | None = None, *, chunk: int = 64) -> Tensor:
    """Return the exact Hessian (n, n) of the loss, float64, made symmetric.

    Args:
        flat: from :func:`flatten_network`.
        theta: where; None: the network's own parameters.
        chunk: Hessian rows computed at once; memory is chunk × a gradient computation.
    Cost: n Hessian–vector products; n² numbers, so for networks of thousands of parameters.
    """
    point = flat.theta if theta is None else theta
    h = jacrev(grad(flat.loss), chunk_size=chunk)(point)
    return ((h + h.T) / 2).detach()


@isolated_run
def hessian_diagonal(flat: FlatNetwork, *, chunk: int = 64) -> Float[Tensor, " n"]:
    """Return the exact diagonal of the Hessian without storing the rest of it: n Hessian–vector products."""

    product = vjp(grad(flat.loss), flat.theta)[1]  # H is symmetric: a vector–Hessian product is a Hessian–vector one

    def entry(unit: Tensor) -> Tensor:
        return torch.dot(product(unit)[0], unit)

    n = len(flat.theta)
    parts = []
    for start in range(0, n, chunk):
        units = torch.zeros(min(chunk, n - start), n, dtype=flat.theta.dtype, device=flat.theta.device)
        units.diagonal(start).fill_(1)
        parts.append(vmap(entry)(units))
    return torch.cat(parts).detach()


@isolated_run
def gauss_newton(flat: FlatNetwork, theta: Float[Tensor, " n"] | None = None) -> Float[Tensor, "n n"]:
    """Return G (n, n): the Hessian without the outputs' own second derivatives; semidefinite for a convex loss.

    Cost: a Jacobian (samples · outputs, n) in memory, and its product with itself.
    """
    jacobian, curved = _jacobians(flat, flat.theta if theta is None else theta)
    return jacobian.flatten(0, 1).T @ curved.flatten(0, 1)


@isolated_run
def gauss_newton_diagonal(flat: FlatNetwork) -> Float[Tensor, " n"]:
    """Return the diagonal of G, as LeCun et al. recommend it: no second derivatives of the units, never negative."""
    jacobian, curved = _jacobians(flat, flat.theta)
    return (jacobian * curved).sum((0, 1))


def _jacobians(flat: FlatNetwork, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Return J (samples, outputs, n) and the loss's output curvature times J, sample by sample."""
    outputs = flat.outputs(theta, flat.inputs)
    z = outputs.detach().flatten(1)
    samples, width = z.shape

    def loss_of(z: Tensor) -> Tensor:
        return flat.loss_fn(z.view_as(outputs), flat.targets)

    # Samples do not interact in the loss, so one product with e_c in every sample gives column c of all blocks.
    product = vjp(grad(loss_of), z)[1]
    units = torch.eye(width, dtype=z.dtype, device=z.device)
    curvature = torch.stack([product(unit.repeat(samples, 1))[0] for unit in units], dim=-1)

    def one(theta: Tensor, x: Tensor) -> Tensor:
        return flat.outputs(theta, x[None]).flatten()

    jacobian = vmap(jacrev(one), in_dims=(None, 0))(theta, flat.inputs).detach()
    return jacobian, curvature.detach() @ jacobian
