r"""QuIP#: Hadamard incoherence, LDLQ in blocks of eight, and vectors of eight rounded to a lattice codebook.

Notation: W weight (out, inp), $H = 2XX^\top$, U, V random rotations made from a seed, s scale, Q the nearest entry of
a codebook, $H = (\dot U + I)\,D\,(\dot U + I)^\top$ with $\dot U$ strictly block upper triangular in blocks of eight.
$\hat W_k = Q(W_k + (W - \hat W)\,\dot U_k)$ for the blocks k of eight columns, from first to last.
Codebooks (:mod:`mlcomp.quant.vector.e8`): 2 bits E8P; 3 bits E8P and the 1-bit codebook on what is left; 4 bits
E8P twice.
Source: Tseng et al. 2024, arXiv:2402.04396, sections 3, 4.1, 4.2, 4.3 and Algorithm 1.   Syllabus: 1.14
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from mlcomp.checks import check_hessian, check_weight, check_whole, narrowed
from mlcomp.context import isolated
from mlcomp.formats.packing import pack_planes, packed_nbytes, unpack_planes
from mlcomp.formats.stored import Stored, number
from mlcomp.layerwise.column_sweep import check_sweep
from mlcomp.quant.post_training.incoherence import check_transform, layer_rotations, rotate_layer, unrotate_layer
from mlcomp.quant.post_training.ldlq import feedback_rounding, ldl
from mlcomp.quant.post_training.quip import SEED_BYTES, rescaled_layer
from mlcomp.quant.vector.e8 import e8_ball, e8_ball_encode, e8p_decode, e8p_encode

# Bits → (entries to a standard deviation of the weight, entries of the second stage to one of the first): the least
# squared error on Gaussian weights, found by a search over hundredths and tenths. 2 bits have no second stage.
SCALES = {2: (1.03, 1.0), 3: (0.98, 2.0), 4: (0.90, 3.8)}
STAGE_BITS = {2: (16,), 3: (16, 8), 4: (16, 16)}


@dataclass(frozen=True)
class QuIPSharp:
    """A weight as codebook entries of eight in a rotated basis.

    Attributes:
        codes: (out, inp/8) int32, 16-bit codes of E8P.
        residual: (out, inp/8) int32, 8-bit (bits = 3) or 16-bit codes of the second stage; None for 2 bits.
        scale: weight units of the rotated matrix to a unit of the codebook.
        bits, transform, seed: as given; the rotations are made again from the seed.
    """

    codes: Int32[Tensor, "out blocks"]
    residual: Int32[Tensor, "out blocks"] | None
    scale: float
    bits: int
    transform: str
    seed: int

    @isolated
    def dequantize(self) -> Float[Tensor, "out inp"]:
        """Return the weight (out, inp) that the codes stand for, float32."""
        values = decode_vectors(self.codes, self.residual, self.bits).flatten(1).double() * self.scale
        rotations = layer_rotations(*values.shape, transform=self.transform, seed=self.seed)
        return unrotate_layer(values, rotations).float()

    @property
    def nbytes(self) -> int:
        """Bytes as packed: the codes of each stage, a 32-bit scale and a 64-bit seed. The codebooks are constants."""
        return sum(packed_nbytes(self.codes.numel(), b) for b in STAGE_BITS[self.bits]) + 4 + SEED_BYTES

    @property
    def bits_per_weight(self) -> float:
        """``nbytes`` in bits over the number of weights."""
        return self.nbytes * 8 / (8 * self.codes.numel())

    def stored(self) -> Stored:
        """Return the codes of each stage, scale and seed. Rotations mix all rows, so none is decoded alone."""
        tensors = {"scale": number("scale", self.scale), "seed": torch.tensor([self.seed])}
        stages = [self.codes] if self.residual is None else [self.codes, self.residual]
        for name, codes, bits in zip(("codes", "residual"), stages, STAGE_BITS[self.bits], strict=False):
            tensors[name] = pack_planes(codes, bits)
        facts = {"shape": [len(self.codes), 8 * self.codes.shape[1]], "bits": self.bits, "transform": self.transform}
        return Stored("quip_sharp", tensors, facts)

    @classmethod
    def from_stored(cls, stored: Stored) -> "QuIPSharp":
        """Return what was stored."""
        tensors, bits, (out, inp) = stored.tensors, stored.facts["bits"], stored.shape
        check_transform(stored.facts["transform"], out, inp)
        stages = [
            unpack_planes(tensors[name], width, (out, inp // 8)).to(torch.int32)
            for name, width in zip(("codes", "residual"), STAGE_BITS[bits], strict=False)
        ]
        codes, residual = stages if len(stages) == 2 else (stages[0], None)
        scale, seed = float(tensors["scale"]), int(tensors["seed"])
        return cls(codes, residual, scale, bits, stored.facts["transform"], seed)


@isolated
def quip_sharp(
    weight: Float[Tensor, "out inp"],
    hessian: Float[Tensor, "inp inp"],
    *,
    bits: int,
    seed: int = 0,
    transform: str = "hadamard",
    damp: float = 0.01,
    block_size: int = 128,
) -> QuIPSharp:
    r"""Quantize eight weights at a time, in a basis where all directions are alike.

    Args:
        weight: (out, inp), any float dtype, inp a multiple of 8; not modified.
        hessian: (inp, inp), $2XX^\top$, float32 or float64; not modified.
        bits: 2, 3 or 4 bits a weight.
        seed: of the rotations; the result holds it instead of them.
        transform: "hadamard" (sizes m·2^k) or "orthogonal" (two Kronecker factors, any size).
        damp: share of the mean live diagonal of H added to its diagonal.
        block_size: columns per matrix product; speed only.
    Raises:
        ValueError: malformed weight, H or option; inp no multiple of 8; H + λI singular; no Hadamard matrix.
    Guarantee: the scales of X and of W (by powers of two) do not matter.
    Cost: out·inp² FLOPs for the feedback, and 2·1400·8 a vector for the nearest entry, which is more for inp < 10⁴.
    Deviations: no fine-tuning afterwards (of sign vectors and unquantized parameters, section 5 of the paper);
        rotations from a seed, where the paper stores a sign a row and a column; dead inputs decode to the
        noise of the others.
    """
    weight = check_weight(weight)
    out, inp = weight.shape
    check_whole("bits", bits, 2, 4)
    if inp % 8:
        raise ValueError(f"the number of inputs must be a multiple of 8, got {inp}")
    hessian = check_hessian(hessian, inp)
    check_transform(transform, out, inp)
    check_sweep("natural", block_size)

    w, h, _ = rescaled_layer(weight, hessian, damp=damp, rescale=False)
    rotations = layer_rotations(out, inp, transform=transform, seed=seed)
    w = rotate_layer(w, rotations)
    feedback, _ = ldl(rotate_layer(h, (rotations[1], rotations[1])), width=8, summed_in=hessian.dtype)
    # float32, since that is what is stored; a zero weight gets scale 0.
    scale = float(narrowed(w.square().mean().sqrt() / SCALES[bits][0], torch.float32))
    codes, residuals = [], []

    def choose(k: int, goal: Tensor) -> Tensor:
        first, second = encode_vectors(goal.T.float(), bits)
        codes.append(first)
        if second is not None:
            residuals.append(second)
        return decode_vectors(first, second, bits).T.double()

    feedback_rounding(w / (scale or 1.0), feedback, choose, width=8, block_size=block_size)
    residual = torch.stack(residuals, dim=1) if residuals else None
    return QuIPSharp(torch.stack(codes, dim=1), residual, scale, bits, transform, seed)


def encode_vectors(
    x: Float[Tensor, "rows 8"], bits: int
) -> tuple[Int32[Tensor, " rows"], Int32[Tensor, " rows"] | None]:
    """Return the codes of both stages (the second None for 2 bits): the nearest entry, then that of what is left."""
    first = e8p_encode(x)
    if bits == 2:
        return first, None
    left = (x - e8p_decode(first)) * SCALES[bits][1]
    return first, e8_ball_encode(left) if bits == 3 else e8p_encode(left)


def decode_vectors(
    codes: Int32[Tensor, "*rows"], residual: Int32[Tensor, "*rows"] | None, bits: int
) -> Float[Tensor, "*rows 8"]:
    """Return the vectors of eight that the codes of both stages stand for, [codebook units]."""
    values = e8p_decode(codes)
    if residual is None:  # 2 bits
        return values
    second = e8_ball().to(values)[residual.long()] if bits == 3 else e8p_decode(residual)
    return values + second / SCALES[bits][1]
