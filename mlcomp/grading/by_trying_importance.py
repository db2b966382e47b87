"""What the checks of the exercises on importance, formats and distillation compare with: the definition, tried out.

``slip`` names a known mistake. A check computes its result as well, to draw inputs on which it shows, and to tell the
student of it.
"""

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional as F


def stored_bytes(out: int, inp: int, nonzeros: int, bits: int, slip: str = "") -> Tensor:
    """Return the bytes of dense, bitmask and CSR, part by part.

    Slips: "few-pointers" (one for each row), "no-pointers", "column-pointers", "mask-of-values" (a bit for each value
    that is kept), "no-values" (only what comes on top), "down" (broken bytes are dropped), "bits", "wide"
    (columns of 64 bits).
    """

    def whole(count: int) -> int:
        return count if slip == "bits" else count // 8 if slip == "down" else -(-count // 8)

    pointers = {"few-pointers": out, "no-pointers": 0, "column-pointers": inp + 1}.get(slip, out + 1)
    kept = 0 if slip == "no-values" else whole(nonzeros * bits)
    mask = whole(nonzeros if slip == "mask-of-values" else out * inp)
    csr = kept + whole((64 if slip == "wide" else 32) * nonzeros) + whole(32 * pointers)
    return torch.tensor([whole(out * inp * bits), kept + mask, csr], dtype=torch.float64)


def mask_bytes(matrix: Tensor, slip: str = "") -> Tensor:
    """Return the bits of a bitmask as bytes, read off the text of binary numbers.

    Slips: "high-first", "columns" (column by column), "zeros" (marks what is gone), "rows" (a byte ends with its
    row), "cut" (the last, broken byte is missing).
    """
    marks = (matrix == 0) if slip == "zeros" else (matrix != 0)
    lines = [marks.T.flatten() if slip == "columns" else marks.flatten()]
    texts = ["".join(str(int(mark)) for mark in line) for line in (marks if slip == "rows" else lines)]
    found = []
    for text in texts:
        for start in range(0, len(text) - 7 if slip == "cut" else len(text), 8):
            byte = text[start : start + 8].ljust(8, "0")
            found.append(int(byte if slip == "high-first" else byte[::-1], 2))
    return torch.tensor(found, dtype=torch.float64)


SPLITS = [(0, *rest) for rest in itertools.combinations(range(1, 8), 3)]


def kept_by_splits(weight: Tensor, slip: str = "") -> Tensor:
    """Return what 2:4 keeps of eight columns for each of the 35 ``SPLITS``; slips: see :func:`best_split`."""
    sizes = weight if slip == "signed" else weight.abs()
    total = torch.zeros(len(SPLITS), dtype=weight.dtype)
    others = [[c for c in range(8) if c not in split] for split in SPLITS]
    for stripes in [SPLITS] if slip == "one-stripe" else [SPLITS, others]:
        total += sizes[:, torch.tensor(stripes)].sort(-1).values[..., 2:].sum((0, 2))  # of (rows, splits, 4)
    return total


def best_split(weight: Tensor, slip: str = "") -> Tensor:
    """Return the four columns that share a stripe with column 0, itself first, in the best of the 35 splits.

    Slips: "signed", "one-stripe" (what the other one keeps is not counted), "swaps" (only one column for one),
    "worst", "second" (best), "natural" (no search). Where two splits are equally good: NaN.
    """
    kept = kept_by_splits(weight, slip) * (-1 if slip == "worst" else 1)
    if slip == "swaps":
        kept[[len({0, 1, 2, 3} & set(split)) == 2 for split in SPLITS]] = -torch.inf
    if slip == "second":
        kept[kept.argmax()] = -torch.inf
    if slip == "natural":
        kept[0] = torch.inf
    first, second = kept.topk(2).values
    best = SPLITS[int(kept.argmax())] if first > second + 1e-9 * abs(second) else [math.nan] * 4
    return torch.tensor(best, dtype=torch.float64)


def taylor_scores(
    normalized: Tensor, gamma: Tensor, beta: Tensor, readout: Tensor, labels: Tensor, slip: str = ""
) -> Tensor:
    """Return the normalized Taylor scores of channels, from a switch in front of each output.

    Slips: "inside" and "outside" (the absolute value), "raw", "sum" (of the scores, in the place of their norm),
    "activation", "gradient", "scale" (γ·∂C/∂γ: without what β gives).
    """
    z = gamma[:, None] * normalized + beta[:, None]
    switches = torch.ones_like(z, requires_grad=True)
    cost = F.cross_entropy((switches * z).relu().flatten(1) @ readout.T, labels, reduction="sum")
    (products,) = torch.autograd.grad(cost, switches)  # of each output with its gradient
    if slip == "activation":
        products = z
    elif slip == "gradient":
        products = products / z
    elif slip == "scale":
        products = products * (gamma[:, None] * normalized / z)
    if slip == "inside":
        scores = products.abs().mean((0, 2))
    elif slip == "outside":
        scores = products.mean((0, 2)).abs()
    else:
        scores = products.mean(2).abs().mean(0)
    if slip == "raw":
        return scores
    return scores / (scores.sum() if slip == "sum" else scores.norm())


def early_damage(weight: Tensor, gradient: Tensor, curvature: Tensor, slip: str = "") -> Tensor:
    """Return E(0) − min E along each weight, from the loss at three places.

    Slips: "obd" (no gradient), "from-here" (E(0) − E(w)), "sign" (of the gradient), "rest" (E(w) − min E alone).
    """

    def loss(change: Tensor) -> Tensor:
        slope = -gradient if slip == "sign" else 0 * gradient if slip == "obd" else gradient
        return slope * change + curvature / 2 * change.square()

    one = torch.ones_like(weight)
    bend, rise = loss(one) + loss(-one), (loss(one) - loss(-one)) / 2
    gone, least = loss(-weight), loss(-rise / bend)
    return gone if slip == "from-here" else -least if slip == "rest" else gone - least


def fisher_solve(gradients: Tensor, damping: float, x: Tensor, slip: str = "") -> Tensor:
    """Return F⁻¹x with the whole matrix F = λI + (1/m)·Σ ggᵀ.

    Slips: "no-mean" (the sum of ggᵀ), "last" (the last gradient is missing), "product" (Fx), "scale" (λ is not
    divided by at the end), "sign", "diagonal".
    """
    count = 1 if slip == "no-mean" else len(gradients)
    rows = gradients[:-1] if slip == "last" else gradients
    fisher = damping * torch.eye(len(x), dtype=x.dtype) + rows.T @ rows / count
    if slip == "product":
        return fisher @ x
    if slip == "diagonal":
        return x / fisher.diagonal()
    result = torch.linalg.solve(fisher, x)
    if slip == "sign":
        result = 2 * x / damping - result
    return damping * result if slip == "scale" else result


def joint_removal(weight: Tensor, inverse: Tensor, group: list[int], slip: str = "") -> Tensor:
    """Return the weights after the best removal of a group, and in the last place its cost.

    Slips: "sum" (of single steps), "in-turn" (single steps one after the other, with the old inverse), "no-update",
    "sign", "sub-matrix" (the block of F in the place of the inverse of F⁻¹'s), "half" (twice the cost).
    """
    fisher, rest = torch.linalg.inv(inverse), [i for i in range(len(weight)) if i not in group]
    change = torch.zeros_like(weight)
    change[group] = -weight[group]
    if slip in ("sum", "in-turn"):
        now = weight.clone()
        for q in group:
            now -= (now if slip == "in-turn" else weight)[q] / inverse[q, q] * inverse[:, q]
        change[rest] = (now - weight)[rest]
    elif slip == "sub-matrix":
        change[rest] = -(inverse[:, group] @ fisher[group][:, group] @ weight[group])[rest]
    elif slip != "no-update":
        change[rest] = torch.linalg.solve(fisher[rest][:, rest], fisher[rest][:, group] @ weight[group])
        change[rest] *= -1 if slip == "sign" else 1
    cost = (1.0 if slip == "half" else 0.5) * float(change @ fisher @ change)
    new = (weight + change).index_fill(0, torch.tensor(group), 0)
    return torch.cat([new, torch.tensor([cost], dtype=weight.dtype)])


def sparse_mlp(
    calibration: Tensor, x: Tensor, gate: Tensor, up: Tensor, down: Tensor, share: float, slip: str = ""
) -> Tensor:
    """Return the outputs of a gated MLP whose small activations are zero, one neuron after the other.

    Slips: "signed" (the quantile of v), "before" (sizes before SiLU), "product" (sizes of v·u), "relu", "own" (the
    threshold of x), "neuron" (a threshold for each neuron), "above", "dense".
    """

    def act(z: Tensor) -> Tensor:
        return z.clamp(min=0) if slip == "relu" else z / (1 + torch.exp(-z))

    def sizes(tokens: Tensor) -> Tensor:
        z = tokens @ gate.T
        of = z if slip == "before" else act(z) * (tokens @ up.T if slip == "product" else 1.0)
        return of if slip == "signed" else of.abs()

    known = sizes(x if slip == "own" else calibration)
    own, of_layer = sizes(x).abs(), known.flatten().sort().values
    result = torch.zeros(len(x), len(down), dtype=x.dtype)
    for neuron in range(len(gate)):
        ordered = known[:, neuron].sort().values if slip == "neuron" else of_layer
        threshold = ordered[round(share * len(ordered))]
        keep = own[:, neuron] < threshold if slip == "above" else (own[:, neuron] >= threshold) | (slip == "dense")
        value = torch.where(keep, act(x @ gate[neuron]), 0.0)
        result += torch.outer(value * (x @ up[neuron]), down[:, neuron])
    return result


def distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, temperature: float, slip: str = ""
) -> Tensor:
    """Return (1 − α)·CE + αT²·KL(q ‖ p), one example after the other, in plain numbers.

    Slips: "no-square", "once" (T in the place of T²), "classes" (divided by their number, too), "reverse",
    "one-sided" (the student's logits are not divided by T), "soft-labels" (CE at T as well), "alpha" (turned round),
    "sum", "cross-entropy" (in the place of KL).
    """

    def probabilities(logits: Tensor, t: float) -> list[float]:
        powers = [math.exp(v / t) for v in logits.tolist()]
        return [p / sum(powers) for p in powers]

    share = 1 - alpha if slip == "alpha" else alpha
    factor = {"no-square": 1.0, "once": temperature}.get(slip, temperature**2)
    total = 0.0
    for s, t, label in zip(student, teacher, labels.tolist(), strict=True):
        q, p = probabilities(t, temperature), probabilities(s, 1.0 if slip == "one-sided" else temperature)
        p, q = (q, p) if slip == "reverse" else (p, q)
        soft = sum(b * (math.log(b) * (slip != "cross-entropy") - math.log(a)) for a, b in zip(p, q, strict=True))
        soft /= len(p) if slip == "classes" else 1
        hard = -math.log(probabilities(s, temperature if slip == "soft-labels" else 1.0)[label])
        total += (1 - share) * hard + share * factor * soft
    return torch.tensor([total if slip == "sum" else total / len(labels)], dtype=torch.float64)
