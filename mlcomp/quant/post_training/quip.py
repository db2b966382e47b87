r"""QuIP: rotate W and H until they are incoherent, round with LDLQ on one grid for the whole matrix, rotate back.

Notation: W weight (out, inp) = (m, n), $H = 2XX^\top$, $\tilde D$ a diagonal rescaling, U, V random rotations made
from a seed, b bits, $s = \rho\lVert W\rVert_F/\sqrt{mn}$.
Algorithm 1 (before): $H \leftarrow H + \alpha\,\mathrm{mean}(\mathrm{diag} H)\,I$;
$\tilde D \leftarrow (\mathrm{diag}(H)/\mathrm{diag}(W^\top W))^{1/4}$;
$W \leftarrow U W \tilde D V^\top$, $H \leftarrow V \tilde D^{-1} H \tilde D^{-1} V^\top$;
$W \leftarrow (2^b - 1)\,\tfrac12(W/s + 1)$, clamped to the grid. Algorithm 3 rounds with LDLQ, Algorithm 2 undoes 1.
Source: Chee et al. 2023, arXiv:2307.13304, Algorithms 1, 2, 3.   Syllabus: 1.14
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mlcomp.checks import check_bits, check_hessian, check_positive, check_weight, narrowed
from mlcomp.context import isolated
from mlcomp.formats.packing import pack_planes, packed_nbytes, unpack_planes
from mlcomp.formats.stored import Stored, number
from mlcomp.layerwise.hessian import damped_hessian
from mlcomp.quant.post_training.incoherence import check_transform, layer_rotations, rotate_layer, unrotate_layer
from mlcomp.quant.post_training.ldlq import check_rounding, ldlq_round

SEED_BYTES = 8


@dataclass(frozen=True)
class QuIP:
    """A weight as codes on one grid in a rotated basis.

    Attributes:
        codes: (out, inp) uint8, 0 … 2^bits − 1, of the rotated weight.
        scale: s, the largest value of the grid [rotated weight units].
        columns: (inp,) float32, the diagonal of D̃⁻¹; 0 where the column decodes to zeros. None: not rescaled.
        bits, transform, seed: as given; the rotations are made again from the seed.
    """

    codes: UInt8[Tensor, "out inp"]
    scale: float
    columns: Float[Tensor, " inp"] | None
    bits: int
    transform: str
    seed: int

    @isolated
    def dequantize(self) -> Float[Tensor, "out inp"]:
        """Return the weight (out, inp) that the codes stand for, float32."""
        out, inp = self.codes.shape
        values = self.scale * (2 * self.codes.double() / (2**self.bits - 1) - 1)
        rotations = layer_rotations(out, inp, transform=self.transform, seed=self.seed)
        weight = unrotate_layer(values, rotations).float()
        return weight if self.columns is None else weight * self.columns

    @property
    def nbytes(self) -> int:
        """Bytes as packed: the codes, a 32-bit scale, a 64-bit seed, and 32 bits for each rescaled column."""
        columns = 0 if self.columns is None else self.columns.nbytes
        return packed_nbytes(self.codes.numel(), self.bits) + 4 + SEED_BYTES + columns

    @property
    def bits_per_weight(self) -> float:
        """``nbytes`` in bits over the number of weights."""
        return self.nbytes * 8 / self.codes.numel()

    def stored(self) -> Stored:
        """Return codes, scale, seed and the diagonal. Rotations mix all rows, so none is decoded alone."""
        tensors = {"codes": pack_planes(self.codes, self.bits), "scale": number("scale", self.scale)}
        tensors["seed"] = torch.tensor([self.seed])
        if self.columns is not None:
            tensors["columns"] = self.columns
        facts = {"shape": list(self.codes.shape), "bits": self.bits, "transform": self.transform}
        return Stored("quip", tensors, facts)

    @classmethod
    def from_stored(cls, stored: Stored) -> "QuIP":
        """Return what was stored."""
        tensors, bits = stored.tensors, stored.facts["bits"]
        check_transform(stored.facts["transform"], *stored.shape)
        codes = unpack_planes(tensors["codes"], bits, stored.shape)
        scale, seed = float(tensors["scale"]), int(tensors["seed"])
        return cls(codes, scale, tensors.get("columns"), bits, stored.facts["transform"], seed)


@isolated
def quip(
    weight: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    *,
    bits: int,
    seed: int = 0,
    transform: str = "orthogonal",
    rescale: bool = True,
    rounding: str = "nearest",
    rho: float = 2.4,
    damp: float = 0.01,
    block_size: int = 128,
) -> QuIP:
    r"""Quantize in a basis where no weight and no direction of H stands out.

    Args:
        weight: (out, inp), any float dtype; not modified.
        hessian: (inp, inp), $2XX^\top$, float32 or float64; not modified.
        bits: bits per code, 1 to 8.
        seed: of the rotations and of stochastic rounding; the result holds it instead of the rotations.
        transform: "orthogonal" (two Kronecker factors, any size) or "hadamard" (sizes m·2^k).
        rescale: the diagonal D̃, 32 bits a column.
        rounding: "nearest" or "stochastic".
        rho: half the width of the grid in root mean squares of the rotated weight.
        damp: α.
        block_size: columns per matrix product; speed only.
    Raises:
        ValueError: malformed weight, H or option; H + λI singular; no Hadamard matrix of that size.
    Guarantee: the scale of X does not matter. A dead input (zero diagonal) or a zero column of W decodes to exact
        zeros with ``rescale``, and to the noise of the others without.
    Cost: out·inp² + 5/3·inp³ FLOPs and the rotations, of which H's is the larger: about 4·inp²·√inp.
    Deviations: damping is relative to live inputs; D̃ is the weight's best scaling for live inputs only.
    """
    weight = check_weight(weight)
    check_bits(bits)
    out, inp = weight.shape
    hessian = check_hessian(hessian, inp)
    check_transform(transform, out, inp)
    generator = torch.Generator(device=weight.device).manual_seed(seed)
    check_rounding(rounding, generator)
    check_positive("rho", rho)

    w, h, columns = rescaled_layer(weight, hessian, damp=damp, rescale=rescale)
    rotations = layer_rotations(out, inp, transform=transform, seed=seed)
    w = rotate_layer(w, rotations)
    h = rotate_layer(h, (rotations[1], rotations[1]))
    # float32, since that is what is stored; a zero weight gets a grid of zeros.
    scale = float(narrowed(rho * w.square().mean().sqrt(), torch.float32))
    top = 2**bits - 1
    # Incoherence leaves few weights beyond the grid; the paper clamps them before LDLQ.
    target = torch.clamp(top * (w / (scale or 1.0) + 1) / 2, 0, top)
    codes = ldlq_round(target, h, low=0, high=top, rounding=rounding, generator=generator, block_size=block_size)
    return QuIP(codes.to(torch.uint8), scale, columns, bits, transform, seed)


def rescaled_layer(
    weight: Tensor, hessian: Tensor, *, damp: float, rescale: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    r"""Return $W\tilde D$ and $\tilde D^{-1}(H + \lambda I)\tilde D^{-1}$ in float64, and $\tilde D^{-1}$'s diagonal.

    Idle columns, whose input is dead or (when rescaled) whose weights are all zero, leave the problem: their part of
    H becomes a hundredth of the mean diagonal, since what is rounded there is never seen.
    """
    damped = damped_hessian(hessian, damp=damp)
    idle, h = damped.dead, damped.matrix
    w = weight.double().masked_fill(idle, 0)
    columns = None
    if rescale:
        norm = w.square().sum(0)
        idle = idle | (norm == 0)
        # The inverse is what is stored, in float32: the rounded one is the one to use.
        columns = (norm.masked_fill(idle, 1) / h.diagonal()).pow(0.25).float().masked_fill(idle, 1)
        w, h = w / columns.double(), h * columns.double() * columns.double()[:, None]
        columns = columns.masked_fill(idle, 0)
    if idle.any():
        little = 0.01 * float(h.diagonal()[~idle].mean()) if not idle.all() else 1.0
        h[idle, :], h[:, idle] = 0, 0
        h[idle, idle] = little
    return w, h, columns
