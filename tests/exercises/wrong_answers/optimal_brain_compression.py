"""Wrong answers to the exercises on Optimal Brain Compression: (what is wrong, what a student would hand in)."""

from tests.exercises.wrong_answers.code import changed, function


def _saliency(body: str) -> str:
    return function("obd_saliency(weight, hessian)", body)


def _step(body: str) -> str:
    return function("obs_step(weight, hessian)", body)


def _update(body: str) -> str:
    return function("remove_from_inverse(inverse, p)", body)


_ROW = """
weight, inverse = weight.clone(), torch.linalg.inv(hessian)
left = torch.ones(len(weight), dtype=torch.bool)
for _ in range(k):
    p = int(torch.where(left, weight.square() / inverse.diagonal(), torch.inf).argmin())
    weight -= weight[p] / inverse[p, p] * inverse[:, p]
    inverse -= torch.outer(inverse[:, p], inverse[p, :]) / inverse[p, p]
    left[p] = False
    weight[~left] = 0
return weight
"""

_PATTERN = """
weight, inverse = weight.clone(), torch.linalg.inv(hessian)
inp = len(weight)
left = torch.ones(inp, dtype=torch.bool)
for _ in range(n * (inp // m)):
    full = ((~left).reshape(-1, m).sum(1) >= n).repeat_interleave(m)
    p = int(torch.where(left & ~full, weight.square() / inverse.diagonal(), torch.inf).argmin())
    weight -= weight[p] / inverse[p, p] * inverse[:, p]
    inverse -= torch.outer(inverse[:, p], inverse[p, :]) / inverse[p, p]
    left[p] = False
    weight[~left] = 0
return weight
"""

_OBQ = """
weight, inverse = weight.clone(), torch.linalg.inv(hessian)
result = torch.empty_like(weight)
left = torch.ones(len(weight), dtype=torch.bool)
for _ in range(len(weight)):
    nearest = levels[(weight[:, None] - levels).abs().argmin(1)]
    p = int(torch.where(left, (weight - nearest).square() / inverse.diagonal(), torch.inf).argmin())
    result[p] = nearest[p]
    weight -= (weight[p] - nearest[p]) / inverse[p, p] * inverse[:, p]
    inverse -= torch.outer(inverse[:, p], inverse[p, :]) / inverse[p, p]
    inverse[p, :] = 0
    inverse[:, p] = 0
    left[p] = False
return result
"""

_BUDGET = """
best = {0: (0.0, [])}
for losses, costs in zip(loss.tolist(), cost.tolist(), strict=True):
    following = {}
    for spent, (total, levels) in best.items():
        for level, (extra, price) in enumerate(zip(losses, costs, strict=True)):
            entry = (total + extra, [*levels, level])
            key = spent + price
            if key <= budget and (key not in following or entry[0] < following[key][0]):
                following[key] = entry
    best = following
return min(best.values())[1]
"""


def _row(*changes: tuple[str, str]) -> str:
    return changed("exact_obs_row(weight, hessian, k)", _ROW, *changes)


def _pattern(*changes: tuple[str, str]) -> str:
    return changed("exact_obs_pattern(weight, hessian, n, m)", _PATTERN, *changes)


def _obq(*changes: tuple[str, str]) -> str:
    return changed("obq_row(weight, hessian, levels)", _OBQ, *changes)


def _budget(*changes: tuple[str, str]) -> str:
    return changed("choose_levels(loss, cost, budget)", _BUDGET, *changes)


_IN_SINGLE = (
    "weight, inverse = weight.clone(), torch.linalg.inv(hessian)",
    "weight, inverse = weight.float(), torch.linalg.inv(hessian.float())",
)
_STALE = "    inverse -= torch.outer(inverse[:, p], inverse[p, :]) / inverse[p, p]\n"
_NO_CLONE = ("weight.clone()", "weight")

WRONG: dict[str, list[tuple[str, str]]] = {
    "obd-saliency": [
        ("factor ½ is missing", _saliency("return hessian.diagonal() * weight.square()")),
        ("factor ½ twice", _saliency("return 0.25 * hessian.diagonal() * weight.square()")),
        ("Hessian along the rows", _saliency("return 0.5 * hessian.diagonal()[:, None] * weight.square()")),
        ("weight is not squared", _saliency("return 0.5 * hessian.diagonal() * weight.abs()")),
        ("OBS score instead", _saliency("return 0.5 * weight.square() / torch.linalg.inv(hessian).diagonal()")),
        ("no-op: returns the weight", _saliency("return weight")),
        ("mutates the weight", _saliency("return weight.square_().mul_(hessian.diagonal()).mul_(0.5)")),
        (
            "computed in float32",
            _saliency("return (0.5 * hessian.diagonal().float() * weight.float() ** 2).double()"),
        ),
        ("returns float32", _saliency("return (0.5 * hessian.diagonal() * weight.square()).float()")),
        (
            "only for the visible shapes",
            _saliency(
                """
                if tuple(weight.shape) in ((5, 5), (3, 6)):
                    return 0.5 * hessian.diagonal() * weight.square()
                return torch.zeros_like(weight)
                """
            ),
        ),
        ("returns None", _saliency("0.5 * hessian.diagonal() * weight.square()")),
    ],
    "obs-step": [
        (
            "removes the smallest weight",
            _step(
                """
                inverse, p = torch.linalg.inv(hessian), int(weight.abs().argmin())
                result = weight - weight[p] / inverse[p, p] * inverse[:, p]
                result[p] = 0
                return result
                """
            ),
        ),
        (
            "chooses by OBD",
            _step(
                """
                inverse, p = torch.linalg.inv(hessian), int((weight.square() * hessian.diagonal()).argmin())
                result = weight - weight[p] / inverse[p, p] * inverse[:, p]
                result[p] = 0
                return result
                """
            ),
        ),
        (
            "the others stay",
            _step(
                """
                result = weight.clone()
                result[(weight.square() / torch.linalg.inv(hessian).diagonal()).argmin()] = 0
                return result
                """
            ),
        ),
        (
            "sign of the update",
            _step(
                """
                inverse = torch.linalg.inv(hessian)
                p = int((weight.square() / inverse.diagonal()).argmin())
                result = weight + weight[p] / inverse[p, p] * inverse[:, p]
                result[p] = 0
                return result
                """
            ),
        ),
        (
            "column of H, not of its inverse",
            _step(
                """
                inverse = torch.linalg.inv(hessian)
                p = int((weight.square() / inverse.diagonal()).argmin())
                result = weight - weight[p] / hessian[p, p] * hessian[:, p]
                result[p] = 0
                return result
                """
            ),
        ),
        (
            "not exactly zero",
            _step(
                """
                inverse = torch.linalg.inv(hessian)
                p = int((weight.square() / inverse.diagonal()).argmin())
                result = weight - weight[p] / inverse[p, p] * inverse[:, p]
                result[p] = 1e-9
                return result
                """
            ),
        ),
        (
            "mutates the weight",
            _step(
                """
                inverse = torch.linalg.inv(hessian)
                p = int((weight.square() / inverse.diagonal()).argmin())
                weight -= weight[p] / inverse[p, p] * inverse[:, p]
                weight[p] = 0
                return weight
                """
            ),
        ),
        (
            "damps the Hessian by a constant",
            _step(
                """
                inverse = torch.linalg.inv(hessian + torch.eye(len(weight), dtype=weight.dtype))
                p = int((weight.square() / inverse.diagonal()).argmin())
                result = weight - weight[p] / inverse[p, p] * inverse[:, p]
                result[p] = 0
                return result
                """
            ),
        ),
        (
            "computed in float32",
            _step(
                """
                inverse = torch.linalg.inv(hessian.float())
                p = int((weight.float().square() / inverse.diagonal()).argmin())
                result = weight.float() - weight.float()[p] / inverse[p, p] * inverse[:, p]
                result[p] = 0
                return result.double()
                """
            ),
        ),
        ("no-op: returns the weight", _step("return weight")),
    ],
    "inverse-update": [
        ("no-op: returns the inverse", _update("return inverse")),
        (
            "only zeroes row and column",
            _update(
                """
                result = inverse.clone()
                result[p, :] = 0
                result[:, p] = 0
                return result
                """
            ),
        ),
        (
            "does not divide by the pivot",
            _update(
                """
                result = inverse - torch.outer(inverse[:, p], inverse[p, :])
                result[p, :] = 0
                result[:, p] = 0
                return result
                """
            ),
        ),
        (
            "sign of the update",
            _update(
                """
                result = inverse + torch.outer(inverse[:, p], inverse[p, :]) / inverse[p, p]
                result[p, :] = 0
                result[:, p] = 0
                return result
                """
            ),
        ),
        (
            "off by one: the input before",
            _update(
                """
                result = inverse - torch.outer(inverse[:, p - 1], inverse[p - 1, :]) / inverse[p - 1, p - 1]
                result[p, :] = 0
                result[:, p] = 0
                return result
                """
            ),
        ),
        (
            "smaller matrix",
            _update(
                """
                kept = [j for j in range(len(inverse)) if j != p]
                result = inverse - torch.outer(inverse[:, p], inverse[p, :]) / inverse[p, p]
                return result[kept][:, kept]
                """
            ),
        ),
        (
            "mutates the inverse",
            _update(
                """
                inverse -= torch.outer(inverse[:, p], inverse[p, :]) / inverse[p, p]
                inverse[p, :] = 0
                inverse[:, p] = 0
                return inverse
                """
            ),
        ),
        (
            "computed in float32",
            _update(
                """
                single = inverse.float()
                result = single - torch.outer(single[:, p], single[p, :]) / single[p, p]
                result[p, :] = 0
                result[:, p] = 0
                return result.double()
                """
            ),
        ),
        (
            "element-wise instead of outer product",
            _update(
                """
                result = inverse - inverse[:, p] * inverse[p, :] / inverse[p, p]
                result[p, :] = 0
                result[:, p] = 0
                return result
                """
            ),
        ),
    ],
    "exact-obs": [
        (
            "one-shot: the scores at the start",
            _row(
                (
                    "    p = int(torch.where(left, weight.square() / inverse.diagonal(), torch.inf).argmin())\n",
                    "    p = int(order[_])\n",
                ),
                ("for _", "order = (weight.square() / inverse.diagonal()).argsort()\nfor _"),
            ),
        ),
        ("inverse is never updated", _row((_STALE, ""))),
        (
            "inverse is never updated, and removed weights move again",
            _row((_STALE, ""), ("    weight[~left] = 0\n", "    weight[p] = 0\n")),
        ),
        (
            "0/0 of removed weights",
            _row(
                (
                    "torch.where(left, weight.square() / inverse.diagonal(), torch.inf)",
                    "(weight.square() / inverse.diagonal())",
                ),
                ("    left[p] = False\n", "    left[p] = False\n    inverse[p, :] = 0\n    inverse[:, p] = 0\n"),
            ),
        ),
        ("one weight too many", _row(("range(k)", "range(min(k + 1, len(weight)))"))),
        ("one weight too few", _row(("range(k)", "range(k - 1)"))),
        ("removed weights come back", _row(("    weight[~left] = 0\n", "    weight[p] = 1e-12\n"))),
        ("chooses by magnitude", _row(("weight.square() / inverse.diagonal()", "weight.abs()"))),
        ("mutates the weight", _row(_NO_CLONE)),
        ("computed in float32", _row(_IN_SINGLE, ("return weight", "return weight.double()"))),
        ("the others stay", _row(("    weight -= weight[p] / inverse[p, p] * inverse[:, p]\n", ""))),
        ("no-op: returns the weight", _row(("range(k)", "range(0)"))),
        ("multiplies by the diagonal", _row(("/ inverse.diagonal()", "* inverse.diagonal()"))),
    ],
    "pattern": [
        ("n kept instead of n zeros", _pattern(("n * (inp // m)", "(m - n) * (inp // m)"), (">= n", ">= m - n"))),
        ("zeros anywhere in the row", _pattern(("left & ~full", "left"))),
        ("one weight too few", _pattern(("range(n * (inp // m))", "range(n * (inp // m) - 1)"))),
        (
            "blocks are strided",
            _pattern(
                (
                    "(~left).reshape(-1, m).sum(1) >= n).repeat_interleave(m)",
                    "(~left).reshape(m, -1).sum(0) >= n).repeat(m)",
                )
            ),
        ),
        ("always 2:4", _pattern(("weight, inverse", "n, m = 2, 4\nweight, inverse"))),
        ("inverse is never updated", _pattern((_STALE, ""))),
        (
            "0/0 of removed weights",
            _pattern(
                (
                    "torch.where(left & ~full, weight.square() / inverse.diagonal(), torch.inf)",
                    "torch.where(~full, weight.square() / inverse.diagonal(), torch.inf)",
                ),
                ("    left[p] = False\n", "    left[p] = False\n    inverse[p, :] = 0\n    inverse[:, p] = 0\n"),
            ),
        ),
        ("smallest of each block", _pattern(("weight.square() / inverse.diagonal()", "weight.abs()"))),
        (
            "one block after the other",
            _pattern(("left & ~full", "left & ~full & (torch.arange(inp) // m == _ // n)")),
        ),
        ("mutates the weight", _pattern(_NO_CLONE)),
        ("computed in float32", _pattern(_IN_SINGLE, ("return weight", "return weight.double()"))),
    ],
    "obq": [
        ("plain rounding", _obq(("    weight -= (weight[p] - nearest[p]) / inverse[p, p] * inverse[:, p]\n", ""))),
        (
            "left to right",
            _obq(
                (
                    "p = int(torch.where(left, (weight - nearest).square() / inverse.diagonal(), torch.inf)"
                    ".argmin())",
                    "p = _",
                )
            ),
        ),
        (
            "rounds the weights of the start",
            _obq(
                ("nearest = levels[(weight[:, None]", "nearest = levels[(start[:, None]"),
                ("result =", "start = weight.clone()\nresult ="),
            ),
        ),
        (
            "inverse is never updated",
            _obq((_STALE, ""), ("    inverse[p, :] = 0\n", ""), ("    inverse[:, p] = 0\n", "")),
        ),
        ("sign of the update", _obq(("weight -= (", "weight += ("))),
        ("dearest first", _obq(("torch.inf).argmin()", "-1.0).argmax()"))),
        ("score without the inverse", _obq((".square() / inverse.diagonal()", ".square()"))),
        (
            "rounds down, not to nearest",
            _obq(
                (
                    "(weight[:, None] - levels).abs().argmin(1)",
                    "((weight[:, None] >= levels).sum(1) - 1).clamp(min=0)",
                )
            ),
        ),
        ("returns the moved weights", _obq(("return result", "return weight + 1e-12"))),
        ("mutates the weight", _obq(_NO_CLONE)),
        (
            "off by one: leaves the last weight",
            _obq(("range(len(weight))", "range(len(weight) - 1)"), ("torch.empty_like(weight)", "weight.clone()")),
        ),
        (
            "prunes: goes to zero",
            _obq(
                ("nearest = levels[(weight[:, None] - levels).abs().argmin(1)]", "nearest = torch.zeros_like(weight)")
            ),
        ),
    ],
    "budget": [
        (
            "each layer's best, over budget",
            "def choose_levels(loss, cost, budget):\n    return loss.argmin(1).tolist()\n",
        ),
        ("the cheapest everywhere", "def choose_levels(loss, cost, budget):\n    return cost.argmin(1).tolist()\n"),
        ("less than the budget, not at most", _budget(("key <= budget", "key < budget"))),
        (
            "greedy: best gain for its cost first",
            function(
                "choose_levels(loss, cost, budget)",
                """
                chosen = cost.argmin(1).tolist()
                spent = sum(int(cost[i, j]) for i, j in enumerate(chosen))
                while True:
                    best = None
                    for i, j in enumerate(chosen):
                        for new in range(cost.shape[1]):
                            extra, gain = int(cost[i, new] - cost[i, j]), float(loss[i, j] - loss[i, new])
                            if gain > 0 and spent + extra <= budget:
                                ratio = gain / max(extra, 1e-9)
                                if best is None or ratio > best[0]:
                                    best = ratio, i, new, extra
                    if best is None:
                        return chosen
                    chosen[best[1]] = best[2]
                    spent += best[3]
                """,
            ),
        ),
        (
            "costs rounded to tens",
            _budget(("cost.tolist()", "((cost + 9) // 10).tolist()"), ("key <= budget", "key <= budget // 10")),
        ),
        ("most loss", _budget(("return min(", "return max("))),
        (
            "same level everywhere",
            function(
                "choose_levels(loss, cost, budget)",
                """
                fits = [j for j in range(cost.shape[1]) if int(cost[:, j].sum()) <= budget]
                return [min(fits, key=lambda j: float(loss[:, j].sum()), default=0)] * len(loss)
                """,
            ),
        ),
        ("keeps the worst of equal costs", _budget(("entry[0] < following", "entry[0] > following"))),
        (
            "tries every choice",
            "import itertools\n"
            + function(
                "choose_levels(loss, cost, budget)",
                """
                losses, costs = loss.tolist(), cost.tolist()
                best = None
                for choice in itertools.product(range(len(losses[0])), repeat=len(losses)):
                    if sum(costs[i][j] for i, j in enumerate(choice)) <= budget:
                        total = sum(losses[i][j] for i, j in enumerate(choice))
                        if best is None or total < best[0]:
                            best = total, choice
                return list(best[1])
                """,
            ),
        ),
        ("returns a tensor", _budget(("return min(best.values())[1]", "return torch.tensor(min(best.values())[1])"))),
    ],
}
