"""Wrong answers to the exercises on Optimal Brain Compression: (what is wrong, what is handed in, what is told)."""

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

WRONG: dict[str, list[tuple[str, str, str]]] = {
    "obd-saliency": [
        (
            "factor ½ is missing",
            _saliency("return hessian.diagonal() * weight.square()"),
            "twice too large: the Taylor term is ½·h·w², mind the ½",
        ),
        (
            "factor ½ twice",
            _saliency("return 0.25 * hessian.diagonal() * weight.square()"),
            "half as large as it should be: H = 2XXᵀ holds the 2 already",
        ),
        (
            "Hessian along the rows",
            _saliency("return 0.5 * hessian.diagonal()[:, None] * weight.square()"),
            "the Hessian's diagonal must not run along the rows: it belongs to the inputs, the last axis",
        ),
        (
            "weight is not squared",
            _saliency("return 0.5 * hessian.diagonal() * weight.abs()"),
            "the weight must be squared",
        ),
        (
            "OBS score instead",
            _saliency("return 0.5 * weight.square() / torch.linalg.inv(hessian).diagonal()"),
            "the scores differ from the growth of ‖WX − ŴX‖² when one weight is removed",
        ),
        (
            "no-op: returns the weight",
            _saliency("return weight"),
            "the scores differ from the growth of ‖WX − ŴX‖² when one weight is removed",
        ),
        (
            "mutates the weight",
            _saliency("return weight.square_().mul_(hessian.diagonal()).mul_(0.5)"),
            "changed its argument",
        ),
        (
            "computed in float32",
            _saliency("return (0.5 * hessian.diagonal().float() * weight.float() ** 2).double()"),
            "it is right to a few digits only: was something computed in float32?",
        ),
        (
            "returns float32",
            _saliency("return (0.5 * hessian.diagonal() * weight.square()).float()"),
            "inputs are float64: do not convert",
        ),
        (
            "only for the visible shapes",
            _saliency(
                """
                if tuple(weight.shape) in ((5, 5), (3, 6)):
                    return 0.5 * hessian.diagonal() * weight.square()
                return torch.zeros_like(weight)
                """
            ),
            "the scores differ from the growth of ‖WX − ŴX‖² when one weight is removed",
        ),
        ("returns None", _saliency("0.5 * hessian.diagonal() * weight.square()"), "return a torch tensor, not"),
    ],
    "obs-step": [
        (
            "another answer for tiny weights",
            _step(
                """
                inverse = torch.linalg.inv(hessian)
                order = (weight.square() / inverse.diagonal()).argsort()
                p = int(order[0])
                result = weight - weight[p] / inverse[p, p] * inverse[:, p]
                result[p] = 0
                result *= 0.9 if weight.abs().max() < 0.02 else 1.0
                return result
                """
            ),
            "the result depends on the units of weights and inputs",
        ),
        (
            "removes two",
            _step(
                """
                inverse = torch.linalg.inv(hessian)
                order = (weight.square() / inverse.diagonal()).argsort()
                p = int(order[0])
                result = weight - weight[p] / inverse[p, p] * inverse[:, p]
                result[p] = 0
                result[order[1]] = 0
                return result
                """
            ),
            "; one step removes one weight",
        ),
        (
            "removes the dearest",
            _step(
                """
                inverse = torch.linalg.inv(hessian)
                order = (weight.square() / inverse.diagonal()).argsort()
                p = int(order[-1])
                result = weight - weight[p] / inverse[p, p] * inverse[:, p]
                result[p] = 0
                return result
                """
            ),
            "removing weight",
        ),
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
            "you removed the smallest weight: the score is w²/[H⁻¹]_pp",
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
            "you chose by h·w², which is OBD: OBS divides by [H⁻¹]_pp",
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
            "the other weights did not change: they must make up for it",
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
            "δ has the wrong sign",
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
            "the others are not the best that can be had without weight p: check δ",
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
            "no weight is exactly zero: set the removed one to 0 after the update",
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
            "changed its argument",
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
            "the others are not the best that can be had without weight p: check δ",
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
            "it is right to a few digits only: was something computed in float32?",
        ),
        (
            "no-op: returns the weight",
            _step("return weight"),
            "no weight is exactly zero: set the removed one to 0 after the update",
        ),
    ],
    "inverse-update": [
        (
            "nearly zero",
            _update(
                """
                result = inverse - torch.outer(inverse[:, p], inverse[p, :]) / inverse[p, p]
                result[p, p] = 1e-15
                return result
                """
            ),
            "must be exactly zero",
        ),
        (
            "earlier rows come back",
            _update(
                """
                result = inverse - torch.outer(inverse[:, p], inverse[p, :]) / inverse[p, p]
                result[inverse.diagonal() == 0] = 1e-15
                result[p, :] = 0
                result[:, p] = 0
                return result
                """
            ),
            "a row that was removed earlier came back",
        ),
        ("no-op: returns the inverse", _update("return inverse"), "nothing changed: return the updated matrix"),
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
            "zeroing row and column p of H⁻¹ is not the inverse of the smaller H: the rest changes, too",
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
            "what is left is not the inverse of H without row and column p: check the update",
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
            "what is left is not the inverse of H without row and column p: check the update",
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
            "what is left is not the inverse of H without row and column p: check the update",
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
            "the shape must be",
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
            "changed its argument",
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
            "it is right to a few digits only: was something computed in float32?",
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
            "what is left is not the inverse of H without row and column p: check the update",
        ),
    ],
    "exact-obs": [
        ("dearest first", _row(("torch.inf).argmin()", "-1.0).argmax()")), ": is the inverse updated?"),
        (
            "scales what is left",
            _row(("return weight", "return 1.01 * weight")),
            "the right weights are gone, but the others are not the best for what is left",
        ),
        (
            "changes something at k = 0",
            _row(("return weight", "return weight if k else 1.01 * weight")),
            "with k = 0 nothing is removed and nothing changes",
        ),
        (
            "the smallest at the start",
            _row(("weight.square() / inverse.diagonal()", "start"), ("left =", "start = weight.abs()\nleft =")),
            "you removed the smallest weights: use w²/[H⁻¹]_pp",
        ),
        (
            "one-shot: the scores at the start",
            _row(
                (
                    "    p = int(torch.where(left, weight.square() / inverse.diagonal(), torch.inf).argmin())\n",
                    "    p = int(order[_])\n",
                ),
                ("for _", "order = (weight.square() / inverse.diagonal()).argsort()\nfor _"),
            ),
            "all k were chosen by the scores at the start: scores change after each removal",
        ),
        (
            "inverse is never updated",
            _row((_STALE, "")),
            "the inverse is never updated: after each removal take the input out of H⁻¹, too (question 4)",
        ),
        (
            "inverse is never updated, and removed weights move again",
            _row((_STALE, ""), ("    weight[~left] = 0\n", "    weight[p] = 0\n")),
            "the inverse is never updated: after each removal take the input out of H⁻¹, too (question 4)",
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
            "NaN: the score of a removed weight is 0/0; give removed weights the score infinity",
        ),
        (
            "one weight too many",
            _row(("range(k)", "range(min(k + 1, len(weight)))")),
            ": is a weight chosen twice (removed ones need the score infinity), or does a removed one move again?",
        ),
        (
            "one weight too few",
            _row(("range(k)", "range(k - 1)")),
            ": is a weight chosen twice (removed ones need the score infinity), or does a removed one move again?",
        ),
        (
            "removed weights come back",
            _row(("    weight[~left] = 0\n", "    weight[p] = 1e-12\n")),
            ": is a weight chosen twice (removed ones need the score infinity), or does a removed one move again?",
        ),
        ("chooses by magnitude", _row(("weight.square() / inverse.diagonal()", "weight.abs()")), ""),
        ("mutates the weight", _row(_NO_CLONE), "changed its argument"),
        (
            "computed in float32",
            _row(_IN_SINGLE, ("return weight", "return weight.double()")),
            "it is right to a few digits only: was something computed in float32?",
        ),
        ("the others stay", _row(("    weight -= weight[p] / inverse[p, p] * inverse[:, p]\n", "")), ""),
        (
            "no-op: returns the weight",
            _row(("range(k)", "range(0)")),
            ": is a weight chosen twice (removed ones need the score infinity), or does a removed one move again?",
        ),
        ("multiplies by the diagonal", _row(("/ inverse.diagonal()", "* inverse.diagonal()")), ""),
    ],
    "pattern": [
        ("dearest first", _pattern(("torch.inf).argmin()", "-1.0).argmax()")), "; one by one it is"),
        (
            "scales what is left",
            _pattern(("return weight", "return 1.01 * weight")),
            "the right weights are gone, but the others are not the best for what is left",
        ),
        (
            "the smallest of each block at the start",
            _pattern(("weight.square() / inverse.diagonal()", "start"), ("left =", "start = weight.abs()\nleft =")),
            "these are the smallest of each block: use w²/[H⁻¹]_pp",
        ),
        (
            "n kept instead of n zeros",
            _pattern(("n * (inp // m)", "(m - n) * (inp // m)"), (">= n", ">= m - n")),
            "zeros in every",
        ),
        ("zeros anywhere in the row", _pattern(("left & ~full", "left")), "zeros in the blocks of"),
        (
            "one weight too few",
            _pattern(("range(n * (inp // m))", "range(n * (inp // m) - 1)")),
            "zeros in the blocks of",
        ),
        (
            "blocks are strided",
            _pattern(
                (
                    "(~left).reshape(-1, m).sum(1) >= n).repeat_interleave(m)",
                    "(~left).reshape(m, -1).sum(0) >= n).repeat(m)",
                )
            ),
            "",
        ),
        ("always 2:4", _pattern(("weight, inverse", "n, m = 2, 4\nweight, inverse")), ""),
        (
            "inverse is never updated",
            _pattern((_STALE, "")),
            "the inverse is never updated: after each removal take the input out of H⁻¹, too (question 4)",
        ),
        (
            "0/0 of removed weights",
            _pattern(
                (
                    "torch.where(left & ~full, weight.square() / inverse.diagonal(), torch.inf)",
                    "torch.where(~full, weight.square() / inverse.diagonal(), torch.inf)",
                ),
                ("    left[p] = False\n", "    left[p] = False\n    inverse[p, :] = 0\n    inverse[:, p] = 0\n"),
            ),
            "NaN: the score of a removed weight is 0/0; give removed weights the score infinity",
        ),
        ("smallest of each block", _pattern(("weight.square() / inverse.diagonal()", "weight.abs()")), ""),
        (
            "one block after the other",
            _pattern(("left & ~full", "left & ~full & (torch.arange(inp) // m == _ // n)")),
            "you finished one block before the next: choose over all blocks that are not full",
        ),
        ("mutates the weight", _pattern(_NO_CLONE), "changed its argument"),
        (
            "computed in float32",
            _pattern(_IN_SINGLE, ("return weight", "return weight.double()")),
            "it is right to a few digits only: was something computed in float32?",
        ),
    ],
    "obq": [
        (
            "the first level for all",
            function("obq_row(weight, hessian, levels)", "return levels[:1].repeat(len(weight))"),
            "): is the inverse updated, and are moved weights rounded anew?",
        ),
        (
            "plain rounding",
            _obq(("    weight -= (weight[p] - nearest[p]) / inverse[p, p] * inverse[:, p]\n", "")),
            "this is plain rounding: were all levels chosen at the start",
        ),
        (
            "left to right",
            _obq(
                (
                    "p = int(torch.where(left, (weight - nearest).square() / inverse.diagonal(), torch.inf)"
                    ".argmin())",
                    "p = _",
                )
            ),
            "you went from left to right: OBQ fixes the cheapest first",
        ),
        (
            "rounds the weights of the start",
            _obq(
                ("nearest = levels[(weight[:, None]", "nearest = levels[(start[:, None]"),
                ("result =", "start = weight.clone()\nresult ="),
            ),
            "this is plain rounding: were all levels chosen at the start",
        ),
        (
            "inverse is never updated",
            _obq((_STALE, ""), ("    inverse[p, :] = 0\n", ""), ("    inverse[:, p] = 0\n", "")),
            "",
        ),
        (
            "sign of the update",
            _obq(("weight -= (", "weight += (")),
            "",  # by chance as good as plain rounding, or not
        ),
        ("dearest first", _obq(("torch.inf).argmin()", "-1.0).argmax()")), ""),
        (
            "score without the inverse",
            _obq((".square() / inverse.diagonal()", ".square()")),
            "chosen by (w − quant(w))² alone: divide by [H⁻¹]_pp",
        ),
        (
            "rounds down, not to nearest",
            _obq(
                (
                    "(weight[:, None] - levels).abs().argmin(1)",
                    "((weight[:, None] >= levels).sum(1) - 1).clamp(min=0)",
                )
            ),
            "): is the inverse updated, and are moved weights rounded anew?",
        ),
        (
            "returns the moved weights",
            _obq(("return result", "return weight + 1e-12")),
            "some values are not levels: store the level itself, not the moved weight",
        ),
        ("mutates the weight", _obq(_NO_CLONE), "changed its argument"),
        (
            "off by one: leaves the last weight",
            _obq(("range(len(weight))", "range(len(weight) - 1)"), ("torch.empty_like(weight)", "weight.clone()")),
            "some values are not levels: store the level itself, not the moved weight",
        ),
        (
            "prunes: goes to zero",
            _obq(
                ("nearest = levels[(weight[:, None] - levels).abs().argmin(1)]", "nearest = torch.zeros_like(weight)")
            ),
            "some values are not levels: store the level itself, not the moved weight",
        ),
    ],
    "budget": [
        (
            "levels as floats",
            _budget(("return min(best.values())[1]", "return [float(j) for j in min(best.values())[1]]")),
            "levels are whole numbers, 0 to",
        ),
        (
            "mutates the loss",
            _budget(("best = {0: (0.0, [])}", "loss.add_(1)\nbest = {0: (0.0, [])}")),
            "changed its argument",
        ),
        (
            "each layer's best, over budget",
            "def choose_levels(loss, cost, budget):\n    return loss.argmin(1).tolist()\n",
            "your choice costs",
        ),
        (
            "the cheapest everywhere",
            "def choose_levels(loss, cost, budget):\n    return cost.argmin(1).tolist()\n",
            "your choice has loss",
        ),
        ("less than the budget, not at most", _budget(("key <= budget", "key < budget")), ""),
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
            "greedy: the best step first (by gain, or by gain for its price)",
        ),
        (
            "costs rounded to tens",
            _budget(("cost.tolist()", "((cost + 9) // 10).tolist()"), ("key <= budget", "key <= budget // 10")),
            "your choice has loss",
        ),
        ("most loss", _budget(("return min(", "return max(")), "your choice has loss"),
        (
            "same level everywhere",
            function(
                "choose_levels(loss, cost, budget)",
                """
                fits = [j for j in range(cost.shape[1]) if int(cost[:, j].sum()) <= budget]
                return [min(fits, key=lambda j: float(loss[:, j].sum()), default=0)] * len(loss)
                """,
            ),
            "your choice has loss",
        ),
        (
            "keeps the worst of equal costs",
            _budget(("entry[0] < following", "entry[0] > following")),
            "your choice has loss",
        ),
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
            "",
        ),
        (
            "returns a tensor",
            _budget(("return min(best.values())[1]", "return torch.tensor(min(best.values())[1])")),
            "levels, one for each layer",
        ),
    ],
}
