"""What the checks of the exercises on sparse training compare with: the definition, tried out.

``slip`` names a known mistake. A check computes its result as well, to draw inputs on which it shows, and to tell the
student of it.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def random_tree(generator: torch.Generator, leaves: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return left, right and risk of a tree whose splits all lower the risk; children come after their parent."""
    left, right, ends = [-1], [-1], [0]
    for _ in range(leaves - 1):
        node = ends.pop(int(torch.randint(len(ends), (1,), generator=generator)))
        left[node], right[node] = len(left), len(left) + 1
        ends += [left[node], right[node]]
        left += [-1, -1]
        right += [-1, -1]
    risk = 10 * torch.rand(len(left), generator=generator, dtype=torch.float64).square()  # of a split: what it saves
    for node in reversed(range(len(left))):
        if left[node] >= 0:
            last = left[left[node]] < 0 and left[right[node]] < 0
            # The last splits save more, so that the weakest link often is a larger branch.
            risk[node] += risk[left[node]] + risk[right[node]] + 5 * last
    return torch.tensor(left), torch.tensor(right), risk


def below(left: list[int], right: list[int], node: int) -> list[int]:
    """Return the nodes of the branch at ``node``, itself first."""
    if left[node] < 0:
        return [node]
    return [node, *below(left, right, left[node]), *below(left, right, right[node])]


def weakest_link(left: Tensor, right: Tensor, risk: Tensor, slip: str = "") -> Tensor:
    """Return (node, price) of the cheapest cut.

    Slips: "leaves", "nodes" (other counts), "children" (their risks instead of the leaves'), "no-count" (always a
    split above two leaves), "largest", "root".
    """
    children, risks, prices = (left.tolist(), right.tolist()), risk.tolist(), {}
    for node in range(len(risks)):
        branch = below(*children, node)
        leaves = [n for n in branch if children[0][n] < 0]
        if len(leaves) == 1 or (slip == "root" and node > 0):
            continue
        lost = sum(risks[c[node]] for c in children) if slip == "children" else sum(risks[n] for n in leaves)
        count = {"leaves": len(leaves), "nodes": len(branch) - 1, "no-count": 1}.get(slip, len(leaves) - 1)
        prices[node] = (risks[node] - lost) / count
    node = (max if slip == "largest" else min)(prices, key=prices.__getitem__)
    return torch.tensor([node, prices[node]], dtype=torch.float64)


def _least(objective: Callable[[float], float], penalty: float) -> float:
    """Return the minimum of a parabola plus ``penalty·|b|``, from the parabola's values at three points."""
    at = [objective(b) for b in (-1.0, 0.0, 1.0)]
    bend, slope = at[0] - 2 * at[1] + at[2], (at[2] - at[0]) / 2
    candidates = [0.0]
    for sign in (-1, 1):  # on each side of 0 the penalty is a straight line
        b = -(slope + sign * penalty) / bend
        candidates += [b] if sign * b > 0 else []
    return min(candidates, key=lambda b: bend / 2 * b * b + slope * b + penalty * abs(b))


def lasso_sweep(features: Tensor, targets: Tensor, start: Tensor, penalty: float, slip: str = "") -> Tensor:
    """Return the coefficients after each has been set to its best value, the others held.

    Slips: "λ" (the threshold is twice as large), "mean" (the objective's first part is divided by n), "at-once" (all
    from the start's values), "own-part" (the residual of all), "no-norm", "no-shrinking" (zero or least squares),
    "sizes" (signs are lost).
    """
    price = {"λ": 2 * penalty, "mean": penalty * len(targets)}.get(slip, penalty)
    beta = start.clone()
    for j in range(len(beta)):
        others = start.clone() if slip == "at-once" else beta.clone()
        if slip != "own-part":
            others[j] = 0
        rest, column = targets - features @ others, features[:, j]

        def loss(b: float, rest: Tensor = rest, column: Tensor = column) -> float:
            return float((rest - b * column).square().sum())

        best = _least(loss, price)
        if slip == "no-shrinking" and best:
            best = _least(loss, 0.0)
        size = float(column.square().sum()) if slip == "no-norm" else 1.0
        beta[j] = abs(best) if slip == "sizes" else best * size
    return beta


def densities(shapes: Sequence[tuple[int, int]], density: float, slip: str = "") -> Tensor:
    """Return the Erdős–Rényi densities, by bisection on the factor that all layers share.

    Slips: "above-1", "clamped" (what is above 1 is lost), "once" (shared out once, then above 1 or not), "inverse"
    (nm/(n + m)), "mean" (the mean of the densities is right, not the share of weights).
    """
    sizes = [n * m for n, m in shapes]
    rule = [n * m / (n + m) if slip == "inverse" else (n + m) / (n * m) for n, m in shapes]
    goal = density * sum(sizes)

    def kept(factor: float, most: float = 1.0) -> float:
        return sum(min(factor * r, most) * size for r, size in zip(rule, sizes, strict=True))

    factor, most = goal / kept(1.0, math.inf), math.inf
    if slip == "mean":
        factor = density * len(rule) / sum(rule)
    elif slip == "clamped":
        most = 1.0
    elif slip == "once":
        dense = [factor * r > 1 for r in rule]
        left = goal - sum(size for size, d in zip(sizes, dense, strict=True) if d)
        factor = left / sum(r * size for r, size, d in zip(rule, sizes, dense, strict=True) if not d)
        return torch.tensor([1.0 if d else factor * r for r, d in zip(rule, dense, strict=True)], dtype=torch.float64)
    elif not slip:
        low, factor, most = 0.0, 1 / min(rule), 1.0
        for _ in range(60):
            middle = (low + factor) / 2
            low, factor = (middle, factor) if kept(middle) < goal else (low, middle)
    return torch.tensor([min(factor * r, most) for r in rule], dtype=torch.float64)


def two_layers(first: Tensor, second: Tensor, inputs: Tensor) -> Tensor:
    """Return the logits of a network with one hidden layer, ReLU, and no biases."""
    return (inputs @ first.T).relu() @ second.T


def connection_scores(first: Tensor, second: Tensor, inputs: Tensor, labels: Tensor, slip: str = "") -> list[Tensor]:
    """Return SNIP's scores, the size of the loss's derivative by a switch c = 1 in front of each weight.

    Slips: "gradient", "magnitude", "signed", "examples" (sizes before the mean over examples).
    """
    weights = [first, second]
    if slip == "magnitude":
        return [w.abs() for w in weights]

    def slopes(x: Tensor, y: Tensor) -> list[Tensor]:
        switches = [torch.ones_like(w, requires_grad=True) for w in weights]
        logits = two_layers(switches[0] * first, switches[1] * second, x)
        return list(torch.autograd.grad(F.cross_entropy(logits, y), switches))

    if slip == "examples":
        rows = [slopes(x[None], y[None]) for x, y in zip(inputs, labels, strict=True)]
        return [torch.stack([row[k].abs() for row in rows]).mean(0) for k in range(2)]
    scores = slopes(inputs, labels)
    if slip == "gradient":
        return [(s / w).abs() for s, w in zip(scores, weights, strict=True)]
    return scores if slip == "signed" else [s.abs() for s in scores]


def largest(scores: Sequence[Tensor], kept: int, slip: str = "") -> Tensor:
    """Return the flat mask of the ``kept`` largest scores of all. Slip: "each-layer" (its share, by itself)."""
    if slip == "each-layer":
        total = sum(s.numel() for s in scores)
        first = round(kept * scores[0].numel() / total)
        return torch.cat([largest([s], k) for s, k in zip(scores, (first, kept - first), strict=True)])
    flat = torch.cat([s.flatten() for s in scores])
    order = sorted(range(len(flat)), key=flat.tolist().__getitem__, reverse=True)
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[order[:kept]] = True
    return mask


def gradient_flow(
    first: Tensor, second: Tensor, inputs: Tensor, labels: Tensor, temperature: float, slip: str = ""
) -> Tensor:
    """Return θ ⊙ Hg of both layers in one flat tensor, with the whole Hessian.

    Slips: "sign", "twice", "no-weights", "slope" (θ ⊙ g), "diagonal" and "own-layer" (parts of H), "no-temperature",
    "times" (logits are multiplied by it), "sizes".
    """
    scale = {"no-temperature": 1.0, "times": temperature}.get(slip, 1 / temperature)
    theta, cut = torch.cat([first.flatten(), second.flatten()]), first.numel()

    def loss(flat: Tensor) -> Tensor:
        logits = two_layers(flat[:cut].view_as(first), flat[cut:].view_as(second), inputs)
        return F.cross_entropy(scale * logits, labels)

    gradient = torch.autograd.functional.jacobian(loss, theta)
    if slip == "slope":
        return theta * gradient
    hessian = torch.autograd.functional.hessian(loss, theta, vectorize=True)
    if slip == "diagonal":
        hessian = hessian.diagonal().diag()
    if slip == "own-layer":
        hessian[:cut, cut:] = hessian[cut:, :cut] = 0
    product = hessian @ gradient
    if slip == "no-weights":
        return product
    product = theta * product
    return product.abs() if slip == "sizes" else {"sign": -1, "twice": 2}.get(slip, 1) * product


def move(weight: Tensor, mask: Tensor, gradient: Tensor, share: float, slip: str = "") -> Tensor:
    """Return mask and weight after one update of RigL, one above the other: (2, out, inp).

    Slips: "not-the-same" (what was just dropped cannot grow), "old-values" (what grows again keeps its value),
    "signed-gradient", "least-gradient", "largest-dropped", "signed-weight", "share-of-all", "zeros-dropped" (missing
    weights count as the smallest), "anywhere" (grows where the gradient is largest, also where something is).
    """
    w, active, g = weight.flatten().tolist(), mask.flatten().tolist(), gradient.flatten().tolist()
    places = range(len(w))
    there = [p for p in places if active[p]]
    count = round(share * (len(w) if slip == "share-of-all" else len(there)))
    ranked = places if slip == "zeros-dropped" else there
    by_size = sorted(ranked, key=lambda p: w[p] if slip == "signed-weight" else abs(w[p]))
    dropped = by_size[-count:] if slip == "largest-dropped" else by_size[:count]
    stays = [p for p in there if p not in dropped]
    free = [p for p in places if p not in (there if slip == "not-the-same" else stays)]
    if slip == "anywhere":
        free = list(places)
    wanted = sorted(free, key=lambda p: -g[p] if slip == "signed-gradient" else -abs(g[p]))
    grown = wanted[-count:] if slip == "least-gradient" else wanted[:count]
    result = torch.zeros(2, len(w), dtype=torch.float64)
    for p in {*stays, *grown}:
        old = p in stays or (slip == "old-values" and p in dropped)
        result[:, p] = torch.tensor([1.0, w[p] if old else 0.0], dtype=torch.float64)
    return result.reshape(2, *weight.shape)


def constants(weight: Tensor, bias: Tensor, beta: Tensor, silent: Tensor, slip: str = "") -> Tensor:
    """Return the bias that stands for silent channels, read off the layer's outputs on constant pictures.

    Slips: "no-relu", "all-channels", "old-bias-lost", "one-tap", "mean" (over taps), "sign", "no-change".
    """
    if slip == "no-change":
        return bias
    height, width = weight.shape[2:]
    level = beta if slip == "no-relu" else beta.relu()
    level = level if slip == "all-channels" else torch.where(silent, level, 0.0)
    pictures = level[None, :, None, None].expand(1, -1, height, width)
    if slip == "one-tap":
        corner = torch.zeros(height, width, dtype=weight.dtype)
        corner[height // 2, width // 2] = 1
        pictures = pictures * corner
    change = F.conv2d(pictures, weight).flatten()
    factor = {"mean": 1 / (height * width), "sign": -1}.get(slip, 1)
    return factor * change if slip == "old-bias-lost" else bias + factor * change
