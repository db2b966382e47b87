"""Wrong answers to the exercises on pruning before, during and after training."""

from functools import partial

from tests.exercises.wrong_answers.code import mutated

_mutated = partial(mutated, "lecture3_pruning")
_link = partial(_mutated, "weakest-link")
_lasso = partial(_mutated, "lasso-sweep")
_ticket = partial(_mutated, "next-ticket")
_densities = partial(_mutated, "densities")
_snip = partial(_mutated, "snip")
_grasp = partial(_mutated, "grasp")
_share = partial(_mutated, "moving-share")
_rigl = partial(_mutated, "rigl")
_silent = partial(_mutated, "silent-channels")

_PRICE = "(float(risk[node]) - lost[node]) / (leaves[node] - 1)"
_COSINE = "return alpha / 2 * (1 + math.cos(math.pi * step / end)) if step < end else 0.0"
_DENSE_ONCE = ("        if not above:\n            return result\n        dense |= above", "        return result")

WRONG: dict[str, list[tuple[str, str, str]]] = {
    "weakest-link": [
        ("the node alone", _link(("return best[1], best[0]", "return best[1]")), "return two numbers"),
        (
            "price first",
            _link(("return best[1], best[0]", "return best[0] + 1e-3, best[1]")),
            "the node comes first, a whole number, then its price",
        ),
        (
            "the smallest risk",
            _link(("return best[1], best[0]", "return int(risk.argmin()), best[0]")),
            "a leaf has nothing below it that could be cut",
        ),
        (
            "divides by the leaves",
            _link(("(leaves[node] - 1)", "leaves[node]")),
            "a branch with n leaves adds n − 1 to the tree: divide by that",
        ),
        (
            "counts nodes",
            _link(("(leaves[node] - 1)", "(2 * leaves[node] - 2)")),
            "divide by the leaves that the branch adds, not by its nodes",
        ),
        (
            "the whole saving",
            _link((" / (leaves[node] - 1)", "")),
            "a larger branch can be weaker than its last split: compare all, by the saving for each leaf",
        ),
        (
            "only splits above two leaves",
            _link(("        price =", "        if leaves[node] > 2:\n            continue\n        price =")),
            "a larger branch can be weaker than its last split: compare all, by the saving for each leaf",
        ),
        (
            "the risks of the children",
            _link((_PRICE, "(float(risk[node]) - sum(float(risk[c]) for c in children)) / (leaves[node] - 1)")),
            "the risk of a branch is that of its leaves, however deep they lie, not that of the two children",
        ),
        (
            "the strongest link",
            _link(("min(best or (price, node), (price, node))", "max(best or (price, node), (price, node))")),
            "the weakest link has the smallest g",
        ),
        (
            "the root",
            _link(("best = min(best or (price, node), (price, node))", "best = (price, node)")),
            "the root goes last: look at every node that is split",
        ),
        (
            "relative to the node's risk",
            _link((_PRICE, f"{_PRICE} / float(risk[node])")),
            "not the node of the smallest g, or not the value of its g",
        ),
        ("mutates the risk", _link(("    best = None", "    best = None\n    risk += 1")), "changed its argument"),
    ],
    "lasso-sweep": [
        (
            "threshold λ",
            _lasso(("penalty / 2", "penalty")),
            "the threshold is too high: with no ½ in front of the squares it is not λ",
        ),
        (
            "the mean of squares",
            _lasso(("penalty / 2", "penalty * len(targets) / 2")),
            "this is the objective with a mean over the samples: the lecture has the sum",
        ),
        (
            "all at once",
            _lasso(("features @ beta + column * beta[j]", "features @ start + column * start[j]")),
            "each coefficient uses the new values of those before it: one after the other, not all at once",
        ),
        (
            "residual of all",
            _lasso((" + column * beta[j]", "")),
            "the residual is the one that the *others* leave: the coefficient's own part must not be in it",
        ),
        (
            "not divided by the square",
            _lasso((" / column.square().sum()", "")),
            "the square of the feature is missing: the parabola is not the same for all features",
        ),
        (
            "hard threshold",
            _lasso(("z.sign() * (z.abs() - penalty / 2).clamp(min=0)", "z * (z.abs() > penalty / 2)")),
            "what is not zero is shrunk as well: this is least squares with a threshold",
        ),
        (
            "no sign",
            _lasso(("z.sign() * ", "")),
            "a sign is lost: the soft threshold moves towards 0, from either side",
        ),
        (
            "beyond zero",
            _lasso((".clamp(min=0)", "")),
            "no coefficient is exactly zero: the penalty makes zeros",
        ),
        (
            "divides by the norm",
            _lasso(("column.square().sum()", "column.norm()")),
            "not the best value of each coefficient in its turn",
        ),
        ("mutates the start", _lasso(("start.clone()", "start")), "changed its argument"),
    ],
    "next-ticket": [
        ("the mask alone", _ticket(("return left, first * left", "return left")), "return two tensors: the mask"),
        (
            "a new mask",
            _ticket(("left = mask.flatten().clone()", "left = torch.ones(mask.numel(), dtype=torch.bool)")),
            "a weight came back that was gone already: what is gone stays gone",
        ),
        (
            "a share of all weights",
            _ticket(("rate * int(mask.sum())", "rate * mask.numel()")),
            "the rate is a share of the weights that are left, not of all weights",
        ),
        (
            "threshold: ties fall together",
            _ticket(
                (
                    "left[order[:count]] = False",
                    "left &= (trained.abs().flatten() > trained.abs().flatten()[order[count - 1]]) | (count == 0)",
                )
            ),
            ": count, do not compare with a threshold",
        ),
        (
            "ranks what is gone as well",
            _ticket((".masked_fill(~mask, torch.inf)", "")),
            "should: rank those that are left only, and round to nearest",
        ),
        (
            "rounds down",
            _ticket(("round(rate * int(mask.sum()))", "int(rate * int(mask.sum()))")),
            "should: rank those that are left only, and round to nearest",
        ),
        ("one too many", _ticket(("[:count]", "[: count + 1]")), " weights go, "),
        (
            "ranks the first weights",
            _ticket(("order = trained.abs()", "order = first.abs()")),
            "you ranked the weights from before training: the trained ones decide",
        ),
        (
            "signed values",
            _ticket(("trained.abs()", "trained")),
            "you sorted signed values: a weight of −3 is large",
        ),
        (
            "removes the largest",
            _ticket(("trained.abs()", "(-trained.abs())")),
            "turned round: the smallest go",
        ),
        (
            "removes as they come",
            _ticket(("trained.abs()", "(0 * trained)"), (".argsort()", ".argsort(stable=True)")),
            "a weight goes that is larger than one that stays",
        ),
        ("start without mask", _ticket(("first * left", "first")), "the start is not zero where the mask is False"),
        (
            "goes on from the trained weights",
            _ticket(("first * left", "trained * left")),
            "not rewound: what survives starts again from its first value, not from the trained one",
        ),
        (
            "keeps the signs only",
            _ticket(("first * left", "first.sign() * first.abs().mean() * left")),
            "what survives must have its first value, unchanged",
        ),
        ("mutates the mask", _ticket(("mask.flatten().clone()", "mask.view(-1)")), "changed its argument"),
    ],
    "densities": [
        (
            "one number",
            _densities(("            return result", "            return result[0]")),
            "return a list with one",
        ),
        (
            "turned round",
            _densities(
                (
                    "sum(sum(shapes[k]) for k in free)",
                    "sum(math.prod(shapes[k]) ** 2 / sum(shapes[k]) for k in free)",
                ),
                ("(n + m) / (n * m)", "(n * m) / (n + m)"),
            ),
            "turned round: it is (n + m)/(nm), so that small layers are denser",
        ),
        (
            "the mean of the densities",
            _densities(
                (
                    "left / sum(sum(shapes[k]) for k in free)",
                    "density * len(shapes) / sum((n + m) / (n * m) for n, m in shapes)",
                ),
                _DENSE_ONCE,
            ),
            "the mean of the densities is right, but layers have different sizes: count weights",
        ),
        (
            "no bound",
            _densities(_DENSE_ONCE),
            "a density above 1: no layer keeps more than all of its weights",
        ),
        (
            "cut off at 1",
            _densities(
                (
                    "        if not above:\n            return result\n        dense |= above",
                    "        return [min(d, 1.0) for d in result]",
                )
            ),
            "too few weights are kept: what a dense layer does not take, the others get",
        ),
        (
            "shared out once",
            _densities(("if not above:", "if not above or dense:")),
            "shared out only once: that made another layer more than dense",
        ),
        (
            "no factor",
            _densities(("factor * (n + m)", "(n + m)")),
            " of all weights, not ",
        ),
        (
            "as many for each output",
            _densities(
                ("sum(sum(shapes[k]) for k in free)", "sum(shapes[k][0] for k in free)"),
                ("factor * (n + m) / (n * m)", "factor / m"),
            ),
            "the share of all weights is right, but not how the layers share it",
        ),
    ],
    "snip": [
        (
            "one mask",
            _snip(
                (
                    "mask[: first.numel()].reshape(first.shape), mask[first.numel() :].reshape(second.shape)",
                    "mask",
                )
            ),
            "return two masks, one for each layer",
        ),
        (
            "turned round",
            _snip(("torch.zeros(len", "torch.ones(len"), ("] = True", "] = False")),
            "turned round: a mask is True where a weight is kept",
        ),
        ("one too many", _snip(("[:kept]", "[: kept + 1]")), " weights are kept, not "),
        (
            "the smallest scores",
            _snip(("descending=True", "descending=False")),
            "the smallest scores are kept: the largest should be",
        ),
        (
            "gradient",
            _snip(("(g * w.detach()).abs()", "g.abs()")),
            "this is the size of the gradient alone: the switch stands in front of the weight",
        ),
        (
            "magnitude",
            _snip(("(g * w.detach()).abs()", "w.detach().abs()")),
            "this is magnitude: the batch has no say",
        ),
        (
            "signed scores",
            _snip(("(g * w.detach()).abs()", "(g * w.detach())")),
            "signed scores: a weight whose switch would raise the loss matters as well",
        ),
        (
            "the size for each example",
            _snip(
                (
                    "    gradients = torch.autograd.grad(loss, weights)\n",
                    """    gradients = [0, 0]
    for x, y in zip(inputs, labels, strict=True):
        one = torch.nn.functional.cross_entropy((weights[0] @ x).relu() @ weights[1].T, y)
        gradients = [a + b.abs() for a, b in zip(gradients, torch.autograd.grad(one, weights), strict=True)]
""",
                )
            ),
            "the size was taken for each example: the loss of the batch is one number, with one derivative",
        ),
        (
            "each layer by itself",
            _snip(
                (
                    "    mask[scores.argsort(descending=True)[:kept]] = True\n",
                    """    cut = first.numel()
    count = round(kept * cut / len(scores))
    mask[scores[:cut].argsort(descending=True)[:count]] = True
    mask[cut + scores[cut:].argsort(descending=True)[: kept - count]] = True
""",
                )
            ),
            "each layer was ranked by itself: there is one ranking for all weights",
        ),
        (
            "as they come",
            _snip(("mask[scores.argsort(descending=True)[:kept]]", "mask[:kept]")),
            "a weight is kept whose score is smaller than that of one that is not",
        ),
        ("mutates the weight", _snip(("    mask = ", "    first.mul_(2)\n    mask = ")), "changed its argument"),
    ],
    "grasp": [
        (
            "one layer",
            _grasp(
                (
                    "    return [w.detach() * p for w, p in zip(weights, products, strict=True)]",
                    "    return products[0]",
                )
            ),
            "return two tensors, one for each layer",
        ),
        (
            "sign",
            _grasp(("[w.detach() * p", "[-w.detach() * p")),
            "the sign is turned round: the paper's S is −θ⊙Hg and removes the largest; asked for is θ⊙Hg",
        ),
        (
            "nothing held fixed",
            _grasp(("g.detach() * g", "g * g")),
            "twice too large: the derivative of gᵀg is 2Hg; hold one of the two fixed",
        ),
        ("Hg alone", _grasp(("[w.detach() * p", "[p")), "this is Hg: the score of a weight is θ times that"),
        (
            "gradient times weight",
            _grasp(("zip(weights, products", "zip(weights, (g.detach() for g in gradients)")),
            "this is θ⊙g, SNIP's product: the Hessian is missing",
        ),
        (
            "diagonal of the Hessian",
            _grasp(
                (
                    "    products = torch.autograd.grad(sum((g.detach() * g).sum() for g in gradients), weights)\n",
                    """    products = []
    for w, g in zip(weights, gradients, strict=True):
        flat = g.flatten()
        rows = [torch.autograd.grad(flat[k], w, retain_graph=True)[0].flatten()[k] for k in range(len(flat))]
        products.append(torch.stack(rows).view_as(w) * g.detach())
""",
                )
            ),
            "only the diagonal of the Hessian was used: Hg couples all weights",
        ),
        (
            "each layer for itself",
            _grasp(
                (
                    "torch.autograd.grad(sum((g.detach() * g).sum() for g in gradients), weights)",
                    "[torch.autograd.grad((g.detach() * g).sum(), w, retain_graph=True)[0]"
                    " for g, w in zip(gradients, weights, strict=True)]",
                )
            ),
            "each layer was differentiated by its own gradient only: gᵀg runs over both layers",
        ),
        ("no temperature", _grasp(("logits / temperature", "logits")), "the temperature is missing"),
        (
            "times the temperature",
            _grasp(("logits / temperature", "logits * temperature")),
            "the logits were multiplied by the temperature: divide",
        ),
        (
            "sizes",
            _grasp(("[w.detach() * p", "[(w.detach() * p).abs()")),
            "the sign of a score says whether the gradient shrinks or grows: no absolute value",
        ),
        (
            "the sum of the batch",
            _grasp(("temperature, labels)", 'temperature, labels, reduction="sum")')),
            "not θ⊙Hg: check H (whole, of the mean loss) and g (of the same loss)",
        ),
        (
            "mutates the weight",
            _grasp(("    gradients =", "    second.mul_(2)\n    gradients =")),
            "changed its argument",
        ),
    ],
    "moving-share": [
        ("returns nothing", _share(("return alpha", "alpha")), "return a number"),
        ("no half", _share(("alpha / 2", "alpha")), "twice α at the start: the bracket is 2 there"),
        ("sine", _share(("math.cos", "math.sin")), "at step 0 the share is α = "),
        (
            "goes on after the end",
            _share((" if step < end else 0.0", "")),
            " nothing moves: the cosine rises again there",
        ),
        ("always α", _share((_COSINE, "return alpha")), " on the share is 0, yours is "),
        (
            "degrees",
            _share((_COSINE, "return alpha / 2 * (1 + math.cos(180 * step / end))")),
            " on the share is 0, yours is ",
        ),
        (
            "straight line",
            _share(("alpha / 2 * (1 + math.cos(math.pi * step / end))", "alpha * (1 - step / end)")),
            "this is a straight line, not a cosine",
        ),
        (
            "square",
            _share(("alpha / 2 * (1 + math.cos(math.pi * step / end))", "alpha * (1 - step / end) ** 2")),
            "half way the share is ",
        ),
        (
            "polynomial",
            _share(
                (
                    "alpha / 2 * (1 + math.cos(math.pi * step / end))",
                    "alpha * (1 - 3 * (step / end) ** 2 + 2 * (step / end) ** 3)",
                )
            ),
            "not a cosine between its two ends",
        ),
    ],
    "rigl": [
        (
            "the mask alone",
            _rigl(
                (
                    "return new.reshape(mask.shape), weight * stays.reshape(mask.shape)",
                    "return new.reshape(mask.shape)",
                )
            ),
            "return two tensors: the mask and the weights",
        ),
        (
            "a share of all weights",
            _rigl(("share * int(mask.sum())", "share * mask.numel()")),
            "the share is of the connections that there are, not of all weights",
        ),
        (
            "missing weights are ranked as well",
            _rigl(
                (".masked_fill(~mask, torch.inf)", ""),
                (".argsort()[:count]", ".argsort(stable=True)[:count]"),
                ("masked_fill(stays,", "masked_fill(mask.flatten(),"),
            ),
            "missing weights were ranked with the others: they are zero, and nothing else is dropped",
        ),
        (
            "grows anywhere",
            _rigl((".masked_fill(stays, -torch.inf)", "")),
            "new connections must grow where there is none: leave out those that stay",
        ),
        (
            "dropped ones may not grow",
            _rigl(("masked_fill(stays,", "masked_fill(mask.flatten(),")),
            "what was just dropped may grow again: it is missing like all others",
        ),
        (
            "old values come back",
            _rigl(("weight * stays.reshape", "weight * new.reshape")),
            "what grows starts at 0, also a weight that was only just dropped",
        ),
        (
            "signed gradient",
            _rigl(("gradient.abs()", "gradient")),
            "the size of the gradient counts: a large negative one is large",
        ),
        (
            "the smallest gradient",
            _rigl(("gradient.abs()", "(-gradient.abs())")),
            "connections grow where the gradient is largest, not smallest",
        ),
        (
            "drops the largest",
            _rigl(("weight.abs().masked", "(-weight.abs()).masked")),
            "the smallest weights are dropped, not the largest",
        ),
        (
            "signed weights",
            _rigl(("weight.abs().masked", "weight.masked")),
            "you sorted signed weights: −3 is large",
        ),
        (
            "nothing grows",
            _rigl(("[:count]] = True", "[:0]] = True")),
            " after: as many must grow as are dropped",
        ),
        (
            "dropped weights stay",
            _rigl(("weight * stays.reshape(mask.shape)", "weight.clone()")),
            "a weight without a connection is not zero",
        ),
        (
            "grows as they come",
            _rigl(("gradient.abs()", "(0 * gradient)"), ("descending=True", "descending=True, stable=True")),
            "not the connections with the largest gradients among those that are missing",
        ),
        (
            "grows with a gradient step",
            _rigl(
                (
                    "weight * stays.reshape(mask.shape)",
                    "weight * stays.reshape(mask.shape) - 0.1 * gradient * (new & ~stays).reshape(mask.shape)",
                )
            ),
            "the mask is right, the weights are not: what stays keeps its value",
        ),
        ("mutates the mask", _rigl(("mask.flatten().clone()", "mask.view(-1)")), "changed its argument"),
    ],
    "silent-channels": [
        (
            "the weight alone",
            _silent(("return weight[:, ~silent], bias + change", "return weight[:, ~silent]")),
            "return two tensors: the weight and the bias",
        ),
        ("negative γ goes", _silent(("gamma == 0", "gamma <= 0")), "a negative γ is not silent: only γ = 0 is"),
        (
            "keeps what should go",
            _silent(("return weight[:, ~silent]", "return weight[:, silent]")),
            "not the channels with γ ≠ 0, in their old order",
        ),
        (
            "other order",
            _silent(("return weight[:, ~silent]", "return weight[:, ~silent].flip(1)")),
            "not the channels with γ ≠ 0, in their old order",
        ),
        (
            "forgets the constants",
            _silent(("bias + change", "bias.clone()")),
            "the bias has not changed: a channel with γ = 0 is not zero, it is a constant",
        ),
        (
            "no ReLU",
            _silent((".relu()", "")),
            "ReLU comes between BatchNorm and the convolution: a negative β gives 0",
        ),
        (
            "all channels",
            _silent(("weight[:, silent].sum((2, 3)) @ beta[silent]", "weight.sum((2, 3)) @ beta")),
            "only the channels that are cut go into the bias: the others are still there",
        ),
        ("the old bias is lost", _silent(("bias + change", "change")), "the old bias is lost: add to it"),
        (
            "the tap in the middle",
            _silent((".sum((2, 3))", "[:, :, weight.shape[2] // 2, weight.shape[3] // 2]")),
            "every tap sees the constant, not only the one in the middle",
        ),
        ("mean over taps", _silent((".sum((2, 3))", ".mean((2, 3))")), "the taps add up: sum over them, no mean"),
        (
            "sign",
            _silent(("bias + change", "bias - change")),
            "the wrong sign: what the channels gave is gone, and the bias has to give it",
        ),
        (
            "size of β",
            _silent((".relu()", ".abs()")),
            "the outputs of the convolution have changed: the new bias is not right",
        ),
        ("mutates the bias", _silent(("bias + change", "bias.add_(change)")), "changed its argument"),
    ],
}
