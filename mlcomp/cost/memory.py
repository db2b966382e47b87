r"""The memory arithmetic of a model: what its weights take, what a token of context takes, what training takes.

Notation: P parameters, b bits of each; 1 GB is $10^9$ bytes. Weights take $Pb/8$ bytes. Inference keeps a key and a
value of every head and layer for each token (the KV cache). Training with Adam keeps, beside each weight, its
gradient and two moments.
Source: Dettmers et al. 2022, arXiv:2208.07339, section 1 (a model that does not fit); Kingma and Ba 2015,
arXiv:1412.6980, algorithm 1 (the two moments); Du and Lee 2018, arXiv:1803.01206, theorem 3.1 (the width).
Syllabus: 4.01
"""

import math
from dataclasses import dataclass
from fractions import Fraction

from mlcomp.checks import check_positive, check_whole


def weights_nbytes(parameters: int, bits: int | float) -> int:
    """Return the bytes of ``parameters`` weights of ``bits`` bits each, rounded up to a whole byte.

    Args:
        parameters: P, at least 0; 65B is ``65_000_000_000``.
        bits: bits per weight; a quantizer's ``bits_per_weight`` counts its scales in and need not be whole.
    Raises:
        ValueError: parameters is no whole number of at least 0, bits is not positive and finite.
    Guarantee: exact, without the rounding of floating point, at any size.
    """
    check_whole("parameters", parameters, 0)
    check_positive("bits", bits)
    return math.ceil(parameters * Fraction(bits) / 8)


def kv_cache_nbytes(
    layers: int, kv_heads: int, head_dim: int, tokens: int, *, sequences: int = 1, bits: int | float = 16
) -> int:
    """Return the bytes of the keys and values that inference keeps for the tokens of its context.

    Args:
        layers: attention layers.
        kv_heads: heads that have keys and values of their own (fewer than query heads where these share them).
        head_dim: numbers in the key of one head, and in its value.
        tokens: of one sequence: the prompt, and what was generated.
        sequences: handled at the same time.
        bits: of one number.
    Raises:
        ValueError: a count is no whole number of at least 0, bits is not positive and finite.
    Guarantee: 2 · layers · kv_heads · head_dim · tokens · sequences numbers, as many as the model's own cache holds.
    """
    counts = {"layers": layers, "kv_heads": kv_heads, "head_dim": head_dim, "tokens": tokens, "sequences": sequences}
    for name, value in counts.items():
        check_whole(name, value, 0)
    return weights_nbytes(2 * math.prod(counts.values()), bits)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that training holds for its parameters; activations come on top."""

    weights: int
    gradients: int
    moments: int

    @property
    def total(self) -> int:
        """All three."""
        return self.weights + self.gradients + self.moments


def training_memory(
    parameters: int, *, weight_bits: int | float = 32, trained: int | None = None, trained_bits: int | float = 32
) -> TrainingMemory:
    """Return what Adam holds: the weights, and for each trained one a gradient and two moments.

    Args:
        parameters: of the whole model.
        weight_bits: bits per weight of those that stay as they are.
        trained: how many of the parameters are trained. None: all.
        trained_bits: of a trained weight, of its gradient and of each of its moments.
    Raises:
        ValueError: a count is no whole number of at least 0, more trained parameters than there are, bits that are
            not positive and finite.
    Guarantee: with everything trained in 32 bits, 16 bytes a parameter: those that PyTorch's Adam holds.
    """
    check_whole("parameters", parameters, 0)
    trained = parameters if trained is None else trained
    check_whole("trained", trained, 0, parameters)
    kept = weights_nbytes(parameters - trained, weight_bits)
    each = weights_nbytes(trained, trained_bits)
    return TrainingMemory(weights=kept + each, gradients=each, moments=2 * each)


def overparameterized_width(samples: int) -> int:
    r"""Return the fewest hidden units k with $k \ge \sqrt{2n}$ for n training samples.

    So many make every local minimum global in a network $\sum_j (w_j^\top x)^2$ under a smooth convex loss, for
    almost all small perturbations of it: then $k(k+1)/2 > n$.

    Raises:
        ValueError: samples is no whole number of at least 1.
    Guarantee: exact: $k^2 \ge 2n > (k-1)^2$.
    """
    check_whole("samples", samples, 1)
    return math.isqrt(2 * samples - 1) + 1
