"""What the checks of the exercises on votes, filters and trustworthiness compare with: the definition, tried out.

``slip`` names a known mistake. A check computes its result as well, to draw inputs on which it shows, and to tell the
student of it.
"""

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional as F


def vote_accuracy(p: Tensor, n: int, slip: str = "") -> Tensor:
    """Return how often answer 0 wins the vote of n samples, by going through all of their outcomes.

    Slips: "majority" (more than half of n), "ties-lost", "ties-won", "ties-half" (however many share the lead),
    "no-coefficients" (each composition of votes counts once), "none-votes" (no answer is an answer, too), "nobody"
    (chance decides where nobody votes).
    """
    shares = [*p.tolist(), 1 - float(p.sum())]
    answers = len(shares) if slip == "none-votes" else len(p)
    total, seen = 0.0, set()
    for outcome in itertools.product(range(len(shares)), repeat=n):
        votes = [outcome.count(k) for k in range(answers)]
        everything = (*votes, outcome.count(len(p)))
        if slip == "no-coefficients" and everything in seen:
            continue
        seen.add(everything)
        leaders = votes.count(max(votes)) if votes[0] == max(votes) else 0
        if not max(votes):
            leaders = len(p) if slip == "nobody" else 0
        won = 1 / leaders if leaders else 0.0
        if slip == "majority":
            won = float(2 * votes[0] > n)
        elif leaders > 1 and max(votes):
            won = {"ties-lost": 0.0, "ties-won": 1.0, "ties-half": 0.5}.get(slip, won)
        total += won * math.prod(shares[k] for k in outcome)
    return torch.tensor([total], dtype=torch.float64)


def _stated(text: str, slip: str) -> str | float | None:
    """Return the answer that a text states."""
    if "####" not in text:
        return None
    answer = text.split("####")[1 if slip == "first-mark" else -1].strip()
    if slip == "as-text":
        return answer
    try:
        return float(answer)
    except ValueError:
        return None


def kept_rationales(samples: list[list], labels: list[int], k: int, slip: str = "") -> Tensor:
    """Return 1 for each sample that is kept, else 0.

    Slips: "first-mark" (the answer behind the first mark), "as-text" (18.0 is not 18), "anywhere" (the label stands
    somewhere in the text), "twice" (a text is kept again), "across" (a text of another question is not kept either),
    "no-limit", "limit-first" (only the first k samples of a question are looked at), "overall" (k in all).
    """
    kept: list[tuple[int, str]] = []
    looked: dict[int, int] = {}
    flags = []
    for question, text in samples:
        label = str(labels[question]) if slip == "as-text" else float(labels[question])
        right = _stated(text, slip) == label
        if slip == "anywhere":
            right = str(labels[question]) in text.split()
        looked[question] = looked.get(question, 0) + 1
        if slip != "twice":
            known = [t for q, t in kept if q == question or slip == "across"]
            right = right and text not in known
        count = looked[question] - 1 if slip == "limit-first" else sum(q == question for q, _ in kept)
        if slip == "overall":
            count = len(kept)
        right = right and (count < k or slip == "no-limit")
        if right:
            kept.append((question, text))
        flags.append(float(right))
    return torch.tensor(flags, dtype=torch.float64)


def calibration_error(confidence: Tensor, right: Tensor, bins: int, slip: str = "") -> Tensor:
    """Return the expected calibration error, bin by bin.

    Slips: "left" (an edge belongs to the bin above it), "unweighted" (the mean over bins that hold anything),
    "signed", "middle" (of a bin, in the place of its mean confidence), "largest", "squared", "zero-lost" (0 is in no
    bin), "counts" (bins with equally many predictions).
    """
    pairs = list(zip(confidence.tolist(), right.tolist(), strict=True))
    gaps, shares = [], []
    ordered = sorted(pairs)
    for m in range(bins):
        low, high = m / bins, (m + 1) / bins
        inside = [
            (c, r)
            for c, r in pairs
            if (low <= c < high or c == high == 1 if slip == "left" else low < c <= high)
            or (c == 0 and m == 0 and slip != "zero-lost")
        ]
        if slip == "counts":
            inside = ordered[m * len(pairs) // bins : (m + 1) * len(pairs) // bins]
        if inside:
            accuracy = sum(r for _, r in inside) / len(inside)
            mean = (low + high) / 2 if slip == "middle" else sum(c for c, _ in inside) / len(inside)
            gap = accuracy - mean
            gaps.append({"signed": gap, "squared": gap**2}.get(slip, abs(gap)))
            shares.append(1.0 if slip == "unweighted" else len(inside) / len(pairs))
    if slip == "largest":
        return torch.tensor([max(gaps)], dtype=torch.float64)
    total = sum(g * s for g, s in zip(gaps, shares, strict=True))
    return torch.tensor([total / (len(gaps) if slip == "unweighted" else 1)], dtype=torch.float64)


def attacked(first: Tensor, second: Tensor, x: Tensor, labels: Tensor, epsilon: float, slip: str = "") -> Tensor:
    """Return the fast-gradient-sign attack on a network of two layers, by automatic differentiation.

    Slips: "down" (the loss falls), "gradient" (without its sign), "unit" (of length ε), "not-clipped", "predicted"
    (the network's own answers are the labels), "no-relu" (as if all hidden units were on), "reset" (clipped to
    0 … ε).
    """
    leaf = x.clone().requires_grad_()
    hidden = leaf @ first.T
    logits = (hidden if slip == "no-relu" else hidden.relu()) @ second.T
    target = logits.argmax(1) if slip == "predicted" else labels
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, target, reduction="sum"), leaf)
    step = gradient.sign()
    if slip == "gradient":
        step = gradient
    elif slip == "unit":
        step = gradient / gradient.norm(dim=1, keepdim=True)
    moved = x - epsilon * step if slip == "down" else x + epsilon * step
    if slip == "not-clipped":
        return moved
    return moved.clamp(0, epsilon if slip == "reset" else 1)


def beyond_accuracy(before: Tensor, after: Tensor, labels: Tensor, groups: Tensor, slip: str = "") -> Tensor:
    """Return the worst subgroup's accuracy, the largest fall of one, and the share of changed predictions.

    Slips: "old" (the worst accuracy before), "empty" (a number that no example has is a group of accuracy 0),
    "in-the-worst" (the fall of the worst group), "overall" (the fall of all together), "distance" (of the two
    accuracies, as changed), "lost" (changed from right to wrong), "errors" (changed among the wrong ones now).
    """
    rows = list(zip(before.tolist(), after.tolist(), labels.tolist(), groups.tolist(), strict=True))
    old, new = {}, {}
    for g in range(int(groups.max()) + 1):
        members = [row for row in rows if row[3] == g]
        if members or slip == "empty":
            old[g] = sum(a == y for a, _, y, _ in members) / max(len(members), 1)
            new[g] = sum(b == y for _, b, y, _ in members) / max(len(members), 1)
    worst = min(old if slip == "old" else new, key=(old if slip == "old" else new).__getitem__)
    least = old[worst] if slip == "old" else new[worst]
    accuracy = [sum(row[k] == row[2] for row in rows) / len(rows) for k in (0, 1)]
    fall = max(old[g] - new[g] for g in old)
    fall = {"in-the-worst": old[worst] - new[worst], "overall": accuracy[0] - accuracy[1]}.get(slip, fall)
    changed = sum(a != b for a, b, _, _ in rows) / len(rows)
    if slip == "distance":
        changed = abs(accuracy[0] - accuracy[1])
    elif slip == "lost":
        changed = sum(a == y != b for a, b, y, _ in rows) / len(rows)
    elif slip == "errors":
        changed = sum(a != b for a, b, y, _ in rows if b != y) / max(1, sum(b != y for _, b, y, _ in rows))
    return torch.tensor([least, fall, changed], dtype=torch.float64)
