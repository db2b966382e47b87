"""The printed algorithms with the rules that are not printed in them: blocks, patterns, outliers, other orders.

The algorithms themselves are in ``mlcomp.obs.literal``; ``test_literal.py`` says that without rules these are equal.
"""

import torch


def damped(hessian, damp=0.0):
    h = hessian.double()
    return h + damp * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)


def algorithm_1(row, hessian, k, *, pattern=None, block_size=1):
    """Remove k units from one row. Returns the row, the order, and the score w_P [B_PP]⁻¹ w_P of each step."""
    w = row.double().clone()
    b = torch.linalg.inv(hessian.double())
    d = len(w)
    units = [list(range(i, min(i + block_size, d))) for i in range(0, d, block_size)]
    alive = set(range(len(units)))
    order, scores = [], []
    for _ in range(k):
        best = None
        for u in sorted(alive):
            if pattern is not None:
                n, m = pattern
                group = range(u // m * m, min(u // m * m + m, d))
                if sum(j in order for j in group) >= n * len(group) // m:
                    continue
            p = units[u]
            score = float(w[p] @ torch.linalg.solve(b[p][:, p], w[p]))
            if best is None or score < best[0]:
                best = (score, u)
        score, u = best
        p = units[u]
        w = w - b[:, p] @ torch.linalg.solve(b[p][:, p], w[p])
        b = b - b[:, p] @ torch.linalg.solve(b[p][:, p], b[p])
        w[p] = 0
        alive.remove(u)
        order.append(u)
        scores.append(score)
    return w, order, scores


def algorithm_2(row, hessian, grid, *, outliers=True, order=None, saving=False):
    """Round one row on its grid, or one grid for each run of consecutive weights. Returns its codes and the order."""
    w = row.double().clone()
    size = len(w) // len(grid.step)
    step = grid.step.double().flatten().repeat_interleave(size).tolist()
    zero = grid.zero.double().flatten().repeat_interleave(size).tolist()
    top = 2**grid.bits - 1
    b = torch.linalg.inv(hessian.double())
    left = list(range(len(w)))
    codes = torch.zeros(len(w), dtype=torch.uint8)
    done = []
    while left:
        code = {p: min(max(round(float(w[p]) / step[p]) + zero[p], 0), top) for p in left}
        error = {p: float(w[p]) - (code[p] - zero[p]) * step[p] for p in left}
        off = [p for p in left if abs(error[p]) > step[p] * (0.5 + 1e-5)]
        if order is not None:
            p = order[len(done)]
        elif outliers and off:
            p = max(off, key=lambda j: abs(error[j]))
        else:
            worst = {j: step[j] ** 2 / 4 if saving else 0.0 for j in left}
            p = min(left, key=lambda j: (error[j] ** 2 - worst[j]) / float(b[j, j]))
        codes[p] = int(code[p])
        w = w - error[p] / b[p, p] * b[:, p]
        b = b - torch.outer(b[:, p], b[p]) / b[p, p]
        left.remove(p)
        done.append(p)
    return codes, done


def loss(row, pruned, hessian):
    """½·δw·H·δwᵀ."""
    delta = pruned.double() - row.double()
    return float(delta @ hessian.double() @ delta) / 2
