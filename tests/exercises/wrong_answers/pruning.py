"""Wrong answers to the exercises on pruning: (what is wrong, what a student would hand in)."""

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

WRONG: dict[str, list[tuple[str, str]]] = {
    "magnitude-mask": [
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
        ),
        ("turned round", _magnitude(("torch.ones(", "torch.zeros("), ("= False", "= True"))),
        ("signed values", _magnitude(("weight.abs().flatten()", "weight.flatten()"))),
        ("removes the largest", _magnitude((".argsort()", ".argsort(descending=True)"))),
        ("one too many", _magnitude(("[:zeros]", "[: zeros + 1]"))),
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
        ),
        (
            "returns the weight",
            _magnitude(("return mask.reshape(weight.shape)", "return weight * mask.reshape(weight.shape)")),
        ),
        ("flat", _magnitude(("return mask.reshape(weight.shape)", "return mask"))),
        ("mutates the weight", _magnitude(("weight.abs()", "weight.abs_()"))),
    ],
    "pattern-mask": [
        ("n kept", _pattern(("[..., :n]", "[..., : m - n]"))),
        (
            "strided groups",
            _pattern(
                ("weight.abs().reshape(len(weight), -1, m)", "weight.abs().reshape(len(weight), m, -1).mT"),
                ("mask.reshape(weight", "mask.mT.reshape(weight"),
            ),
        ),
        ("turned round", _pattern(("torch.ones_like", "torch.zeros_like"), ("False", "True"))),
        ("removes the largest", _pattern(("groups.argsort(-1)", "groups.argsort(-1, descending=True)"))),
        ("signed values", _pattern(("weight.abs()", "weight"))),
        (
            "threshold: ties fall together",
            _pattern(
                (
                    "mask.scatter_(-1, groups.argsort(-1)[..., :n], False)",
                    "mask = groups > groups.sort(-1).values[..., n - 1 : n] if n else mask",
                )
            ),
        ),
        ("always 2:4", _pattern(("    groups =", "    n, m = 2, 4\n    groups ="))),
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
        ),
        ("mutates the weight", _pattern(("weight.abs()", "weight.abs_()"))),
    ],
    "cubic-schedule": [
        ("linear", _cubic(("** 3", "** 1"))),
        ("square", _cubic(("** 3", "** 2"))),
        (
            "late instead of early",
            _cubic(("final + (initial - final) * (1 - share) ** 3", "initial + (final - initial) * share**3")),
        ),
        ("final and initial exchanged", _cubic(("final + (initial - final)", "initial + (final - initial)"))),
        (
            "not clamped after the end",
            _cubic(("min(max((t - start) / length, 0.0), 1.0)", "max((t - start) / length, 0.0)")),
        ),
        (
            "not clamped before the start",
            _cubic(("min(max((t - start) / length, 0.0), 1.0)", "min((t - start) / length, 1.0)")),
        ),
        ("ignores the start", _cubic(("(t - start)", "t"))),
        ("one step short", _cubic(("/ length", "/ (length + 1)"))),
        ("density, not sparsity", _cubic(("return final", "return 1 - final"))),
    ],
    "normalized-masks": [
        ("plain magnitude", _normalized((" / (w.norm() if w.any() else 1.0)", ""))),
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
        ),
        ("squared norm", _normalized(("w.norm() if", "w.square().sum() if"))),
        ("norm per weight (mean of squares)", _normalized(("w.norm() if", "w.square().mean().sqrt() if"))),
        ("largest weight instead of the norm", _normalized(("w.norm() if", "w.abs().max() if"))),
        ("sum of magnitudes", _normalized(("w.norm() if", "w.abs().sum() if"))),
        ("0/0 in a layer of zeros", _normalized((" if w.any() else 1.0", ""))),
        ("turned round", _normalized(("torch.ones(", "torch.zeros("), ("= False", "= True"))),
        (
            "threshold: ties fall together",
            _normalized(
                (
                    "mask[torch.cat(scores).argsort()[:zeros]] = False",
                    "s = torch.cat(scores)\n    mask = s > s.sort().values[zeros - 1] if zeros else mask",
                )
            ),
        ),
        ("signed values", _normalized(("w.abs()", "w"))),
        ("mutates the weights", _normalized(("w.abs()", "w.abs_()"))),
    ],
    "correct-weight": [
        ("zeros move, too", _weight(("torch.where(sparse != 0, corrected, 0.0)", "corrected"))),
        ("no mean", _weight((" + dense.mean(1, keepdim=True) - (scale * sparse).mean(1, keepdim=True)", ""))),
        (
            "one λ for the matrix",
            _weight(("(1, correction=0, keepdim=True)", "(correction=0)"), ("mean(1, keepdim=True)", "mean()")),
        ),
        ("for each column", _weight(("(1, correction=0", "(0, correction=0"), ("mean(1,", "mean(0,"))),
        (
            "λ turned round",
            _weight(
                ("scale = dense.std", "scale = 1 / dense.std"),
                (
                    "keepdim=True) / (sparse.std(1, correction=0, keepdim=True) + eps)",
                    "keepdim=True) * sparse.std(1, correction=0, keepdim=True)",
                ),
            ),
        ),
        ("divides by n − 1", _weight(("correction=0", "correction=1"))),
        ("mean of Wˢ, not of λWˢ", _weight(("(scale * sparse).mean(1", "sparse.mean(1"))),
        (
            "statistics of the kept weights",
            _weight(
                (
                    "sparse.std(1, correction=0, keepdim=True)",
                    "torch.stack([r[r != 0].std(correction=0) if r.any() else r.sum() for r in sparse])[:, None]",
                )
            ),
        ),
        ("no ε", _weight((" + eps", ""))),
        ("divides by n − 1 in the dense row only", _weight(("dense.std(1, correction=0, ", "dense.std(1, "))),
        (
            "norms instead of deviations",
            _weight((".std(1, correction=0, keepdim=True)", ".square().mean(1, keepdim=True).sqrt()")),
        ),
        ("no-op", _weight(("return torch.where(sparse != 0, corrected, 0.0)", "return sparse.clone()"))),
        (
            "mutates the sparse weight",
            _weight(
                ("corrected = scale * sparse +", "corrected = sparse.mul_(scale) +"),
                ("(scale * sparse).mean", "sparse.mean"),
            ),
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
        ),
        ("one mean for all channels", _bias((".mean((0, 2, 3))", ".mean()"))),
        ("means over images only", _bias((".mean((0, 2, 3))", ".mean(0)"))),
        ("the old bias is lost", _bias(("bias + ", ""))),
        ("no-op", _bias((" + dense_outputs.mean((0, 2, 3)) - sparse_outputs.mean((0, 2, 3))", " + 0"))),
        ("sums, not means", _bias((".mean((0, 2, 3))", ".sum((0, 2, 3))"))),
        ("medians", _bias((".mean((0, 2, 3))", ".movedim(1, 0).flatten(1).median(1).values"))),
        ("first image only", _bias(("outputs.mean((0, 2, 3))", "outputs[:1].mean((0, 2, 3))"))),
        (
            "mutates the bias",
            _bias(
                ("return bias + dense_outputs.mean((0, 2, 3)) -", "return bias.add_(dense_outputs.mean((0, 2, 3))) -")
            ),
        ),
    ],
    "masked-fit": [
        ("only masks", function("masked_fit(weight, mask, inputs)", "return weight * mask")),
        ("target of the masked weight", _fit(("(weight[i] @ inputs)", "((weight[i] * mask[i]) @ inputs)"))),
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
        ),
        ("the first row's mask for all", _fit(("mask[i].nonzero()", "mask[0].nonzero()"))),
        ("the removed weights", _fit(("mask[i].nonzero()", "(~mask[i]).nonzero()"))),
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
        ),
        (
            "normal equations: fail with few samples",
            _fit(
                (
                    'torch.linalg.lstsq(inputs[kept].T, target, driver="gelsd").solution[:, 0]',
                    "(torch.linalg.inv(inputs[kept] @ inputs[kept].T) @ (inputs[kept] @ target))[:, 0]",
                )
            ),
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
        ),
        ("computed in float32", _fit(("inputs[kept].T, target", "inputs[kept].T.float(), target.float()"))),
        ("transposed inputs", _fit(("inputs[kept].T, target", "inputs[:, kept], target"))),
        (
            "mutates the weight",
            _fit(("torch.zeros_like(weight)", "weight.mul_(mask)"), ("(weight[i] @", "(weight[i].clone() @")),
        ),
    ],
    "equal-size": [
        ("keeps what should go", _size(("ordered[:removed]", "ordered[: len(w) - removed]"))),
        ("removes the largest", _size(("ordered[:removed]", "ordered[len(w) - removed :]"))),
        (
            "20·log₁₀ of energies",
            _size(
                ("10 * math.log10(signal / ordered", "20 * math.log10(signal / ordered"),
                ("10 * math.log10(signal / noise", "20 * math.log10(signal / noise"),
            ),
        ),
        (
            "noise over signal",
            _size(
                ("(signal / ordered[:removed].sum())", "(ordered[:removed].sum() / signal)"),
                ("(signal / noise)", "(noise / signal)"),
            ),
        ),
        (
            "norms, not energies",
            _size(
                ("(signal / ordered[:removed].sum())", "((signal / ordered[:removed].sum()) ** 0.5)"),
                ("(signal / noise)", "((signal / noise) ** 0.5)"),
            ),
        ),
        (
            "the other order",
            _size(
                (
                    "return 10 * math.log10(signal / ordered[:removed].sum()), 10 * math.log10(signal / noise)",
                    "return 10 * math.log10(signal / noise), 10 * math.log10(signal / ordered[:removed].sum())",
                )
            ),
        ),
        ("2^(b−1) in the step", _size(("(2 ** (bits - 1) - 1)\n    rounded", "2 ** (bits - 1)\n    rounded"))),
        ("weights of 32 bits", _size(("bits / 16", "bits / 32"))),
        ("natural logarithm", _size(("math.log10", "math.log"))),
        ("an affine grid", _size(("w.abs().max() / (2 ** (bits - 1) - 1)", "(w.max() - w.min()) / (2**bits - 1)"))),
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
        ),
    ],
}
