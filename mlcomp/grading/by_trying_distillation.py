"""What the checks of the exercises on distillation compare with: the definition, tried out.

``slip`` names a known mistake. A check computes its result as well, to draw inputs on which it shows, and to tell the
student of it.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def pseudo_labels(probabilities: Tensor, k: int, slip: str = "") -> Tensor:
    """Return the label of each chosen example, −1 elsewhere, class by class.

    Slips: "overall" (as many, but the most confident of all), "column" (a class's largest probabilities, whatever is
    more likely), "everything", "least", "margin" (the lead over the second class), "equal" (as many for each class as
    the rarest one has), "one-more" (k + 1).
    """
    rows = probabilities.tolist()
    classes = len(rows[0])
    best = [row.index(max(row)) for row in rows]

    def trust(i: int) -> float:
        first, second = sorted(rows[i], reverse=True)[:2]
        return first - second if slip == "margin" else first

    groups = [[i for i in range(len(rows)) if best[i] == c] for c in range(classes)]
    number = {"everything": len(rows), "one-more": k + 1}.get(slip, k)
    if slip == "equal":
        number = min(k, *map(len, groups))
    result = torch.full((len(rows),), -1.0, dtype=torch.float64)
    if slip == "overall":
        for i in sorted(range(len(rows)), key=trust, reverse=True)[: k * classes]:
            result[i] = best[i]
        return result
    for c, group in enumerate(groups):
        if slip == "column":
            order = sorted(range(len(rows)), key=[row[c] for row in rows].__getitem__, reverse=True)
        else:
            order = sorted(group, key=trust, reverse=slip != "least")
        result[order[:number]] = float(c)
    return result


def teacher_gradient(
    student: Tensor,
    inputs: Tensor,
    drawn: Tensor,
    teacher: Tensor,
    labelled: Tensor,
    labels: Tensor,
    lr: float,
    slip: str = "",
) -> Tensor:
    """Return the gradient by the teacher's logits, both gradients by automatic differentiation.

    Slips: "sign" (new − old), "new" (the loss after the step alone), "up" (the student's step goes up),
    "not-labelled" (the student is judged by the drawn labels), "soft" (the teacher's own probabilities in the place
    of what was drawn), "bare" (without the coefficient), "sum" (over examples).
    """
    weight = student.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(inputs @ weight.T, drawn), weight)
    moved = student + (lr if slip == "up" else -lr) * slope
    judges = (inputs, drawn) if slip == "not-labelled" else (labelled, labels)

    def judged(w: Tensor) -> Tensor:
        return F.cross_entropy(judges[0] @ w.T, judges[1])

    gain = judged(student) - judged(moved)
    coefficient = {"sign": -gain, "new": judged(moved), "bare": torch.ones_like(gain)}.get(slip, gain)
    z = teacher.clone().requires_grad_()
    target = z.softmax(1) if slip == "soft" else F.one_hot(drawn, teacher.shape[1]).double()
    loss = -(target * z.log_softmax(1)).sum(1)
    (gradient,) = torch.autograd.grad(loss.sum() if slip == "sum" else loss.mean(), z)
    return coefficient * gradient


def soft_gradient(student: Tensor, teacher: Tensor, temperature: float, slip: str = "") -> Tensor:
    """Return the gradient of T² KL by the student's logits, by automatic differentiation; the limit for T = ∞.

    Slips: "sign", "no-square" (T² is missing), "square" (T² in front of p − q), "sum" (over examples), "classes"
    (mean over them, too), "one-sided" (only the teacher is softened); for T = ∞ "not-centred", "all-classes" (not
    divided by them).
    """
    count = 1 if slip == "sum" else len(student)
    if slip == "classes":
        count *= student.shape[1]
    if math.isinf(temperature):
        difference = student - teacher
        if slip != "not-centred":
            difference = difference - difference.mean(1, keepdim=True)
        part = difference if slip == "all-classes" else difference / student.shape[1]
        return (-part if slip == "sign" else part) / count
    z = student.clone().requires_grad_()
    q = (teacher / temperature).softmax(1)
    log_p = (z if slip == "one-sided" else z / temperature).log_softmax(1)
    (gradient,) = torch.autograd.grad((q * (q.log() - log_p)).sum(), z)
    square = temperature ** {"no-square": 0, "square": 3, "one-sided": 1}.get(slip, 2)
    return (-gradient if slip == "sign" else gradient) * square / count


def confidence_weighted(student: Tensor, teacher: Tensor, labels: Tensor, slip: str = "") -> Tensor:
    """Return the loss of CWTM, example by example.

    Slips: "mean" (weights are not divided by their sum, but by the number), "sum" (by nothing), "of-the-label" (the
    teacher's probability of the right class), "own" (the student's confidence), "logits" (the largest logit), "plain"
    (no weights), "soft" (soft targets in the place of labels).
    """
    total, shared = 0.0, 0.0
    for z, t, label in zip(student, teacher, labels.tolist(), strict=True):
        p, q = z.softmax(0), t.softmax(0)
        weight = {"of-the-label": q[label], "own": p.max(), "logits": t.max(), "plain": torch.ones(())}.get(
            slip, q.max()
        )
        loss = -(q * p.log()).sum() if slip == "soft" else -p[label].log()
        total, shared = total + float(weight * loss), shared + float(weight)
    return torch.tensor([total / {"mean": len(labels), "sum": 1}.get(slip, shared)], dtype=torch.float64)


def ensemble(logits: Tensor, slip: str = "") -> Tensor:
    """Return the logarithm of the networks' mean probability.

    Slips: "logits" (the mean of these), "logarithms" (the mean of these), "probabilities" (no logarithm), "sum" (not
    divided by the number of networks), "first-axis" (softmax over networks), "largest" (of the networks'
    probabilities).
    """
    if slip == "logits":
        return logits.mean(0).log_softmax(-1)
    if slip == "logarithms":
        return logits.log_softmax(-1).mean(0)
    each = logits.softmax(0 if slip == "first-axis" else -1)
    if slip == "largest":
        return each.amax(0).log()
    mean = each.sum(0) if slip == "sum" else each.mean(0)
    return mean if slip == "probabilities" else mean.log()


def word_loss(student: Tensor, teacher: Tensor, real: Tensor, slip: str = "") -> Tensor:
    """Return the word-level loss, word by word.

    Slips: "padding" (counts), "places" (padding is left out, but divided by), "sentences" (the mean of their means),
    "vocabulary" (divided by it, too), "best" (the teacher's likeliest word only), "reverse", "divergence" (less the
    teacher's entropy), "sum" (over words).
    """
    sentences = []
    for s, t, mask in zip(student, teacher, real.tolist(), strict=True):
        words = []
        for place in range(len(mask)):
            if mask[place] or slip == "padding":
                p, q = s[place].softmax(0), t[place].softmax(0)
                q = F.one_hot(q.argmax(), len(q)).double() if slip == "best" else q
                p, q = (q, p) if slip == "reverse" else (p, q)
                entropy = -(q * q.log()).sum() if slip == "divergence" else 0
                words.append(float(-(q * p.log()).sum() - entropy))
        sentences.append(words)
    words = list(itertools.chain(*sentences))
    if slip == "sentences":
        value = sum(sum(words) / len(words) for words in sentences) / len(sentences)
    else:
        value = sum(words) / {"sum": 1, "places": real.numel()}.get(slip, len(words))
    return torch.tensor([value / (student.shape[2] if slip == "vocabulary" else 1)], dtype=torch.float64)


def beam_step(scores: Tensor, following: Tensor, finished: Tensor, end: int, slip: str = "") -> Tensor:
    """Return scores, parents and words of the best continuations, one above the other, from a list of all.

    Slips: "each" (the best of each hypothesis), "fresh" (the scores so far are lost), "go-on" (finished ones are
    continued), "gone" (finished ones are dropped), "end-again" (finished ones pay for another end), "copies"
    (finished ones stand there once for each word), "least".
    """
    width, words = following.shape
    candidates = []
    for parent in range(width):
        before = 0.0 if slip == "fresh" else float(scores[parent])
        for word in range(words):
            cost = float(following[parent, word])
            if finished[parent] and slip != "go-on":
                if slip == "gone" or (word != end and slip != "copies"):
                    continue
                before, cost = float(scores[parent]), cost if slip == "end-again" else 0.0
            candidates.append((before + cost, parent, word))
    candidates.sort(key=lambda candidate: candidate[0], reverse=slip != "least")
    if slip == "each":
        candidates = [next(c for c in candidates if c[1] == parent) for parent in range(width)]
        candidates.sort(reverse=True)
    return torch.tensor(candidates[:width], dtype=torch.float64).T


def cosine_loss(student: Tensor, teacher: Tensor, real: Tensor, slip: str = "") -> Tensor:
    """Return the mean of 1 − cosine, word by word.

    Slips: "padding", "places" (padding is left out, but divided by), "sentences" (the mean of their means), "one" (of
    all words as one long vector), "dot" (not divided by the lengths), "similarity" (not 1 −), "sum".
    """
    if slip == "one":
        a, b = student[real].flatten(), teacher[real].flatten()
        return 1 - (a @ b / (a.norm() * b.norm()))[None]
    sentences = []
    for s, t, mask in zip(student, teacher, real.tolist(), strict=True):
        words = []
        for a, b, counts in zip(s, t, mask, strict=True):
            if counts or slip == "padding":
                cosine = float(a @ b) / (1 if slip == "dot" else float(a.norm() * b.norm()))
                words.append(cosine if slip == "similarity" else 1 - cosine)
        sentences.append(words)
    words = list(itertools.chain(*sentences))
    if slip == "sentences":
        value = sum(sum(words) / len(words) for words in sentences) / len(sentences)
    else:
        value = sum(words) / {"sum": 1, "places": real.numel()}.get(slip, len(words))
    return torch.tensor([value], dtype=torch.float64)


def _longest(a: Sequence[str], b: Sequence[str], run: bool) -> int:
    """Return the length of the longest common subsequence, or of the longest common run."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, first in enumerate(a):
        for j, second in enumerate(b):
            skipped = 0 if run else max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = table[i][j] + 1 if first == second else skipped
    return max(map(max, table))


def rouge(candidate: str, old: str, slip: str = "") -> float:
    """Return the F-measure of ROUGE-L; slips: see :func:`kept_texts`."""
    a, b = candidate.split(), old.split()
    if slip == "bag":
        common = sum(min(a.count(word), b.count(word)) for word in {*a})
    else:
        common = _longest(a, b, run=slip == "run")
    return {"recall": common / len(b), "precision": common / len(a)}.get(slip, 2 * common / (len(a) + len(b)))


def kept_texts(texts: list[str], limit: float, slip: str = "") -> Tensor:
    """Return 1 for each text that is kept, else 0.

    Slips: "recall" and "precision" (in the place of F), "run" (of words in a row), "bag" (order does not count),
    "rejected" (these are compared with, too), "last" (only the last kept one is), "turned" (keeps what is alike).
    """
    kept: list[str] = []
    seen: list[str] = []
    flags = []
    for text in texts:
        pool = seen if slip == "rejected" else kept[-1:] if slip == "last" else kept
        new = all(rouge(text, old, slip) <= limit for old in pool)
        if slip == "turned" and seen:
            new = not new
        flags.append(float(new))
        kept += [text] if new else []
        seen.append(text)
    return torch.tensor(flags, dtype=torch.float64)


Step = list[Any]  # name and arguments


def chain(steps: list[Step], slip: str = "") -> list[str]:
    """Return the fingerprint of each step.

    Slips: "alone" (a step knows nothing of those before it), "unsorted" (keys stand as they were given), "no-name",
    "no-arguments", "values" (without their keys), "python" (Python's way to write things), "short" (eight digits),
    "earlier" (all fingerprints so far, not the last).
    """
    found: list[str] = []
    write: Callable[[Any], str] = repr if slip == "python" else lambda x: json.dumps(x, sort_keys=slip != "unsorted")
    for name, arguments in steps:
        given = [*arguments.values()] if slip == "values" else arguments
        before: Any = found if slip == "earlier" else found[-1] if found and slip != "alone" else ""
        parts = [*([] if slip == "no-name" else [name]), *([] if slip == "no-arguments" else [given]), before]
        digest = hashlib.sha256(write(parts).encode()).hexdigest()
        found.append(digest[:8] if slip == "short" else digest)
    return found


def chain_numbers(steps: list[Step], slip: str = "") -> Tensor:
    """Return the fingerprints of :func:`chain` as numbers, to compare them."""
    return torch.tensor([[int(c, 16) for c in text] for text in chain(steps, slip)], dtype=torch.float64)
