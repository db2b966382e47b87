"""What the checks of the exercises on quantization and heads compare with: the definition, tried out.

``slip`` names a known mistake. A check computes its result as well, to draw inputs on which it shows, and to tell the
student of it.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def absmax_codes(matrix: Tensor, slip: str = "") -> Tensor:
    """Return the codes of each row, and its scale in a last column.

    Slips: "tensor" (one scale for all), "columns", "signed" (the largest entry, not the largest size), "full" (128 in
    the place of 127), "cut" (towards zero).
    """
    axis = {"tensor": (0, 1), "columns": (0,)}.get(slip, (1,))
    sizes = matrix if slip == "signed" else matrix.abs()
    largest = sizes.amax(axis, keepdim=True)
    scale = torch.where(largest == 0, 1.0, largest / (128 if slip == "full" else 127))
    exact = matrix / scale
    codes = ((exact.trunc() if slip == "cut" else exact.round()) + 128) % 256 - 128  # as int8 wraps around
    return torch.cat([codes, scale.expand_as(matrix)[:, :1]], 1)


def _decoded(matrix: Tensor, scale: Tensor) -> Tensor:
    return scale * (matrix / scale).round()


def _row_scale(matrix: Tensor) -> Tensor:
    largest = matrix.abs().amax(1, keepdim=True)
    return torch.where(largest == 0, 1.0, largest / 127)


def split_product(x: Tensor, weight: Tensor, threshold: float, slip: str = "") -> Tensor:
    """Return LLM.int8()'s product, from decoded matrices.

    Slips: "all-integer" (no column goes), "lost" (the columns' own product), "entries" (only outlying entries go),
    "tokens" (rows go), "weights" (columns of the weight decide), "above" (> in the place of ≥), "scale-before" (row
    scales that know the outliers), "tensor" (one scale for each matrix), "decoded" (outlying weights from 8 bits).
    """
    large = x.abs() > threshold if slip == "above" else x.abs() >= threshold
    if slip == "weights":
        large = (weight.abs() >= threshold).any(0).expand_as(x)
    elif slip == "tokens":
        large = large.any(1, keepdim=True).expand_as(x)
    elif slip != "entries":
        large = large.any(0).expand_as(x)
    if slip == "all-integer":
        large = torch.zeros_like(large)
    high, rest = torch.where(large, x, 0.0), torch.where(large, 0.0, x)
    s, u = _row_scale(x if slip == "scale-before" else rest), _row_scale(weight)
    if slip == "tensor":
        s, u = rest.abs().max() / 127, weight.abs().max() / 127
    product = _decoded(rest, s) @ _decoded(weight, u).T
    if slip == "lost":
        return product
    return product + high @ (_decoded(weight, u) if slip == "decoded" else weight).T


def binary_neuron(x: Tensor, upstream: Tensor, slip: str = "") -> Tensor:
    """Return sign, probability of +1, and gradient, one above the other, number by number.

    Slips: "three" (sign(0) = 0), "turned" (the probability of −1), "logistic", "not-clipped", "everywhere" (the
    gradient is passed on beyond ±1), "inside" (not at ±1), "tanh", "half" (the derivative of the hard sigmoid).
    """
    rows = []
    for v, g in zip(x.tolist(), upstream.tolist(), strict=True):
        sign = 1.0 if v > 0 or (v == 0 and slip != "three") else 0.0 if v == 0 else -1.0
        share = (v + 1) / 2
        if slip != "not-clipped":
            share = min(max(share, 0.0), 1.0)
        share = 1 / (1 + math.exp(-v)) if slip == "logistic" else 1 - share if slip == "turned" else share
        passed = slip == "everywhere" or abs(v) < 1 or (abs(v) == 1 and slip != "inside")
        slope = 1 - math.tanh(v) ** 2 if slip == "tanh" else float(passed) * (0.5 if slip == "half" else 1)
        rows.append([sign, share, g * slope])
    return torch.tensor(rows, dtype=torch.float64).T


def sign_products(a: Tensor, b: Tensor, n: int, slip: str = "") -> Tensor:
    """Return the products of rows of signs, read off the text of binary numbers.

    Slips: "padding" (what lies behind the signs is compared, too), "whole" (and counted as signs), "once" (n − ones),
    "turned" (2·ones − n), "and" (in the place of XOR), "high-first" (bits of a byte turned round).
    """

    def read(row: list[int]) -> str:
        text = "".join(f"{byte:08b}" if slip == "high-first" else f"{byte:08b}"[::-1] for byte in row)
        return text if slip in ("padding", "whole") else text[:n]

    found = []
    for first in map(read, a.tolist()):
        for second in map(read, b.tolist()):
            pairs = list(zip(first, second, strict=True))
            ones = sum(p == q == "1" if slip == "and" else p != q for p, q in pairs)
            count = len(pairs) if slip == "whole" else n
            found.append({"once": count - ones, "turned": 2 * ones - count}.get(slip, count - 2 * ones))
    return torch.tensor(found, dtype=torch.float64).reshape(len(a), len(b))


def folded_signs(
    gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor, eps: float, n: int, slip: str = ""
) -> Tensor:
    """Return the sign of BatchNorm for every whole number from −n to n, (units, 2n + 1).

    Slips: "direction" (γ < 0 is like γ > 0), "edge" (−1 at the threshold itself where γ < 0), "nearest" (the
    threshold is rounded), "outside" (√v + ε), "no-root", "beta" (wrong sign), "no-mean", "constant" (γ = 0 is always
    +1).
    """
    root = {"outside": variance.sqrt() + eps, "no-root": variance + eps}.get(slip, (variance + eps).sqrt())
    centre = torch.zeros_like(mean) if slip == "no-mean" else mean
    shift = -beta if slip == "beta" else beta
    z = torch.arange(-n, n + 1, dtype=gamma.dtype)
    if slip == "nearest":
        there = (centre - shift * root / gamma).round()[:, None]
        positive = torch.where(gamma[:, None] < 0, z <= there, z >= there)
        positive = torch.where(gamma[:, None] == 0, beta[:, None] >= 0, positive)
    else:
        f = gamma[:, None] * (z - centre[:, None]) / root[:, None] + shift[:, None]
        if slip == "direction":
            f = torch.where(gamma[:, None] < 0, -f, f)
        positive = f >= 0
        if slip == "edge":
            positive = torch.where(gamma[:, None] < 0, f > 0, positive)
        if slip in ("constant", "beta"):
            positive = torch.where(gamma[:, None] == 0, (slip == "constant") | (beta[:, None] >= 0), positive)
    return torch.where(positive, 1.0, -1.0).double()


def outliers(weight: Tensor, log_density: float, slip: str = "") -> Tensor:
    """Return where the fitted Gaussian's log density is below ``log_density``, from its density.

    Slips: "sigmas" (beyond four standard deviations), "no-sigma" and "no-pi" (parts of the density), "rows" (a fit
    for each), "one-side" (only large positive weights), "no-mean", "body" (turned round), "sample" (σ with n − 1).
    """
    fit = weight if slip == "rows" else weight.reshape(1, -1)
    mean = torch.zeros(1, dtype=weight.dtype) if slip == "no-mean" else fit.mean(1, keepdim=True)
    spread = fit.sub(fit.mean(1, keepdim=True)).square().mean(1, keepdim=True).sqrt()
    if slip == "sample":
        spread = spread * (fit.shape[1] / (fit.shape[1] - 1)) ** 0.5
    z = (weight - mean) / spread
    if slip == "sigmas":
        return z.abs() > 4
    factor = (1.0 if slip == "no-pi" else (2 * math.pi) ** 0.5) * (1.0 if slip == "no-sigma" else spread)
    low = ((-z.square() / 2).exp() / factor).log() < log_density
    if slip == "one-side":
        low = low & (z > 0)
    return ~low if slip == "body" else low


def body_levels(body: Tensor, bits: int, slip: str = "") -> Tensor:
    """Return GOBO's levels, weight by weight.

    Slips: "width" (first bins of equal width), "start" (no step), "one" (one step), "squares" (until the squared
    error no longer falls), "after" (the levels with which the error no longer fell), "medians".
    """
    count, values = 2**bits, sorted(body.tolist())
    if slip == "width":
        low, width = values[0], (values[-1] - values[0]) / count
        places = [min(int((v - low) / width), count - 1) for v in values]
        bins = [[v for v, p in zip(values, places, strict=True) if p == k] for k in range(count)]
    else:
        bins = [values[k * len(values) // count : (k + 1) * len(values) // count] for k in range(count)]
    levels = [sum(part) / max(len(part), 1) for part in bins]
    power = 2 if slip == "squares" else 1
    error = math.inf
    for step in range(1000):
        distances = [[abs(v - level) for level in levels] for v in values]
        nearest = [row.index(min(row)) for row in distances]
        now = sum(min(row) ** power for row in distances)
        if now >= error or step == {"start": 0, "one": 1}.get(slip):
            break
        error, kept = now, levels
        bins = [[v for v, k in zip(values, nearest, strict=True) if k == j] for j in range(count)]
        if slip == "medians":
            centre = [part[(len(part) - 1) // 2] if part else 0.0 for part in bins]
        else:
            centre = [sum(part) / max(len(part), 1) for part in bins]
        levels = [c if part else old for c, part, old in zip(centre, bins, levels, strict=True)]
    chosen = levels if slip in ("start", "one", "after") else kept
    return torch.tensor(sorted(chosen), dtype=torch.float64)


def decoded_scales(scales: Tensor, size: int, slip: str = "") -> Tensor:
    """Return what doubly quantized scales decode to, one after the other.

    Slips: "no-mean" (nothing is taken away), "own-mean" (of each block), "lost-mean" (not added again), "tensor" (one
    largest difference), "signed" (the largest difference, not the largest size).
    """
    found = []
    for start in range(0, len(scales), size):
        part = scales[start : start + size]
        centre = {"own-mean": part.mean(), "no-mean": 0 * part.sum()}.get(slip, scales.mean())
        of = scales - centre if slip == "tensor" else part - centre
        largest = float((of if slip == "signed" else of.abs()).max())
        for rest in (part - centre).tolist():
            decoded = largest * round(127 * rest / largest) / 127 if largest else 0.0
            found.append(decoded + (0.0 if slip == "lost-mean" else float(centre)))
    return torch.tensor(found, dtype=torch.float64)


def scale_bits(count: int, size: int, slip: str = "") -> int:
    """Return the bits of doubly quantized scales.

    Slips: "full-blocks" (the last, shorter one is forgotten), "codes" (alone), "mean" (missing), "bytes".
    """
    largest = count // size if slip == "full-blocks" else len(range(0, count, size))
    bits = 8 * count + (0 if slip == "codes" else 32 * (largest + (slip != "mean")))
    return bits // 8 if slip == "bytes" else bits


def masked_loss(states: Tensor, projection: Tensor, readout: Tensor, labels: Tensor, switches: Tensor) -> Tensor:
    """Return each example's loss; switches (examples, positions, heads · dim) stand before the output projection."""
    hidden = ((states * switches) @ projection.T).relu().mean(1)
    return F.cross_entropy(hidden @ readout.T, labels, reduction="none")


def head_importance(
    states: Tensor, projection: Tensor, readout: Tensor, labels: Tensor, heads: int, slip: str = ""
) -> Tensor:
    """Return the importance of each head, from a switch before each number of its output.

    Slips: "batch" (the size after the mean over examples), "positions" (the size at each position), "entries" (of
    each number), "sum" (over examples), "gradient" (without the head's output), "woven" (head h has every heads-th
    number), "without" (the loss without the head, in the place of a derivative).
    """
    examples, positions, width = states.shape
    if slip == "without":
        ones = torch.ones(1, 1, heads, width // heads, dtype=states.dtype)
        before = masked_loss(states, projection, readout, labels, torch.ones_like(states))
        losses = []
        for h in range(heads):
            mask = ones.clone()
            mask[0, 0, h] = 0
            losses.append(masked_loss(states, projection, readout, labels, mask.reshape(1, 1, -1)) - before)
        return torch.stack(losses).abs().mean(1)
    switches = torch.ones_like(states, requires_grad=True)
    loss = masked_loss(states, projection, readout, labels, switches).sum()
    (slopes,) = torch.autograd.grad(loss, switches)
    slopes = slopes / states if slip == "gradient" else slopes
    shape = (examples, positions, width // heads, heads) if slip == "woven" else (examples, positions, heads, -1)
    slopes = slopes.reshape(shape)
    slopes = slopes.transpose(2, 3) if slip == "woven" else slopes
    if slip == "entries":
        return slopes.abs().sum((1, 3)).mean(0)
    if slip == "positions":
        return slopes.sum(3).abs().sum(1).mean(0)
    each = slopes.sum((1, 3))
    return each.mean(0).abs() if slip == "batch" else each.abs().sum(0) if slip == "sum" else each.abs().mean(0)


def expected_size(
    attention: Tensor,
    heads: Tensor,
    feed_forward: Tensor,
    units: Tensor,
    hidden: Tensor,
    head_dim: int,
    slip: str = "",
) -> Tensor:
    """Return the expected number of weights, head by head and unit by unit.

    Slips: "logistic" (not stretched), "sign" (of the stretch), "fine" (masks of layers do not count), "three"
    (matrices of a head), "one" (matrix of a unit), "rounded" (probabilities), "at-rest" (the mask without noise),
    "all-hidden".
    """
    shift = 2 / 3 * math.log(11)

    def on(log_alpha: Tensor) -> Tensor:
        if slip == "at-rest":
            return (log_alpha.sigmoid() * 1.2 - 0.1).clamp(0, 1)
        p = (log_alpha + {"logistic": 0.0, "sign": -shift}.get(slip, shift)).sigmoid()
        return p.round() if slip == "rounded" else p

    width = float(len(hidden)) if slip == "all-hidden" else float(on(hidden).sum())
    total = 0.0
    for layer in range(len(heads)):
        coarse = (1.0, 1.0) if slip == "fine" else (float(on(attention)[layer]), float(on(feed_forward)[layer]))
        for p in on(heads)[layer].tolist():
            total += (3 if slip == "three" else 4) * head_dim * coarse[0] * p * width
        for p in on(units)[layer].tolist():
            total += (1 if slip == "one" else 2) * coarse[1] * p * width
    return torch.tensor([total], dtype=torch.float64)
