"""Wrong answers to the exercises on quantization and heads."""

from functools import partial

from tests.exercises.wrong_answers.code import function, mutated

_mutated = partial(mutated, "lecture4_quantization")
_absmax = partial(_mutated, "absmax-rows")
_split = partial(_mutated, "split-product")
_neuron = partial(_mutated, "binary-neuron")
_signs = partial(_mutated, "sign-products")
_fold = partial(_mutated, "fold-sign")
_outlier = partial(_mutated, "outlier-mask")
_levels = partial(_mutated, "body-levels")
_scales = partial(_mutated, "double-scales")
_heads = partial(_mutated, "head-importance")
_size = partial(_mutated, "expected-size")

_LARGEST = "matrix.abs().amax(1, keepdim=True)"
_LARGE = "(x.abs() >= threshold).any(0)"
_TAU = "mean - beta * (variance + eps).sqrt() / torch.where(gamma == 0, 1.0, gamma)"
_DENSITY = "-z.square() / 2 - spread.log() - math.log(2 * math.pi) / 2 < log_density"

WRONG: dict[str, list[tuple[str, str, str]]] = {
    "absmax-rows": [
        ("codes alone", _absmax((".to(torch.int8), scale", ".to(torch.int8)")), "return two tensors: the codes"),
        (
            "one scale for all",
            _absmax((_LARGEST, "matrix.abs().amax()")),
            "one scale for the whole matrix: each row has its own here",
        ),
        (
            "columns",
            _absmax((_LARGEST, "matrix.abs().amax(0, keepdim=True)")),
            "these are scales of columns: the maximum is taken along a row",
        ),
        (
            "the largest number",
            _absmax((_LARGEST, "matrix.amax(1, keepdim=True)"), ("largest > 0", "largest != 0")),
            "the largest size, not the largest number: −3 is larger than 2",
        ),
        (
            "128",
            _absmax(("/ 127", "/ 128")),
            "the largest size gets the code 127, not 128",
        ),
        (
            "cuts off",
            _absmax(("torch.round(matrix / scale)", "(matrix / scale).trunc()")),
            "round to the nearest whole number: cutting off makes every code too small",
        ),
        (
            "a row of zeros",
            _absmax(
                ("torch.where(largest > 0, largest / 127, 1.0)", "largest / 127"),
                ("torch.round(matrix / scale)", "torch.round(matrix / scale).nan_to_num()"),
            ),
            "nothing can be divided by the scale of a row of zeros: give it the scale 1",
        ),
        (
            "halves the codes",
            _absmax(("torch.round(matrix / scale)", "torch.round(matrix / scale / 2)")),
            "the codes are not the nearest whole numbers to entry over scale",
        ),
        (
            "the scale turned round",
            _absmax(("torch.int8), scale", "torch.int8), 1 / scale")),
            "the codes are right; the scale is what a code is multiplied by to get the entry",
        ),
        ("float codes", _absmax((".to(torch.int8), scale", ", scale")), "the result must be int8"),
        ("mutates the matrix", _absmax(("matrix.abs().amax", "matrix.abs_().amax")), "changed its argument"),
    ],
    "split-product": [
        (
            "no column goes",
            _split((_LARGE, "(x.abs() >= math.inf).any(0)")),
            "no column went: all of them were quantized",
        ),
        (
            "the rest alone",
            _split((" + x[:, large] @ weight[:, large].T", "")),
            "the columns that went have a product of their own, which is added",
        ),
        (
            "entries",
            _split((".any(0)", ""), ("x[:, large] @ weight[:, large].T", "torch.where(large, x, 0.0) @ weight.T")),
            "whole columns go, not only the entries that are large",
        ),
        (
            "tokens",
            _split(
                (".any(0)", ".any(1, keepdim=True)"),
                ("x[:, large] @ weight[:, large].T", "torch.where(large, x, 0.0) @ weight.T"),
            ),
            "the large entries share a column, not a row: take columns of X out, not tokens",
        ),
        (
            "columns of the weight",
            _split((_LARGE, "(weight.abs() >= threshold).any(0)")),
            "the threshold looks at X, not at W",
        ),
        ("above only", _split((">= threshold", "> threshold")), "an entry that equals the threshold is large, too"),
        (
            "scales of whole rows",
            _split(
                (
                    "q, s = codes(torch.where(large, 0.0, x))",
                    "_, s = codes(x)\n    q = torch.round(torch.where(large, 0.0, x) / s)",
                )
            ),
            "the scale of a token is taken without the columns that went",
        ),
        (
            "one scale for each matrix",
            _split((_LARGEST, "matrix.abs().amax()"), ("s * u.T * (q", "s * u * (q")),
            "one scale for each matrix: here each row of X and each row of W has its own",
        ),
        (
            "decoded weights",
            _split(("@ weight[:, large].T", "@ (u * p)[:, large].T")),
            "in the columns that went the weights are multiplied as they are, not decoded from their codes",
        ),
        (
            "nothing is rounded",
            function("split_product(x, weight, threshold)", "return x @ weight.T"),
            "this is the product without any rounding: the other columns are 8-bit codes",
        ),
        (
            "seven bits",
            _split(("/ 127", "/ 63")),
            "not the sum of the two products: check columns, scales and codes one after the other",
        ),
        (
            "nothing where all columns go",
            _split(("    q, s = codes", "    if large.all():\n        return 0 * (x @ weight.T)\n    q, s = codes")),
            "wrong where all columns go, or none",
        ),
        (
            "mutates x",
            _split(("codes(torch.where(large, 0.0, x))", "codes(x.masked_fill_(large, 0.0))")),
            "changed its argument",
        ),
    ],
    "binary-neuron": [
        (
            "two tensors",
            _neuron((", torch.where(x.abs() <= 1, upstream, 0.0)", "")),
            "return three tensors: signs, probabilities, gradients",
        ),
        (
            "torch.sign",
            _neuron(("torch.where(x >= 0, 1.0, -1.0).double()", "x.sign()")),
            "there are two values only: the sign of 0 is +1 here",
        ),
        ("probability of −1", _neuron(("((x + 1) / 2)", "((1 - x) / 2)")), "this is the probability of −1"),
        (
            "logistic",
            _neuron(("((x + 1) / 2).clamp(0, 1)", "x.sigmoid()")),
            "the hard sigmoid is a straight line between −1 and 1, not the logistic function",
        ),
        ("not clipped", _neuron((".clamp(0, 1)", "")), "a probability lies in 0 … 1: clip it"),
        (
            "passes everything on",
            _neuron(("torch.where(x.abs() <= 1, upstream, 0.0)", "upstream.clone()")),
            "beyond ±1 the hard tanh is flat: the gradient there is 0",
        ),
        ("not at the edges", _neuron(("x.abs() <= 1", "x.abs() < 1")), "at ±1 itself the gradient is passed on"),
        (
            "tanh",
            _neuron(("torch.where(x.abs() <= 1, upstream, 0.0)", "upstream * (1 - x.tanh().square())")),
            "this is the derivative of tanh: the hard one has 1 or 0",
        ),
        (
            "half",
            _neuron(("upstream, 0.0)", "upstream / 2, 0.0)")),
            "this is the derivative of the hard sigmoid: the sign's mean is twice that, minus one",
        ),
        (
            "turned round",
            _neuron(("x >= 0, 1.0, -1.0", "x >= 0, -1.0, 1.0")),
            " are not those of the description",
        ),
        ("float32", _neuron((".double()", "")), "the result must be float64"),
        ("mutates x", _neuron((".clamp(0, 1)", ".clamp(0, 1) + 0 * x.mul_(2)")), "changed its argument"),
    ],
    "sign-products": [
        (
            "compares the padding",
            _signs(("    if n % 8:\n        differ[..., -1] &= 2 ** (n % 8) - 1\n", "")),
            "bits behind the n signs were compared, too: they are no signs, and may differ",
        ),
        (
            "counts the padding",
            _signs(
                ("    if n % 8:\n        differ[..., -1] &= 2 ** (n % 8) - 1\n", ""),
                ("return n -", "return 8 * a.shape[1] -"),
            ),
            "a row has n signs; all bits of its bytes were counted as such",
        ),
        (
            "once",
            _signs(("n - 2 * ones", "n - ones")),
            "n minus the ones is the number of equal signs: those that differ are subtracted, too",
        ),
        (
            "turned round",
            _signs(("n - 2 * ones[differ.long()].sum(-1)", "2 * ones[differ.long()].sum(-1) - n")),
            "turned round: signs that differ have the product −1",
        ),
        ("AND", _signs(("] ^ b", "] & b")), "AND finds where both are +1: two −1 give +1 as well"),
        (
            "high bits of the last byte",
            _signs(("&= 2 ** (n % 8) - 1", "&= 256 - 2 ** (8 - n % 8)")),
            "the signs in the last byte are its low bits, those worth 1, 2, 4 …",
        ),
        (
            "one sign less",
            _signs(("return n - 2", "return n - 1 - 2")),
            "not the sum of the products, sign by sign",
        ),
        ("float64", _signs((".sum(-1)", ".sum(-1).double()")), "the result must be int64"),
        ("mutates a", _signs(("a[:, None] ^ b", "a.bitwise_not_()[:, None] ^ b")), "changed its argument"),
    ],
    "fold-sign": [
        ("at alone", _fold((".long(), torch.where(constant, beta < 0, gamma < 0)", ".long()")), "return two tensors"),
        (
            "never falls",
            _fold(
                ("beta < 0, gamma < 0)", "beta < 0, gamma > torch.inf)"),
                ("torch.where(gamma > 0, tau.ceil(), tau.floor() + 1)", "tau.ceil()"),
            ),
            "a negative γ turns the order round: there the sign is +1 below the threshold",
        ),
        (
            "rounded up on both sides",
            _fold(("torch.where(gamma > 0, tau.ceil(), tau.floor() + 1)", "tau.ceil()")),
            "sign(0) is +1, also where γ is negative: τ itself belongs to the +1",
        ),
        (
            "the nearest",
            _fold(("tau.ceil(), tau.floor() + 1", "tau.round(), tau.round() + 1")),
            "z ≥ τ: a whole number above τ is at least τ rounded up, not to the nearest",
        ),
        ("ε outside", _fold(("(variance + eps).sqrt()", "(variance.sqrt() + eps)")), "ε stands under the root"),
        ("no root", _fold(("(variance + eps).sqrt()", "(variance + eps)")), "the root of v + ε is missing"),
        (
            "the sign of β",
            _fold(("mean - beta", "mean + beta")),
            "a positive β lifts f, so a sum may be smaller: the sign of β's part",
        ),
        (
            "no mean",
            _fold((_TAU, _TAU.removeprefix("mean "))),
            "μ is missing: sums are compared with their mean",
        ),
        (
            "γ = 0 is always +1",
            _fold(("torch.where(constant, beta < 0, gamma < 0)", "gamma < 0")),
            "where γ is 0 the sign is that of β, for every sum",
        ),
        (
            "one too many",
            _fold(("tau.ceil()", "tau.ceil() + 1")),
            "another sign than BatchNorm's for some sum, where γ is ",
        ),
        ("float thresholds", _fold((".long()", "")), "the result must be int64"),
        ("mutates the variance", _fold(("(variance + eps)", "variance.add_(eps)")), "changed its argument"),
    ],
    "outlier-mask": [
        (
            "four standard deviations",
            _outlier((_DENSITY, "z.abs() > 4")),
            "four standard deviations are another rule: the bound is on the log density",
        ),
        (
            "no ln σ",
            _outlier((" - spread.log()", "")),
            "ln σ is missing: a density is a share for each unit of weight",
        ),
        ("no 2π", _outlier((" - math.log(2 * math.pi) / 2", "")), "the 2π of the density is missing"),
        (
            "a fit for each row",
            _outlier(
                ("weight.std(correction=0)", "weight.std(1, correction=0, keepdim=True)"),
                ("weight.mean()", "weight.mean(1, keepdim=True)"),
            ),
            "one fit for the matrix, not one for each row",
        ),
        (
            "one side",
            _outlier((_DENSITY, f"({_DENSITY}) & (z > 0)")),
            "the density is low on both sides: large negative weights are outliers, too",
        ),
        (
            "mean zero",
            _outlier(("(weight - weight.mean())", "weight")),
            "the distance is from the mean, which is not 0",
        ),
        (
            "the body",
            _outlier(("< log_density", ">= log_density")),
            "turned round: the outliers are True, not the body",
        ),
        (
            "n − 1",
            _outlier(("correction=0", "correction=1")),
            "σ divides by the number of weights, not by one less",
        ),
        (
            "no half",
            _outlier(("z.square() / 2", "z.square()")),
            "not the weights with a log density below the bound",
        ),
        ("numbers", _outlier(("< log_density", "- log_density")), "the result must be bool"),
        ("mutates the weight", _outlier(("(weight - weight.mean())", "weight.sub_(weight.mean())")), "changed its"),
    ],
    "body-levels": [
        (
            "bins of equal width",
            _levels(
                (
                    "body.sort().values.reshape(2**bits, -1).mean(1)",
                    "torch.linspace(float(body.min()), float(body.max()), 2**bits + 1, dtype=body.dtype)\n"
                    "    place = torch.bucketize(body, levels[1:-1], right=True)\n"
                    "    levels = torch.stack([body[place == k].sum() / (place == k).sum().clamp(min=1)"
                    " for k in range(2**bits)])",
                ),
                ("return kept", "return kept.sort().values"),
            ),
            "the first bins hold equally many weights; yours are equally wide",
        ),
        (
            "no repetition",
            function("body_levels(body, bits)", "return body.sort().values.reshape(2**bits, -1).mean(1)"),
            "these are the first means: the repetition is missing",
        ),
        (
            "one repetition",
            _levels(
                (
                    "    while True:\n        distance, nearest = (body[:, None] - levels).abs().min(1)\n",
                    "    for step in range(2):\n        distance, nearest = (body[:, None] - levels).abs().min(1)\n"
                    "        if step:\n            return levels\n",
                )
            ),
            "this is one repetition: go on while the sum falls",
        ),
        (
            "squares",
            _levels(("distance.sum()", "distance.square().sum()")),
            "the sum of absolute errors says when to stop; yours went on until the squares no longer fell",
        ),
        (
            "the last levels",
            _levels(("return kept", "return levels")),
            "the last levels did not lower the sum: return those before",
        ),
        (
            "medians",
            _levels((".mean() if", ".median() if")),
            "a level is the mean of its weights, not their median",
        ),
        ("descending", _levels(("return kept", "return kept.flip(0)")), "the levels ascend"),
        (
            "from end to end",
            _levels(("return kept", "return torch.cat([body.min()[None], kept[1:-1], body.max()[None]])")),
            "not GOBO's levels: check the first bins, what is nearest, and when it stops",
        ),
        ("mutates the body", _levels(("body.sort().values.", "body.mul_(2).sort().values.")), "changed its argument"),
    ],
    "double-scales": [
        ("scales alone", _scales((", 8 * len(scales) + 32 * len(rest) + 32", "")), "return two things: the decoded"),
        (
            "no mean",
            _scales(("mean = scales.mean()", "mean = 0.0")),
            "nothing was taken away: all scales are positive, so half of the codes would never be used",
        ),
        (
            "a mean for each block",
            _scales(
                (
                    "mean = scales.mean()",
                    "mean = torch.cat([part.mean().expand(len(part)) for part in scales.split(size)])",
                )
            ),
            "one mean for the whole tensor, not one for each block",
        ),
        (
            "the mean is lost",
            _scales(("[: len(scales)] + mean", "[: len(scales)]")),
            "the mean is added again where the scales are decoded",
        ),
        (
            "one largest size",
            _scales(("rest.abs().amax(1, keepdim=True)", "rest.abs().amax().expand(len(rest), 1)")),
            "each block of scales has its own largest size",
        ),
        (
            "the largest number",
            _scales(
                (
                    "rest.abs().amax(1, keepdim=True)",
                    "torch.stack([part.max() for part in (scales - mean).split(size)])[:, None]",
                ),
                ("largest > 0", "largest != 0"),
            ),
            "what is left has both signs: the largest size, not the largest number",
        ),
        (
            "whole blocks only",
            _scales(("32 * len(rest)", "32 * (len(scales) // size)")),
            "the last block has a largest size as well, though it is not full",
        ),
        (
            "codes only",
            _scales((" + 32 * len(rest) + 32", "")),
            "the codes alone do not decode: each block's largest size and the mean are stored, too",
        ),
        ("no bits for the mean", _scales((" + 32\n", "\n")), "the mean has to be stored as well"),
        (
            "bytes",
            _scales(("8 * len(scales) + 32 * len(rest) + 32", "len(scales) + 4 * len(rest) + 4")),
            "these are bytes: bits are asked for",
        ),
        (
            "bits of a scale in 32",
            _scales(("8 * len(scales)", "32 * len(scales)")),
            "the bits that these scales take are ",
        ),
        (
            "equal scales",
            _scales(("torch.where(largest > 0, largest / 127, 1.0)", "largest / 127")),
            "equal scales leave zeros, and nothing can be divided by those",
        ),
        (
            "seven bits",
            _scales(("largest / 127", "largest / 63")),
            "not the decoded scales: mean, block, largest size, code, and back",
        ),
        ("mutates the scales", _scales(("(scales - mean,", "(scales.sub_(mean),")), "changed its argument"),
    ],
    "head-importance": [
        (
            "size after the mean",
            _heads(("gradient.abs().mean(0)", "gradient.mean(0).abs()")),
            "the size after the mean over examples: what one example gains and another loses cancels",
        ),
        (
            "a switch for each position",
            _heads(
                ("torch.ones(examples, heads,", "torch.ones(examples, positions, heads,"),
                ("switches[:, None, :, None]", "switches[..., None]"),
                ("gradient.abs().mean(0)", "gradient.abs().sum(1).mean(0)"),
            ),
            "the size at each position: one switch stands for all positions of an example",
        ),
        (
            "a switch for each number",
            _heads(
                ("torch.ones(examples, heads,", "torch.ones(examples, positions, heads, states.shape[2] // heads,"),
                ("switches[:, None, :, None]", "switches"),
                ("gradient.abs().mean(0)", "gradient.abs().sum((1, 3)).mean(0)"),
            ),
            "the size of each number's part: one switch stands for all numbers of a head",
        ),
        (
            "sum over examples",
            _heads(("gradient.abs().mean(0)", "gradient.abs().sum(0)")),
            "the mean over examples, not their sum",
        ),
        (
            "gradient by the states",
            _heads(
                ("* switches[:, None, :, None]", "+ (switches - 1)[:, None, :, None]"),
            ),
            "this is the gradient alone: a switch multiplies the head's output",
        ),
        (
            "every heads-th number",
            _heads(
                ("reshape(examples, positions, heads, -1)", "reshape(examples, positions, -1, heads)"),
                ("switches[:, None, :, None]", "switches[:, None, None]"),
            ),
            "a head has neighbouring numbers, d of them in a row",
        ),
        (
            "removal",
            function(
                "head_importance(states, projection, readout, labels, heads)",
                """
                def losses(x):
                    logits = (x.flatten(2) @ projection.T).relu().mean(1) @ readout.T
                    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

                parts = states.reshape(*states.shape[:2], heads, -1)
                keep = 1 - torch.eye(heads, dtype=states.dtype)
                return torch.stack([(losses(parts * k[:, None]) - losses(parts)).abs().mean() for k in keep])
                """,
            ),
            "this compares with the loss without the head; one derivative at ξ = 1 is asked for",
        ),
        (
            "squares",
            _heads(("gradient.abs()", "gradient.square()")),
            "not the mean size of each example's derivative: check where ξ stands, and the loss",
        ),
        ("mutates the states", _heads(("    masked =", "    states *= 2\n    masked =")), "changed its argument"),
    ],
    "expected-size": [
        (
            "three numbers",
            _size(("(in_heads + in_units) * on(hidden).sum())", "in_heads), float(in_units)")),
            "return one number",
        ),
        (
            "not stretched",
            _size((" + 2 / 3 * math.log(11)", "")),
            "σ(log α) is the median of s; the stretch makes the mask above 0 more often",
        ),
        (
            "sign",
            _size((" + 2 / 3 * math", " - 2 / 3 * math")),
            "the sign of τ·ln 11: stretched below 0 by 0.1 only, most masks are above 0",
        ),
        (
            "fine masks alone",
            _size(("on(attention)[:, None] * ", ""), ("on(feed_forward)[:, None] * ", "")),
            "a head counts only if its whole attention layer is there, a unit if its feed-forward layer is",
        ),
        (
            "three matrices",
            _size(("4 * head_dim", "3 * head_dim")),
            "a head has four matrices: query, key, value and output",
        ),
        ("one column", _size(("in_units = 2 *", "in_units =")), "a unit has two columns: one leads to it, one away"),
        (
            "rounded",
            _size(("math.log(11))", "math.log(11)).round()")),
            "this counts what is likelier there than not: the expectation adds probabilities",
        ),
        (
            "without noise",
            _size(
                ("torch.sigmoid(log_alpha + 2 / 3 * math.log(11))", "(1.2 * log_alpha.sigmoid() - 0.1).clamp(0, 1)")
            ),
            "this is the mask without its noise: the probability that it is above 0 is asked for",
        ),
        ("all hidden", _size(("on(hidden).sum()", "len(hidden)")), "hidden dimensions have masks as well"),
        (
            "temperature 1",
            _size(("2 / 3 * math", "math")),
            "not the expected number: check which masks stand before a weight, and how often it counts",
        ),
        ("mutates the masks", _size(("    in_heads", "    hidden += 1\n    in_heads")), "changed its argument"),
    ],
}
