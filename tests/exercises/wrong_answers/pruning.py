"""Wrong answers to the exercises on pruning: (what is wrong, what is handed in, what is told)."""

from functools import partial

from tests.exercises.wrong_answers.code import function, mutated

_mutated = partial(mutated, "lecture1_pruning")
_magnitude = partial(_mutated, "magnitude-mask")
_pattern = partial(_mutated, "pattern-mask")
_cubic = partial(_mutated, "cubic-schedule")
_normalized = partial(_mutated, "normalized-masks")
_weight = partial(_mutated, "correct-weight")
_bias = partial(_mutated, "correct-bias")
_fit = partial(_mutated, "masked-fit")
_size = partial(_mutated, "equal-size")

WRONG: dict[str, list[tuple[str, str, str]]] = {
    "magnitude-mask": [
        (
            "removes the first",
            _magnitude(("[weight.abs().flatten().argsort()[:zeros]]", "[:zeros]")),
            "is removed and one of size",
        ),
        (
            "threshold: ties fall together",
            function(
                "magnitude_mask(weight, zeros)",
                """
                if zeros == 0:
                    return torch.ones_like(weight, dtype=torch.bool)
                return weight.abs() > weight.abs().flatten().sort().values[zeros - 1]
                """,
            ),
            ": count, do not compare with a threshold",
        ),
        (
            "turned round",
            _magnitude(("torch.ones(", "torch.zeros("), ("= False", "= True")),
            "turned round: the mask is True where a weight is kept",
        ),
        (
            "signed values",
            _magnitude(("weight.abs().flatten()", "weight.flatten()")),
            "you sorted signed values: a weight of −3 is large",
        ),
        (
            "removes the largest",
            _magnitude((".argsort()", ".argsort(descending=True)")),
            "turned round: the smallest go",
        ),
        ("one too many", _magnitude(("[:zeros]", "[: zeros + 1]")), "weights are removed,"),
        (
            "row by row",
            function(
                "magnitude_mask(weight, zeros)",
                """
                out, inp = weight.shape
                mask = torch.ones_like(weight, dtype=torch.bool)
                for i in range(out):
                    count = zeros // out + (i < zeros % out)
                    mask[i, weight[i].abs().argsort()[:count]] = False
                return mask
                """,
            ),
            "you pruned each row by itself: rank the whole matrix",
        ),
        (
            "returns the weight",
            _magnitude(("return mask.reshape(weight.shape)", "return weight * mask.reshape(weight.shape)")),
            "see the function's description",
        ),
        ("flat", _magnitude(("return mask.reshape(weight.shape)", "return mask")), "the shape must be"),
        ("mutates the weight", _magnitude(("weight.abs()", "weight.abs_()")), "changed its argument"),
    ],
    "pattern-mask": [
        (
            "removes the first of a group",
            _pattern(("groups.argsort(-1)", "torch.arange(m).expand(groups.shape)")),
            "a group loses a weight that is larger than one it keeps",
        ),
        ("n kept", _pattern(("[..., :n]", "[..., : m - n]")), "n is the number of zeros, not of kept weights:"),
        (
            "strided groups",
            _pattern(
                ("weight.abs().reshape(len(weight), -1, m)", "weight.abs().reshape(len(weight), m, -1).mT"),
                ("mask.reshape(weight", "mask.mT.reshape(weight"),
            ),
            "a group is m consecutive inputs, not every so-manyth",
        ),
        (
            "turned round",
            _pattern(("torch.ones_like", "torch.zeros_like"), ("False", "True")),
            "turned round: the smallest go, and the mask is True where a weight is kept",
        ),
        (
            "removes the largest",
            _pattern(("groups.argsort(-1)", "groups.argsort(-1, descending=True)")),
            "turned round: the smallest go, and the mask is True where a weight is kept",
        ),
        ("signed values", _pattern(("weight.abs()", "weight")), "you sorted signed values: a weight of −3 is large"),
        (
            "threshold: ties fall together",
            _pattern(
                (
                    "mask.scatter_(-1, groups.argsort(-1)[..., :n], False)",
                    "mask = groups > groups.sort(-1).values[..., n - 1 : n] if n else mask",
                )
            ),
            "zeros; each needs",
        ),
        ("always 2:4", _pattern(("    groups =", "    n, m = 2, 4\n    groups =")), "smallest go from all"),
        (
            "the right number, anywhere in the row",
            function(
                "pattern_mask(weight, n, m)",
                """
                mask = torch.ones_like(weight, dtype=torch.bool)
                order = weight.abs().argsort(1)
                return mask.scatter_(1, order[:, : n * (weight.shape[1] // m)], False)
                """,
            ),
            "the total is right, but not in each group",
        ),
        ("mutates the weight", _pattern(("weight.abs()", "weight.abs_()")), "changed its argument"),
    ],
    "cubic-schedule": [
        ("fourth power", _cubic(("** 3", "** 4")), "steps the sparsity is"),
        ("returns nothing", _cubic(("return final", "final")), "return a number"),
        ("linear", _cubic(("** 3", "** 1")), "this is a straight line: the power of 3 is missing"),
        ("square", _cubic(("** 3", "** 2")), "the power is 3, not 2"),
        (
            "late instead of early",
            _cubic(("final + (initial - final) * (1 - share) ** 3", "initial + (final - initial) * share**3")),
            "fast at first, slow at the end: yours is the other way round",
        ),
        (
            "final and initial exchanged",
            _cubic(("final + (initial - final)", "initial + (final - initial)")),
            "at the start the sparsity is",
        ),
        (
            "not clamped after the end",
            _cubic(("min(max((t - start) / length, 0.0), 1.0)", "max((t - start) / length, 0.0)")),
            "after the end the sparsity is the final one: clamp",
        ),
        (
            "not clamped before the start",
            _cubic(("min(max((t - start) / length, 0.0), 1.0)", "min((t - start) / length, 1.0)")),
            "before the start the sparsity is the initial one: clamp",
        ),
        ("ignores the start", _cubic(("(t - start)", "t")), "at the start the sparsity is"),
        ("one step short", _cubic(("/ length", "/ (length + 1)")), "at the end the sparsity is"),
        ("density, not sparsity", _cubic(("return final", "return 1 - final")), "at the start the sparsity is"),
    ],
    "normalized-masks": [
        (
            "one layer's mask only",
            _normalized(
                ("return [part.reshape(w.shape) for part, w in zip(parts, weights, strict=True)]", "return parts[0]")
            ),
            "return a list of",
        ),
        (
            "plain magnitude",
            _normalized((" / (w.norm() if w.any() else 1.0)", "")),
            "this is the plain magnitude: divide by the layer's norm",
        ),
        (
            "each layer by itself",
            function(
                "normalized_masks(weights, zeros)",
                """
                total = sum(w.numel() for w in weights)
                masks, done, seen = [], 0, 0
                for w in weights:
                    seen += w.numel()
                    count = round(zeros * seen / total) - done
                    done += count
                    mask = torch.ones(w.numel(), dtype=torch.bool)
                    mask[w.abs().flatten().argsort()[:count]] = False
                    masks.append(mask.reshape(w.shape))
                return masks
                """,
            ),
            "every layer loses the same share: rank all layers together",
        ),
        (
            "squared norm",
            _normalized(("w.norm() if", "w.square().sum() if")),
            "kept: the norm is the root of the sum of squares of a layer",
        ),
        ("norm per weight (mean of squares)", _normalized(("w.norm() if", "w.square().mean().sqrt() if")), ""),
        ("largest weight instead of the norm", _normalized(("w.norm() if", "w.abs().max() if")), ""),
        (
            "sum of magnitudes",
            _normalized(("w.norm() if", "w.abs().sum() if")),
            "kept: the norm is the root of the sum of squares of a layer",
        ),
        (
            "0/0 in a layer of zeros",
            _normalized((" if w.any() else 1.0", "")),
            "a layer of zeros must go first: is 0/0 in your scores?",
        ),
        (
            "turned round",
            _normalized(("torch.ones(", "torch.zeros("), ("= False", "= True")),
            "turned round: a mask is True where a weight is kept",
        ),
        (
            "threshold: ties fall together",
            _normalized(
                (
                    "mask[torch.cat(scores).argsort()[:zeros]] = False",
                    "s = torch.cat(scores)\n    mask = s > s.sort().values[zeros - 1] if zeros else mask",
                )
            ),
            "should be: count, do not compare with a threshold",
        ),
        ("signed values", _normalized(("w.abs()", "w")), ""),
        ("mutates the weights", _normalized(("w.abs()", "w.abs_()")), "changed its argument"),
    ],
    "correct-weight": [
        (
            "zeros move, too",
            _weight(("torch.where(sparse != 0, corrected, 0.0)", "corrected")),
            "removed weights came back: only kept weights are corrected",
        ),
        (
            "no mean",
            _weight((" + dense.mean(1, keepdim=True) - (scale * sparse).mean(1, keepdim=True)", "")),
            "the spread is right, the mean is not: E(W) − E(λWˢ) is missing",
        ),
        (
            "one λ for the matrix",
            _weight(("(1, correction=0, keepdim=True)", "(correction=0)"), ("mean(1, keepdim=True)", "mean()")),
            "one mean and one spread for the matrix: the correction is row by row",
        ),
        (
            "for each column",
            _weight(("(1, correction=0", "(0, correction=0"), ("mean(1,", "mean(0,")),
            "not λWˢ + E(W) − E(λWˢ) on the kept weights; means and deviations are over all inputs of a row",
        ),
        (
            "λ turned round",
            _weight(
                ("scale = dense.std", "scale = 1 / dense.std"),
                (
                    "keepdim=True) / (sparse.std(1, correction=0, keepdim=True) + eps)",
                    "keepdim=True) * sparse.std(1, correction=0, keepdim=True)",
                ),
            ),
            "λ is turned round: the sparse row must become wider",
        ),
        (
            "divides by n − 1",
            _weight(("correction=0", "correction=1")),
            "a deviation divides by n − 1: here by n, the number of weights",
        ),
        (
            "mean of Wˢ, not of λWˢ",
            _weight(("(scale * sparse).mean(1", "sparse.mean(1")),
            "subtract the mean of λWˢ, not of Wˢ",
        ),
        (
            "statistics of the kept weights",
            _weight(
                (
                    "sparse.std(1, correction=0, keepdim=True)",
                    "torch.stack([r[r != 0].std(correction=0) if r.any() else r.sum() for r in sparse])[:, None]",
                )
            ),
            "not λWˢ + E(W) − E(λWˢ) on the kept weights; means and deviations are over all inputs of a row",
        ),
        ("no ε", _weight((" + eps", "")), "ε is missing: σ(Wˢ) + ε"),
        (
            "divides by n − 1 in the dense row only",
            _weight(("dense.std(1, correction=0, ", "dense.std(1, ")),
            "a deviation divides by n − 1: here by n, the number of weights",
        ),
        (
            "norms instead of deviations",
            _weight((".std(1, correction=0, keepdim=True)", ".square().mean(1, keepdim=True).sqrt()")),
            "not λWˢ + E(W) − E(λWˢ) on the kept weights; means and deviations are over all inputs of a row",
        ),
        (
            "no-op",
            _weight(("return torch.where(sparse != 0, corrected, 0.0)", "return sparse.clone()")),
            "not λWˢ + E(W) − E(λWˢ) on the kept weights; means and deviations are over all inputs of a row",
        ),
        (
            "mutates the sparse weight",
            _weight(
                ("corrected = scale * sparse +", "corrected = sparse.mul_(scale) +"),
                ("(scale * sparse).mean", "sparse.mean"),
            ),
            "changed its argument",
        ),
    ],
    "correct-bias": [
        (
            "sign",
            _bias(
                (
                    "bias + dense_outputs.mean((0, 2, 3)) - sparse_outputs.mean((0, 2, 3))",
                    "bias - dense_outputs.mean((0, 2, 3)) + sparse_outputs.mean((0, 2, 3))",
                )
            ),
            "the wrong sign: the error of the mean has doubled",
        ),
        (
            "one mean for all channels",
            _bias((".mean((0, 2, 3))", ".mean()")),
            "one mean for all channels: each output channel has its own",
        ),
        ("means over images only", _bias((".mean((0, 2, 3))", ".mean(0)")), "the shape must be"),
        ("the old bias is lost", _bias(("bias + ", "")), "the old bias is lost: add to it"),
        (
            "no-op",
            _bias((" + dense_outputs.mean((0, 2, 3)) - sparse_outputs.mean((0, 2, 3))", " + 0")),
            "the mean has not moved at all",
        ),
        ("sums, not means", _bias((".mean((0, 2, 3))", ".sum((0, 2, 3))")), "with your bias channel"),
        (
            "medians",
            _bias((".mean((0, 2, 3))", ".movedim(1, 0).flatten(1).median(1).values")),
            "with your bias channel",
        ),
        (
            "first image only",
            _bias(("outputs.mean((0, 2, 3))", "outputs[:1].mean((0, 2, 3))")),
            "with your bias channel",
        ),
        (
            "mutates the bias",
            _bias(
                ("return bias + dense_outputs.mean((0, 2, 3)) -", "return bias.add_(dense_outputs.mean((0, 2, 3))) -")
            ),
            "changed its argument",
        ),
    ],
    "masked-fit": [
        (
            "normal equations with a little damping",
            function(
                "masked_fit(weight, mask, inputs)",
                """
                result, gram = torch.zeros_like(weight), inputs @ inputs.T
                for i, kept in enumerate(mask):
                    damped = gram[kept][:, kept] + 1e-4 * torch.eye(int(kept.sum()), dtype=weight.dtype)
                    result[i, kept] = torch.linalg.solve(damped, gram[kept] @ weight[i])
                return result
                """,
            ),
            "nearly, but not the minimum: solve it exactly, without damping, in float64",
        ),
        (
            "only masks",
            function("masked_fit(weight, mask, inputs)", "return weight * mask"),
            "nothing moved: this is the masked weight, not the best one",
        ),
        (
            "target of the masked weight",
            _fit(("(weight[i] @ inputs)", "((weight[i] * mask[i]) @ inputs)")),
            "you fitted the outputs of the masked weight: the target is the dense layer's",
        ),
        (
            "fits all, then masks",
            function(
                "masked_fit(weight, mask, inputs)",
                """
                best = torch.linalg.lstsq(inputs[mask.any(0)].T, (weight @ inputs).T, driver="gelsd").solution.T
                result = torch.zeros_like(weight)
                result[:, mask.any(0)] = best
                return result * mask
                """,
            ),
            "solved without the mask and masked afterwards: each row has its own kept inputs",
        ),
        ("the first row's mask for all", _fit(("mask[i].nonzero()", "mask[0].nonzero()")), ""),
        (
            "the removed weights",
            _fit(("mask[i].nonzero()", "(~mask[i]).nonzero()")),
            "a removed weight is not exactly zero",
        ),
        (
            "normal equations with damping",
            function(
                "masked_fit(weight, mask, inputs)",
                """
                result, gram = torch.zeros_like(weight), inputs @ inputs.T
                for i, kept in enumerate(mask):
                    damped = gram[kept][:, kept] + torch.eye(int(kept.sum()), dtype=weight.dtype)
                    result[i, kept] = torch.linalg.solve(damped, gram[kept] @ weight[i])
                return result
                """,
            ),
            "the loss still has a slope in the kept weights: there are better ones on this mask",
        ),
        (
            "normal equations: fail with few samples",
            _fit(
                (
                    'torch.linalg.lstsq(inputs[kept].T, target, driver="gelsd").solution[:, 0]',
                    "(torch.linalg.inv(inputs[kept] @ inputs[kept].T) @ (inputs[kept] @ target))[:, 0]",
                )
            ),
            "the loss still has a slope in the kept weights: there are better ones on this mask",
        ),
        (
            "some gradient steps",
            function(
                "masked_fit(weight, mask, inputs)",
                """
            result, gram = weight * mask, inputs @ inputs.T
            for _ in range(20):
                result = result - ((result - weight) @ gram) * mask / torch.linalg.matrix_norm(gram, 2)
            return result
            """,
            ),
            "the loss still has a slope in the kept weights: there are better ones on this mask",
        ),
        ("computed in float32", _fit(("inputs[kept].T, target", "inputs[kept].T.float(), target.float()")), ""),
        ("transposed inputs", _fit(("inputs[kept].T, target", "inputs[:, kept], target")), ""),
        (
            "mutates the weight",
            _fit(("torch.zeros_like(weight)", "weight.mul_(mask)"), ("(weight[i] @", "(weight[i].clone() @")),
            "changed its argument",
        ),
    ],
    "equal-size": [
        (
            "one number",
            function("snr_at_equal_size(weight, bits)", "return 10.0"),
            "return two numbers: pruning, quantization",
        ),
        (
            "keeps what should go",
            _size(("ordered[:removed]", "ordered[: len(w) - removed]")),
            "a share of b/16 is kept, not removed",
        ),
        (
            "removes the largest",
            _size(("ordered[:removed]", "ordered[len(w) - removed :]")),
            "dB (the largest b/16 are kept)",
        ),
        (
            "20·log₁₀ of energies",
            _size(
                ("10 * math.log10(signal / ordered", "20 * math.log10(signal / ordered"),
                ("10 * math.log10(signal / noise", "20 * math.log10(signal / noise"),
            ),
            "twice as many decibels: 10·log₁₀ of energies",
        ),
        (
            "noise over signal",
            _size(
                ("(signal / ordered[:removed].sum())", "(ordered[:removed].sum() / signal)"),
                ("(signal / noise)", "(noise / signal)"),
            ),
            "signal over noise, not noise over signal",
        ),
        (
            "norms, not energies",
            _size(
                ("(signal / ordered[:removed].sum())", "((signal / ordered[:removed].sum()) ** 0.5)"),
                ("(signal / noise)", "((signal / noise) ** 0.5)"),
            ),
            "half as many decibels: the norms must be squared",
        ),
        (
            "the other order",
            _size(
                (
                    "return 10 * math.log10(signal / ordered[:removed].sum()), 10 * math.log10(signal / noise)",
                    "return 10 * math.log10(signal / noise), 10 * math.log10(signal / ordered[:removed].sum())",
                )
            ),
            "the order is: pruning, quantization",
        ),
        (
            "2^(b−1) in the step",
            _size(("(2 ** (bits - 1) - 1)\n    rounded", "2 ** (bits - 1)\n    rounded")),
            "dB (see the step and the clip)",
        ),
        ("weights of 32 bits", _size(("bits / 16", "bits / 32")), "dB (the largest b/16 are kept)"),
        ("natural logarithm", _size(("math.log10", "math.log")), "dB (the largest b/16 are kept)"),
        (
            "an affine grid",
            _size(("w.abs().max() / (2 ** (bits - 1) - 1)", "(w.max() - w.min()) / (2**bits - 1)")),
            "dB (see the step and the clip)",
        ),
        (
            "mutates the weight",
            _size(
                ("    w = weight.flatten()\n", "    w = weight.view(-1)\n"),
                ("w.square().sort()", "w.clone().square().sort()"),
                ("    return 10", "    w -= rounded\n    return 10"),
                (
                    "signal, noise = w.square().sum(), (w - rounded).square().sum()",
                    "signal, noise = w.square().sum(), (w - rounded).square().sum()",
                ),
            ),
            "changed its argument",
        ),
    ],
}
