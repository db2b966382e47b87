"""What the checks of the exercises on distilling language models compare with: the definition, tried out.

``slip`` names a known mistake. A check computes its result as well, to draw inputs on which it shows, and to tell the
student of it.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def kl_gradients(z: Tensor, p: Tensor, slip: str = "") -> Tensor:
    """Return the gradients of KL(p ‖ q) and KL(q ‖ p) by the logits of q, one above the other.

    Slips: "swapped", "sign", "no-mean" (q log(q/p) for the reverse), "by-probabilities" (not by logits), "mean" (over
    examples), "no-entropy" (the reverse without the student's entropy).
    """
    leaf = (z.softmax(1) if slip == "by-probabilities" else z).clone().requires_grad_()
    q = leaf if slip == "by-probabilities" else leaf.softmax(1)
    forward = (p * (p / q).log()).sum()
    reverse = -(q * p.log()).sum() if slip == "no-entropy" else (q * (q / p).log()).sum()
    (first,), (second,) = (torch.autograd.grad(loss, leaf, retain_graph=True) for loss in (forward, reverse))
    if slip == "no-mean":
        second = (q * (q / p).log()).detach()
    pair = (second, first) if slip == "swapped" else (first, second)
    return torch.stack(pair) * {"sign": -1.0, "mean": 1 / len(z)}.get(slip, 1.0)


def reverse_minima(x: Tensor, log_p: Tensor, mu: Tensor, sigma: Tensor, slip: str = "") -> Tensor:
    """Return the places (i, j) of all local minima of KL(N(mu_i, sigma_j²) ‖ p) inside a table.

    Slips: "forward", "global" (the least one), "edges" (they count, too), "along-means" (neighbours of the same
    sigma only), "no-entropy" (the cross-entropy).
    """
    step = float(x[1] - x[0])
    table = []
    for m in mu:
        standard = (x - m) / sigma[:, None]
        log_q = -(standard**2) / 2 - sigma[:, None].log() - math.log(2 * math.pi) / 2
        if slip == "forward":
            table.append((log_p.exp() * (log_p - log_q)).sum(1) * step)
        else:
            table.append((log_q.exp() * ((0 if slip == "no-entropy" else log_q) - log_p)).sum(1) * step)
    values = torch.stack(table)
    if slip == "global":
        return torch.tensor([divmod(int(values.argmin()), len(sigma))], dtype=torch.float64)
    near = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    if slip == "along-means":
        near = [(-1, 0), (1, 0)]
    padded = torch.nn.functional.pad(values, (1, 1, 1, 1), value=math.inf)
    shape = values.shape
    lowest = torch.ones(shape, dtype=torch.bool)
    for i, j in near:
        lowest &= values < padded[1 + i : 1 + i + shape[0], 1 + j : 1 + j + shape[1]]
    if slip != "edges":
        lowest[[0, -1]] = False
        lowest[:, [0, -1]] = False
    return lowest.nonzero().double()


def future_rewards(log_p: Tensor, log_q: Tensor, lengths: Tensor, slip: str = "") -> Tensor:
    """Return the mean reward of the tokens after each, 0 where there is none.

    Slips: "own" (the token's own reward counts, too), "sum", "past" (before each), "sign" (log q/p), "padding" (what
    stands behind the end counts), "all" (divided by the length), "one-more" (divided by one more).
    """
    found = torch.zeros_like(log_p)
    for row, length in enumerate(lengths.tolist()):
        rewards = (log_p[row] - log_q[row]).tolist()
        for t in range(length):
            after = rewards[t if slip == "own" else t + 1 : None if slip == "padding" else length]
            if slip == "past":
                after = rewards[:t]
            if after:
                count = {"sum": 1, "all": length, "one-more": len(after) + 1}.get(slip, len(after))
                found[row, t] = sum(after) / count
    return -found if slip == "sign" else found


def minillm_gradient(z: Tensor, log_p: Tensor, drawn: Tensor, slip: str = "") -> Tensor:
    """Return the gradient by the logits of one drawn output, by automatic differentiation.

    Slips: "twice" (a token's own reward is in both parts), "no-step" (the policy gradient alone), "no-future" (the
    single steps alone), "plain" (R_t − 1, not decomposed), "plus" (future rewards with the wrong sign), "forward"
    (KL(p ‖ q) for the single steps), "past" (rewards before a token).
    """
    leaf = z.clone().requires_grad_()
    log_q = leaf.log_softmax(1)
    places = torch.arange(len(drawn))
    own = log_q[places, drawn]
    rewards = (log_p[places, drawn] - own).detach().tolist()
    loss = torch.zeros((), dtype=z.dtype)
    for t in range(len(drawn)):
        future = sum(rewards[:t] if slip == "past" else rewards[t if slip in ("twice", "plain") else t + 1 :])
        if slip == "plain":
            loss = loss - (future - 1) * own[t]
            continue
        if slip != "no-future":
            loss = loss - (-future if slip == "plus" else future) * own[t]
        if slip == "forward":
            loss = loss - (log_p[t].exp() * log_q[t]).sum()
        elif slip != "no-step":
            loss = loss + (log_q[t].exp() * (log_q[t] - log_p[t])).sum()
    return torch.autograd.grad(loss, leaf)[0]


def mixture_weights(log_p: Tensor, log_q: Tensor, alpha: float, slip: str = "") -> Tensor:
    """Return the weight of each token's term, the product of q over the mixture up to it.

    Slips: "token" (of one token alone), "inverse", "geometric" (logarithms are mixed), "swapped" (α is the student's
    share), "exclusive" (up to the token before), "whole" (all tokens).
    """
    share = 1 - alpha if slip == "swapped" else alpha
    rows = []
    for p, q in zip(log_p.exp().tolist(), log_q.exp().tolist(), strict=True):
        ratios = [
            b / (a**share * b ** (1 - share) if slip == "geometric" else share * a + (1 - share) * b)
            for a, b in zip(p, q, strict=True)
        ]
        if slip == "inverse":
            ratios = [1 / r for r in ratios]
        last = {"exclusive": -1, "whole": len(p)}
        rows.append(
            [r if slip == "token" else math.prod(ratios[: t + 1 + last.get(slip, 0)]) for t, r in enumerate(ratios)]
        )
    return torch.tensor(rows, dtype=torch.float64)


def in_context_loss(
    student: Tensor, teacher: Tensor, tokens: Tensor, kind: Tensor, alpha: float, beta: float, slip: str = ""
) -> Tensor:
    """Return the loss of in-context distillation, token by token.

    Slips: "unshifted" (a token is predicted at its own place), "everything" (all tokens count as labels), "last" (of
    each sequence the last label only), "one-mean" (labels and text together), "swapped" (α and 1 − α), "hard",
    "soft" (one part alone), "reverse", "sum" (over tokens), "beta" (text counts fully).
    """
    parts: dict[int, list[float]] = {1: [], 2: []}
    for row, marks in enumerate(kind.tolist()):
        labels = [t for t, mark in enumerate(marks) if mark == 1 and t]
        for t in range(1, len(marks)):
            mark = 1 if slip == "everything" and marks[t] == 0 else marks[t]
            if not mark or (slip == "last" and mark == 1 and t != labels[-1]):
                continue
            place = t if slip == "unshifted" else t - 1
            p, q = student[row, place].softmax(0), teacher[row, place].softmax(0)
            hard = -p[tokens[row, t]].log()
            soft = (p * (p / q).log()).sum() if slip == "reverse" else (q * (q / p).log()).sum()
            share = {"swapped": 1 - alpha, "hard": 0.0, "soft": 1.0}.get(slip, alpha)
            parts[mark].append(float((1 - share) * hard + share * soft))
    first, second = (parts[m] for m in (1, 2))
    weight = 1.0 if slip == "beta" else beta
    if slip == "one-mean":
        value = (sum(first) + weight * sum(second)) / (len(first) + len(second))
    else:
        value = sum(
            w * sum(part) / (1 if slip == "sum" else len(part))
            for w, part in ((1.0, first), (weight, second))
            if part
        )
    return torch.tensor([value], dtype=torch.float64)


def instruction_targets(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], end: int, longest: int, slip: str = ""
) -> Tensor:
    """Return the target at each place of each row, −100 where nothing is learned.

    Slips: "unshifted" (each place has its own token), "prompt" (is learned, too), "no-end" (the end is not), "fill"
    (what fills a row is learned), "first" (the first token of a response is not), "end-after-cut" (also a response
    that was cut short ends).
    """
    rows = []
    for prompt, response in zip(prompts, responses, strict=True):
        tokens = [*prompt, *response, end][: longest + 1]
        if slip == "end-after-cut":
            tokens = [*tokens[:longest], end] if len(tokens) > longest else tokens
        learned = [t >= len(prompt) or slip == "prompt" for t in range(len(tokens))]
        if slip == "first" and len(prompt) < len(tokens):
            learned[len(prompt)] = False
        if slip == "no-end" and len(tokens) == len(prompt) + len(response) + 1:
            learned[-1] = False
        row = [token if counts else -100 for token, counts in zip(tokens, learned, strict=True)]
        rows.append(row[:-1] if slip == "unshifted" else row[1:])
    width = max(map(len, rows))
    fill = end if slip == "fill" else -100
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.float64)
