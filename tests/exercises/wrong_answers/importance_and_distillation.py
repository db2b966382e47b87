"""Wrong answers to the exercises on importance, formats and distillation."""

from functools import partial

from tests.exercises.wrong_answers.code import function, mutated

_mutated = partial(mutated, "lecture3_importance")
_bytes = partial(_mutated, "stored-bytes")
_mask = partial(_mutated, "bitmask")
_compress = partial(_mutated, "compress-two-four")
_split = partial(_mutated, "best-split")
_taylor = partial(_mutated, "taylor-channels")
_early = partial(_mutated, "early-damage")
_fisher = partial(_mutated, "fisher-product")
_joint = partial(_mutated, "joint-removal")
_mlp = partial(_mutated, "sparse-mlp")
_loss = partial(_mutated, "distillation-loss")

_SAVED = "return -(-out * inp * bits // 8), values + mask, values + 4 * nonzeros + 4 * (out + 1)"
_EARLY = "(curvature * weight - gradient).square() / (2 * curvature)"
_SCORES = "(gradient * z.detach()).mean(2).abs().mean(0)"

WRONG: dict[str, list[tuple[str, str, str]]] = {
    "stored-bytes": [
        (
            "two numbers",
            _bytes(("return -(-out * inp * bits // 8), values", "return values")),
            "return three numbers",
        ),
        (
            "broken bytes",
            _bytes(("mask = -(-out * inp // 8)", "mask = out * inp / 8 + 1 / 3")),
            "bytes are whole numbers",
        ),
        (
            "bits",
            function(
                "stored_bytes(out, inp, nonzeros, bits)",
                """
                kept = nonzeros * bits
                return out * inp * bits, kept + out * inp, kept + 32 * nonzeros + 32 * (out + 1)
                """,
            ),
            "these are bits: a byte has eight",
        ),
        (
            "rounds down",
            _bytes(
                ("-(-nonzeros * bits // 8)", "nonzeros * bits // 8"),
                ("-(-out * inp // 8)", "out * inp // 8"),
                ("-(-out * inp * bits // 8)", "out * inp * bits // 8"),
            ),
            "a broken byte is a byte: round each list up",
        ),
        (
            "only what comes on top",
            _bytes(("values + mask, values + 4", "mask, 4")),
            "the values that are kept take room as well, in bitmask and CSR",
        ),
        (
            "a bit for each value",
            _bytes(("mask = -(-out * inp // 8)", "mask = -(-nonzeros // 8)")),
            "the mask has a bit for every weight, also for those that are zero",
        ),
        ("no pointers", _bytes((" + 4 * (out + 1)", "")), "CSR's row pointers are missing"),
        (
            "a pointer for each row",
            _bytes(("4 * (out + 1)", "4 * out")),
            "one more pointer than rows: the last row has an end, too",
        ),
        (
            "pointers to columns",
            _bytes(("4 * (out + 1)", "4 * (inp + 1)")),
            "CSR has pointers to its rows, not to its columns",
        ),
        ("columns of 64 bits", _bytes(("4 * nonzeros", "8 * nonzeros")), "a column takes 32 bits, as the task says"),
        (
            "dense values of 32 bits",
            _bytes(("return -(-out * inp * bits // 8)", "return 4 * out * inp")),
            " bits, it takes ",
        ),
    ],
    "bitmask": [
        (
            "bits alone",
            _mask(("return matrix[matrix != 0], ", "return ")),
            "return two tensors: the values and the bits",
        ),
        (
            "high bit first",
            _mask(("2 ** torch.arange(8)", "2 ** (7 - torch.arange(8))")),
            "the bits of a byte are turned round: entry 8i is worth 1, entry 8i + 7 is worth 128",
        ),
        (
            "column by column",
            _mask(("(matrix != 0).flatten()", "(matrix != 0).T.flatten()")),
            "the entries are numbered row by row, not column by column",
        ),
        (
            "marks the zeros",
            _mask(("(matrix != 0).flatten()", "(matrix == 0).flatten()")),
            "a bit says that a value is there, not that it is missing",
        ),
        (
            "each row ends its byte",
            _mask(
                (
                    "marks = (matrix != 0).flatten()",
                    "marks = torch.nn.functional.pad(matrix != 0, (0, -matrix.shape[1] % 8)).flatten()",
                )
            ),
            "a row does not end its byte: the bits go on over the whole matrix",
        ),
        (
            "no last byte",
            _mask(("(padded.reshape(-1, 8)", "(padded[: len(marks) // 8 * 8].reshape(-1, 8)")),
            "the last entries have no byte: what does not fill one needs one all the same",
        ),
        (
            "begins with bit 1",
            _mask(("padded[: len(marks)] = marks", "padded[1 : len(marks)] = marks[:-1]")),
            "not the bits of this matrix: the same entry, another byte or bit",
        ),
        ("int64", _mask((".to(torch.uint8)\n", "\n")), "the result must be uint8"),
        (
            "sizes",
            _mask(("matrix[matrix != 0],", "matrix[matrix != 0].abs(),")),
            "other values than those that are not zero",
        ),
        (
            "values sorted",
            _mask(("matrix[matrix != 0],", "matrix[matrix != 0].sort().values.flip(0),")),
            "the values stand in another order than their bits",
        ),
        (
            "values column by column",
            _mask(("matrix[matrix != 0],", "matrix.T[matrix.T != 0],")),
            "the values stand in another order than their bits",
        ),
        (
            "mutates the matrix",
            _mask(("return matrix[matrix != 0]", "return matrix[matrix.mul_(2) != 0]")),
            "changed its",
        ),
    ],
    "compress-two-four": [
        ("values alone", _compress((", places.flatten(1)\n", "\n")), "return two tensors: the values and the places"),
        (
            "columns of the matrix",
            _compress(
                (", places.flatten(1)\n", ", (places + 4 * torch.arange(places.shape[1])[:, None]).flatten(1)\n")
            ),
            "a place is counted within its group, from 0 to 3",
        ),
        (
            "one place twice",
            _compress(
                (
                    "    return",
                    "    full = groups.gather(-1, places) != 0\n"
                    "    places = torch.where(full, places, torch.where(full.any(-1, keepdim=True),"
                    " (places * full).amax(-1, keepdim=True), 0))\n    return",
                )
            ),
            "a group has the same place twice: two slots, two different places",
        ),
        (
            "the largest first",
            _compress((".indices.sort(-1).values", ".indices")),
            "the places of a group ascend: the smaller one first",
        ),
        (
            "descending",
            _compress((".sort(-1)", ".sort(-1, descending=True)")),
            "the places of a group ascend: the smaller one first",
        ),
        (
            "values in the order of size",
            _compress(("groups.gather(-1, places)", "groups.gather(-1, groups.abs().topk(2, dim=-1).indices)")),
            "a value and its place do not belong together",
        ),
        (
            "signed values",
            _compress(("groups.abs()", "groups")),
            "negative weights are lost: sort sizes, not signed values",
        ),
        (
            "the first two of each group",
            _compress(("groups.abs().topk(2, dim=-1).indices", "torch.tensor([0, 1]).expand(*groups.shape[:2], 2)")),
            "put back into their places, the values do not give the matrix: some are lost",
        ),
        (
            "one for each group",
            _compress(("topk(2", "topk(1")),
            "the shape must be",
        ),
        (
            "mutates the matrix",
            _compress(("groups.abs()", "groups.abs_()")),
            "changed its argument",
        ),
    ],
    "best-split": [
        (
            "three columns",
            _split(("return max(", "return [c for c in max("), ("key=kept)", "key=kept) if c]")),
            "return a list of four",
        ),
        ("a column twice", _split(("([0, *rest]", "([0, 0, *rest[1:]]")), "four different columns of 0 … 7"),
        (
            "the other stripe",
            _split(("return max(", "return [c for c in range(8) if c not in max("), ("key=kept)", "key=kept)]")),
            "this stripe does not hold column 0: return the other one",
        ),
        ("descending", _split(("([0, *rest]", "([*rest[::-1], 0]")), "the columns ascend"),
        ("signed values", _split((".abs()", "")), "you took signed values: a weight of −3 is large"),
        (
            "one stripe counts",
            _split(("for part in (stripe, other))", "for part in (stripe,))")),
            "both stripes count: what one wins, the other may lose",
        ),
        (
            "swaps of one column",
            _split(
                ("combinations(range(1, 8), 3))", "combinations(range(1, 8), 3) if len({1, 2, 3} & {*rest}) != 1)")
            ),
            "swapping one column for one is not enough: some splits are two swaps away from the order as it is",
        ),
        ("keeps least", _split(("return max(", "return min(")), "turned round: this split keeps least"),
        (
            "no search",
            function("best_split(weight)", "return [0, 1, 2, 3]"),
            "these are the columns as they come: try the other splits",
        ),
        (
            "the second best",
            _split(("return max(", "return sorted("), ("key=kept)", "key=kept)[-2]")),
            "not the split that keeps most: look at all 35",
        ),
    ],
    "taylor-channels": [
        (
            "absolute value inside",
            _taylor((_SCORES, "(gradient * z.detach()).abs().mean((0, 2))")),
            "the absolute value at each position adds up what cancels: mean over positions first",
        ),
        (
            "absolute value outside",
            _taylor((_SCORES, "(gradient * z.detach()).mean((0, 2)).abs()")),
            "the absolute value after the examples lets them cancel each other: each example has its own",
        ),
        ("not normalized", _taylor(("scores / scores.norm()", "scores")), "the scores are not divided by their norm"),
        (
            "sum of the scores",
            _taylor(("scores.norm()", "scores.sum()")),
            "divided by the sum of the scores: the ℓ2 norm is the root of the sum of squares",
        ),
        (
            "activation",
            _taylor(("(gradient * z.detach())", "z.detach()")),
            "this is the activation alone, without the gradient",
        ),
        (
            "gradient",
            _taylor(("(gradient * z.detach())", "gradient")),
            "this is the gradient alone: the product with z is missing",
        ),
        (
            "gradient of γ",
            _taylor(("(gradient * z.detach())", "(gradient * gamma[:, None] * normalized)")),
            "this is γ·∂C/∂γ: what β adds to the channel goes with it",
        ),
        (
            "the largest score",
            _taylor(("scores.norm()", "scores.max()")),
            "not Eq. (8), divided by its norm: check z, the gradient by z, both means and the size",
        ),
        (
            "squares",
            _taylor((".abs()", ".square()")),
            "not Eq. (8), divided by its norm: check z, the gradient by z, both means and the size",
        ),
        ("mutates γ", _taylor(("(gamma[:, None] *", "(gamma.mul_(2)[:, None] *")), "changed its argument"),
    ],
    "early-damage": [
        ("OBD", _early((_EARLY, "curvature * weight.square() / 2")), "this is OBD: the gradient is not zero here"),
        (
            "from here",
            _early((_EARLY, "curvature * weight.square() / 2 - gradient * weight")),
            "this is E(0) − E(w): compare with the least loss, which is below E(w) where there is a gradient",
        ),
        (
            "sign",
            _early(("weight - gradient", "weight + gradient")),
            "the sign of the gradient: removing the weight is the step −w, not w",
        ),
        (
            "what is left to gain",
            _early((_EARLY, "gradient.square() / (2 * curvature)")),
            "this is what is left to gain, E(w) − min E: the loss without the weight is missing",
        ),
        (
            "no half",
            _early(("(2 * curvature)", "curvature")),
            "not the difference of the two losses on the parabola: check each of the two",
        ),
        (
            "one number",
            _early((_EARLY, f"({_EARLY}).sum()")),
            "the shape must be",
        ),
        ("mutates the weight", _early(("curvature * weight", "weight.mul_(curvature)")), "changed its argument"),
    ],
    "fisher-product": [
        (
            "the sum of the products",
            _fisher(("small = m * damping", "small = damping")),
            "F holds the mean of the gradients' products, not their sum: where does m belong?",
        ),
        (
            "one gradient short",
            _fisher(
                ("    m = len(gradients)\n", "    m = len(gradients)\n    gradients = gradients[:-1]\n"),
                ("torch.eye(m,", "torch.eye(m - 1,"),
            ),
            "the last gradient is missing",
        ),
        (
            "product with F",
            function(
                "fisher_product(gradients, damping, x)",
                "return damping * x + gradients.T @ (gradients @ x) / len(gradients)",
            ),
            "this is Fx: the inverse is asked for",
        ),
        ("not divided by λ", _fisher((" / damping", "")), "λ times too large: the whole is divided by λ"),
        (
            "sign",
            _fisher(("(x - gradients.T", "(x + gradients.T")),
            "the wrong sign: gradients make F larger and its inverse smaller than I/λ",
        ),
        (
            "diagonal",
            function("fisher_product(gradients, damping, x)", "return x / (damping + gradients.square().mean(0))"),
            "only the diagonal of F was used",
        ),
        (
            "the gradients' products themselves",
            _fisher(("m * damping * torch.eye(m, dtype=x.dtype) + ", "torch.eye(m, dtype=x.dtype) + ")),
            "F times your result is not x",
        ),
        (
            "a matrix of d × d",
            function(
                "fisher_product(gradients, damping, x)",
                """
                fisher = damping * torch.eye(len(x), dtype=x.dtype) + gradients.T @ gradients / len(gradients)
                return torch.linalg.solve(fisher, x)
                """,
            ),
            "fisher_product failed: RuntimeError",
        ),
        (
            "nothing for many weights",
            _fisher(("    m = len", "    if len(x) > 1000:\n        return x / damping\n    m = len")),
            "for many weights F times your result is not x",
        ),
        ("mutates x", _fisher(("return (x -", "x += 0.5\n    return (x -")), "changed its argument"),
    ],
    "joint-removal": [
        ("the weights alone", _joint((", float(weight[group] @ solved) / 2", "")), "return two things: the weights"),
        (
            "not set to zero",
            _joint(("    result[group] = 0\n", "    result[group] = 1e-17\n")),
            "the weights of the group are not exactly zero: set them after the update",
        ),
        (
            "sum of single steps",
            _joint(
                (
                    "torch.linalg.solve(inverse[group][:, group], weight[group])",
                    "weight[group] / inverse.diagonal()[group]",
                )
            ),
            "this is the sum of single steps: each counts on weights that are just leaving. One system for the group",
        ),
        (
            "one after the other",
            _joint(
                (
                    "    result = weight - inverse[:, group] @ solved\n",
                    "    result = weight.clone()\n    for q in group:\n"
                    "        result -= result[q] / inverse[q, q] * inverse[:, q]\n",
                )
            ),
            "one after the other, but with the inverse of the beginning, which still holds what is gone",
        ),
        (
            "no update",
            _joint(("weight - inverse[:, group] @ solved", "weight.clone()")),
            "the others did not move: they make up for the group",
        ),
        (
            "sign",
            _joint(("weight - inverse[:, group] @ solved", "weight + inverse[:, group] @ solved")),
            "the wrong sign: the others moved away from what would help",
        ),
        (
            "block of F",
            _joint(
                (
                    "torch.linalg.solve(inverse[group][:, group], weight[group])",
                    "torch.linalg.inv(inverse)[group][:, group] @ weight[group]",
                )
            ),
            "invert the block of F⁻¹; that is not the block of F",
        ),
        ("twice the cost", _joint((" / 2", "")), "the cost is half of δᵀFδ"),
        (
            "half a step",
            _joint(("weight - inverse[:, group] @ solved", "weight - 0.5 * inverse[:, group] @ solved")),
            "the others are not the best that can be had without the group",
        ),
        (
            "the sum of the single costs",
            _joint(
                (
                    "float(weight[group] @ solved) / 2",
                    "float((weight[group].square() / inverse.diagonal()[group]).sum()) / 2",
                )
            ),
            "the weights are right, their cost is not",
        ),
        (
            "mutates the weight",
            _joint(("    result[group] = 0\n", "    result[group] = 0\n    weight[group] = 0\n")),
            "changed its argument",
        ),
    ],
    "sparse-mlp": [
        (
            "quantile of signed values",
            _mlp((".abs().flatten()", ".flatten()")),
            "the threshold is a quantile of sizes, not of signed values",
        ),
        (
            "sizes before SiLU",
            _mlp(
                ("torch.nn.functional.silu(calibration @ gate.T)", "(calibration @ gate.T)"),
                ("v.abs() >= threshold", "(x @ gate.T).abs() >= threshold"),
            ),
            "the sizes are those of SiLU's outputs, not of what goes into it",
        ),
        (
            "sizes of the product",
            _mlp(
                ("silu(calibration @ gate.T).abs()", "silu(calibration @ gate.T).mul(calibration @ up.T).abs()"),
                ("v.abs() >= threshold", "(v * (x @ up.T)).abs() >= threshold"),
            ),
            "the sizes are those of v alone: u is not known before its rows have been read",
        ),
        (
            "ReLU",
            _mlp(("functional.silu", "functional.relu")),
            "the activation is SiLU: negative entries are small, but not zero",
        ),
        (
            "threshold of x",
            _mlp(("silu(calibration @", "silu(x @")),
            "the threshold comes from the calibration tokens, not from those that are computed",
        ),
        (
            "a threshold for each neuron",
            _mlp(
                (".abs().flatten()", ".abs()"),
                ("sizes.sort().values", "sizes.sort(0).values"),
            ),
            "one threshold for the layer, not one for each neuron",
        ),
        ("keeps the small ones", _mlp((">= threshold", "< threshold")), "turned round: the small ones go"),
        ("dense", _mlp(("v.abs() >= threshold", "v.abs() >= 0")), "nothing was set to zero"),
        (
            "up in the place of the product",
            _mlp(("(v * (x @ up.T)) @ down.T", "(v + (x @ up.T)) @ down.T")),
            "not the outputs with one threshold: check which sizes it is made of, and what is multiplied",
        ),
        ("mutates x", _mlp(("v = torch.nn", "x *= 2\n    v = torch.nn")), "changed its argument"),
    ],
    "distillation-loss": [
        (
            "a loss for each example",
            _loss(
                ("cross_entropy(student, labels)", 'cross_entropy(student, labels, reduction="none")'),
            ),
            "return one number",
        ),
        (
            "float32",
            _loss(("    hard =", "    student, teacher = student.float(), teacher.float()\n    hard =")),
            "stay in float64: the inputs are",
        ),
        ("no T²", _loss(("temperature**2 * ", "")), "T² is missing in front of the soft part"),
        (
            "T, not T²",
            _loss(("temperature**2", "temperature")),
            "the factor is T², not T: the gradient falls with the square of T",
        ),
        (
            "mean over classes",
            _loss(('kl_div(p, q, reduction="batchmean")', 'kl_div(p, q, reduction="none").mean()')),
            "divided by the number of classes, too: the mean is over examples only",
        ),
        (
            "turned round",
            _loss(
                (
                    "(student / temperature).log_softmax(1), (teacher / temperature)",
                    "(teacher / temperature).log_softmax(1), (student / temperature)",
                )
            ),
            "the divergence is turned round: the teacher's distribution is the one that weighs",
        ),
        (
            "temperature for the teacher only",
            _loss(("(student / temperature)", "student")),
            "the student's logits are divided by T as well, in the soft part",
        ),
        (
            "temperature in the cross-entropy",
            _loss(("cross_entropy(student, labels)", "cross_entropy(student / temperature, labels)")),
            "the cross-entropy with the labels has no temperature",
        ),
        (
            "α turned round",
            _loss(("(1 - alpha) * hard + alpha *", "alpha * hard + (1 - alpha) *")),
            "α belongs to the teacher's part, 1 − α to the labels",
        ),
        (
            "sum",
            _loss(
                ("batchmean", "sum"),
                ("cross_entropy(student, labels)", 'cross_entropy(student, labels, reduction="sum")'),
            ),
            "the mean over the examples, not their sum",
        ),
        (
            "cross-entropy with the teacher",
            _loss(('torch.nn.functional.kl_div(p, q, reduction="batchmean")', "-(q * p).sum(1).mean()")),
            "this is the cross-entropy with the teacher: the divergence is less, by the teacher's entropy",
        ),
        (
            "difference of the logits",
            _loss(('torch.nn.functional.kl_div(p, q, reduction="batchmean")', "(student - teacher).square().mean()")),
            "neither part is wrong in a way that is known here: compute one example by hand",
        ),
        (
            "mutates the logits",
            _loss(("(teacher / temperature)", "teacher.div_(temperature)")),
            "changed its argument",
        ),
    ],
}
