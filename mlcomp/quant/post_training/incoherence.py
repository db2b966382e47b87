r"""Incoherence: how evenly a matrix is spread over its entries, and the rotations that spread it.

Notation: W weight (out, inp), $H = Q\Lambda Q^\top$ (inp, inp). H is μ-incoherent if all
$|Q_{ij}| \le \mu/\sqrt n$, and W if all $|W_{ij}| \le \mu\,\lVert W\rVert_F/\sqrt{mn}$; both μ lie between 1 and
√n, or √(mn). U (out, out), V (inp, inp) random orthogonal: $W \to UWV^\top$ and $H \to VHV^\top$ leave the loss
$\mathrm{tr}(WHW^\top)$ as it was and make both μ small with high probability.
"orthogonal": V = (V₁ ⊗ V₂)·Π with random orthogonal factors of the two most equal sizes whose product is n, and a
random permutation Π: O(n√n) a row. "hadamard": V = Hₙ·S/√n with random signs S: O(n log n) a row.
Source: Chee et al. 2023, QuIP, arXiv:2307.13304, Definition 1, Lemma 5, section 4; Tseng et al. 2024, QuIP#,
arXiv:2402.04396, section 3.   Syllabus: 1.14
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlcomp.checks import check_choice, check_hessian, check_weight
from mlcomp.context import isolated
from mlcomp.quant.post_training.hadamard import hadamard_transform, paley_order

TRANSFORMS = ("orthogonal", "hadamard")


@isolated
def hessian_incoherence(hessian: Float[Tensor, "inp inp"]) -> float:
    r"""Return μ of H: √n · max |Q_ij| over its eigenvectors.

    An eigenvalue that comes several times has no unique eigenvectors; those of the solver are taken.

    Raises:
        ValueError: H malformed.
    Guarantee: 1 ≤ μ ≤ √n; √n for a diagonal H with distinct entries.
    """
    hessian = check_hessian(hessian)
    h = hessian.double()
    vectors = torch.linalg.eigh((h + h.T) / 2).eigenvectors
    return math.sqrt(len(h)) * float(vectors.abs().max())


@isolated
def weight_incoherence(weight: Float[Tensor, "out inp"]) -> float:
    r"""Return μ of W: √(mn) · max |W_ij| / ‖W‖_F, the largest weight in units of the root mean square.

    Raises:
        ValueError: W malformed or zero.
    Guarantee: 1 ≤ μ ≤ √(mn).
    """
    weight = check_weight(weight)
    w = weight.double()
    norm = float(w.norm())
    if norm == 0:
        raise ValueError("the weight is zero everywhere, so it has no incoherence")
    return math.sqrt(w.numel()) * float(w.abs().max()) / norm


@dataclass(frozen=True)
class Rotation:
    """A random rotation of vectors of length n that a seed brings back; see :func:`random_rotation`.

    ``left`` (p, p), ``right`` (q, q) and ``permutation`` belong to "orthogonal", n = p·q; ``signs`` to "hadamard".
    """

    left: Float[Tensor, "p p"] | None = None
    right: Float[Tensor, "q q"] | None = None
    permutation: Int[Tensor, " n"] | None = None
    signs: Float[Tensor, " n"] | None = None

    def apply(self, x: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
        """Return V·x for each row x, in the dtype of x (float32 or float64)."""
        if self.signs is not None:
            return hadamard_transform(x * self.signs.to(x))
        assert self.left is not None and self.right is not None and self.permutation is not None
        left, right = self.left.to(x), self.right.to(x)
        boxes = x[:, self.permutation.to(x.device)].reshape(-1, len(left), len(right))
        return (left @ boxes @ right.T).reshape(x.shape)

    def undo(self, x: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
        """Return Vᵀ·x for each row x."""
        if self.signs is not None:
            return hadamard_transform(x, transpose=True) * self.signs.to(x)
        assert self.left is not None and self.right is not None and self.permutation is not None
        left, right = self.left.to(x), self.right.to(x)
        boxes = left.T @ x.reshape(-1, len(left), len(right)) @ right
        return boxes.reshape(x.shape)[:, self.permutation.argsort().to(x.device)]


def random_rotation(n: int, *, transform: str, generator: torch.Generator) -> Rotation:
    """Return a random rotation of vectors of length n.

    Args:
        n: length.
        transform: "orthogonal" (any n; a prime n has one factor of full size) or "hadamard" (n = m·2^k, see
            :func:`mlcomp.quant.hadamard_matrix`).
        generator: on the CPU; its state afterwards depends on n and transform only.
    Raises:
        ValueError: unknown transform, no Hadamard matrix of order n.
    Guarantee: apply keeps norms and inner products, and undo undoes it, up to rounding.
    """
    check_transform(transform, n)
    if transform == "hadamard":
        return Rotation(signs=2.0 * torch.randint(2, (n,), generator=generator) - 1)
    p = max(i for i in range(1, math.isqrt(n) + 1) if n % i == 0)
    left, right = (_orthogonal(size, generator) for size in (p, n // p))
    return Rotation(left, right, torch.randperm(n, generator=generator))


def check_transform(transform: str, *sizes: int) -> None:
    """Raise unless ``transform`` is known and has a rotation of each of these sizes."""
    check_choice("transform", transform, TRANSFORMS)
    for n in sizes:
        if transform == "hadamard":
            paley_order(n)  # raises where there is no such matrix


def rotate_layer(weight: Float[Tensor, "out inp"], rotations: tuple[Rotation, Rotation]) -> Float[Tensor, "out inp"]:
    r"""Return $UWV^\top$ for rotations (U, V)."""
    u, v = rotations
    return u.apply(v.apply(weight).T.contiguous()).T.contiguous()


def unrotate_layer(
    weight: Float[Tensor, "out inp"], rotations: tuple[Rotation, Rotation]
) -> Float[Tensor, "out inp"]:
    r"""Return $U^\top WV$ for rotations (U, V)."""
    u, v = rotations
    return v.undo(u.undo(weight.T.contiguous()).T.contiguous())


def layer_rotations(out: int, inp: int, *, transform: str, seed: int) -> tuple[Rotation, Rotation]:
    """Return (U, V), the same for the same seed: all that has to be stored of them."""
    generator = torch.Generator().manual_seed(seed)
    u = random_rotation(out, transform=transform, generator=generator)
    return u, random_rotation(inp, transform=transform, generator=generator)


def _orthogonal(n: int, generator: torch.Generator) -> Tensor:
    """Return a random orthogonal matrix, evenly over all of them: QR with the signs of R's diagonal taken out."""
    q, r = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()
