"""Wrong answers to the exercises on quantization: (what is wrong, what is handed in, what is told)."""

from functools import partial

from tests.exercises.wrong_answers.code import function, mutated

_mutated = partial(mutated, "lecture1_quantization")
_affine = partial(_mutated, "affine")
_size = partial(function, "bits_per_weight(out, inp, bits, group)")
_lloyd = partial(_mutated, "lloyd-step")
_fold = partial(_mutated, "fold-batchnorm")
_gradient = partial(_mutated, "step-gradient")
_ldlq = partial(_mutated, "ldlq")
_e8 = partial(_mutated, "nearest-e8")

WRONG: dict[str, list[tuple[str, str, str]]] = {
    "affine": [
        ("a finer step", _affine(("step = (high", "step = 0.9 * (high")), ", it should be"),
        (
            "zero code off by one",
            _affine(("torch.round(-low / step)", "torch.round(-low / step) + 1")),
            ": the zero code is not round(−l/s)",
        ),
        (
            "cuts off towards 0",
            _affine(("torch.round(weight / step)", "torch.trunc(weight / step)")),
            ", and there is a nearer point: round to nearest, do not cut off",
        ),
        (
            "another step for a row of zeros",
            _affine(("step > 0, step, 1.0", "step > 0, step, 2.0")),
            "a row of zeros has step 1 and zero code 0",
        ),
        (
            "a row of zeros does not decode to zeros",
            _affine(("    return codes", "    codes = torch.where(high > low, codes, 1.0)\n    return codes")),
            "a row of zeros must decode to zeros",
        ),
        (
            "one grid for the matrix",
            _affine(
                ("weight.amin(1, keepdim=True)", "weight.amin().reshape(1, 1)"),
                ("weight.amax(1, keepdim=True)", "weight.amax().reshape(1, 1)"),
            ),
            "step or zero is shared by the whole matrix: one for each row",
        ),
        (
            "one grid for each column",
            _affine(("amin(1, keepdim=True)", "amin(0, keepdim=True)"), ("amax(1, keepdim", "amax(0, keepdim")),
            "step or zero belongs to the columns: the task asks for one per row",
        ),
        (
            "2^b steps",
            _affine(("(high - low) / (2**bits - 1)", "(high - low) / 2**bits")),
            "2^b codes have 2^b − 1 steps between them",
        ),
        ("no clip", _affine((".clamp(0, 2**bits - 1)", "")), "codes must lie in 0 …"),
        ("clip one too high", _affine((".clamp(0, 2**bits - 1)", ".clamp(0, 2**bits)")), "codes must lie in 0 …"),
        (
            "zero is not on the grid",
            _affine((".clamp(max=0)", ""), (".clamp(min=0)", "")),
            "the range must include 0, also in one-sided rows",
        ),
        (
            "cuts off",
            _affine(("torch.round(weight / step)", "torch.floor(weight / step)")),
            "",
        ),
        (
            "zero code not rounded",
            _affine(("torch.round(-low / step)", "-low / step")),
            "the zero code must be a whole number: round it",
        ),
        (
            "symmetric",
            _affine(("    step = (high", "    high = torch.maximum(high, -low)\n    low = -high\n    step = (high")),
            "this is the symmetric grid: the affine one has the row's own two ends",
        ),
        (
            "0/0 in a row of zeros",
            _affine(("    step = torch.where(step > 0, step, 1.0)\n", "")),
            "NaN or infinity: a row of zeros has no range, and 0/0 no value",
        ),
        (
            "the zero code comes in before rounding",
            _affine(("torch.round(weight / step) + zero", "torch.round((weight - low) / step)")),
            "(w − l)/s was rounded: the zero code must be a whole number first",
        ),
        ("ignores the share", _affine(("share * ", "")), "the share is ignored: the grid covers a part of the range"),
        (
            "mutates the weight",
            _affine(("weight / step", "weight.div_(step)")),
            "changed its argument",
        ),
        ("codes as floats", _affine(("codes.long()", "codes")), "see the function's description"),
        (
            "returns the weight only",
            _affine(("return codes.long(), step, zero", "return step * (codes - zero)")),
            "return three tensors: codes, step, zero",
        ),
    ],
    "bits-per-weight": [
        ("nothing", _size("return None"), "return a number"),
        (
            "one row's groups for all",
            _size("return bits + -(-inp // group) * (16 + bits) / (out * inp)"),
            "each row has its own groups",
        ),
        ("codes only", _size("return bits"), "codes only: steps and zero codes take room, too"),
        ("no zero codes", _size("return bits + -(-inp // group) * 16 / inp"), "the zero codes are missing"),
        (
            "steps of 32 bits",
            _size("return bits + -(-inp // group) * (32 + bits) / inp"),
            "a step has 16 bits here, not 32",
        ),
        (
            "rounds the groups down",
            _size("return bits + (inp // group) * (16 + bits) / inp"),
            "the last, shorter group has its step as well: round up",
        ),
        (
            "part of a group",
            _size("return bits + (16 + bits) / group"),
            "the last, shorter group has its step as well: groups are whole",
        ),
        (
            "groups of the whole matrix",
            _size("return bits + -(-out * inp // group) * (16 + bits) / (out * inp)"),
            "bits in groups of",
        ),
        (
            "all bits, not per weight",
            _size("return out * (inp * bits + -(-inp // group) * (16 + bits))"),
            "bits in groups of",
        ),
        (
            "zero codes of 16 bits",
            _size("return bits + -(-inp // group) * 32 / inp"),
            "a zero code has as many bits as a code, not 16",
        ),
        (
            "whole bits",
            _size("return (bits * inp + -(-inp // group) * (16 + bits)) // inp"),
            "codes only: steps and zero codes take room, too",
        ),
    ],
    "lloyd-step": [
        (
            "middle of the cell",
            function(
                "lloyd_step(samples, levels)",
                """
                cell = torch.bucketize(samples, (levels[1:] + levels[:-1]) / 2)
                result = levels.clone()
                for i in range(len(levels)):
                    if (cell == i).any():
                        result[i] = (samples[cell == i].min() + samples[cell == i].max()) / 2
                return result
                """,
            ),
            "not the middle of a cell: its mean",
        ),
        (
            "median",
            function(
                "lloyd_step(samples, levels)",
                """
                cell = torch.bucketize(samples, (levels[1:] + levels[:-1]) / 2)
                result = levels.clone()
                for i in range(len(levels)):
                    if (cell == i).any():
                        result[i] = samples[cell == i].median()
                return result
                """,
            ),
            "the level that is best for squared errors is the mean of its samples, not the median",
        ),
        (
            "0/0 in an empty cell",
            _lloyd(("torch.where(count > 0, total / count.clamp(min=1), levels)", "total / count")),
            "NaN: a level without samples has no mean; it stays where it is",
        ),
        (
            "an empty level goes to 0",
            _lloyd(("torch.where(count > 0, total / count.clamp(min=1), levels)", "total / count.clamp(min=1)")),
            "a level without samples must stay where it is",
        ),
        (
            "levels as thresholds",
            _lloyd(("(levels[1:] + levels[:-1]) / 2", "levels[1:].contiguous()")),
            "the levels are not the means of the samples that are nearest to them (one step, no more)",
        ),
        (
            "two steps",
            function(
                "lloyd_step(samples, levels)",
                """
                for _ in range(2):
                    cell = torch.bucketize(samples, (levels[1:] + levels[:-1]) / 2)
                    count = torch.bincount(cell, minlength=len(levels))
                    total = torch.bincount(cell, weights=samples, minlength=len(levels))
                    levels = torch.where(count > 0, total / count.clamp(min=1), levels)
                return levels
                """,
            ),
            "the levels are not the means of the samples that are nearest to them (one step, no more)",
        ),
        ("no-op", _lloyd(("torch.where(count > 0, total / count.clamp(min=1), levels)", "levels")), "no level moved"),
        (
            "half of the way",
            _lloyd(
                (
                    "torch.where(count > 0, total / count.clamp(min=1), levels)",
                    "(levels + torch.where(count > 0, total / count.clamp(min=1), levels)) / 2",
                )
            ),
            "the levels are not the means of the samples that are nearest to them (one step, no more)",
        ),
        (
            "computed in float32",
            _lloyd(
                ("weights=samples", "weights=samples.float()"),
                ("    return torch", "    total = total.double()\n    return torch"),
            ),
            "it is right to a few digits only: was something computed in float32?",
        ),
        (
            "returns the thresholds",
            _lloyd(("torch.where(count > 0, total / count.clamp(min=1), levels)", "(levels[1:] + levels[:-1]) / 2")),
            "the shape must be",
        ),
        (
            "mutates the levels",
            _lloyd(
                (
                    "    return torch.where(count > 0, total / count.clamp(min=1), levels)",
                    "    levels[count > 0] = (total / count)[count > 0]\n    return levels",
                )
            ),
            "changed its argument",
        ),
    ],
    "fold-batchnorm": [
        ("the weight only", _fold((", beta + (bias - mean) * scale", "")), "return two tensors: weight, bias"),
        (
            "variance instead of deviation",
            _fold(("torch.sqrt(var + eps)", "(var + eps)")),
            "divide by the standard deviation, the root of σ² + ε",
        ),
        ("no ε", _fold(("var + eps", "var")), "ε is missing: σ² + ε under the root"),
        (
            "ε outside the root",
            _fold(("torch.sqrt(var + eps)", "(torch.sqrt(var) + eps)")),
            "ε belongs under the root: √(σ² + ε), not √σ² + ε",
        ),
        (
            "the convolution's bias is lost",
            _fold(("(bias - mean) * scale", "-mean * scale")),
            "the weight is right, the bias is not: b, μ and β all go into it, two of them scaled",
        ),
        (
            "bias not scaled",
            _fold(("(bias - mean) * scale", "bias - mean * scale")),
            "the weight is right, the bias is not: b, μ and β all go into it, two of them scaled",
        ),
        (
            "mean not scaled",
            _fold(("(bias - mean) * scale", "bias * scale - mean")),
            "the weight is right, the bias is not: b, μ and β all go into it, two of them scaled",
        ),
        (
            "sign of the mean",
            _fold(("bias - mean", "bias + mean")),
            "the weight is right, the bias is not: b, μ and β all go into it, two of them scaled",
        ),
        (
            "β is missing",
            _fold(("beta + ", "")),
            "the weight is right, the bias is not: b, μ and β all go into it, two of them scaled",
        ),
        (
            "γ is missing",
            _fold(("gamma / torch", "1 / torch")),
            "the folded convolution gives something else than convolution and BatchNorm",
        ),
        (
            "scales the inputs",
            _fold(("scale[:, None, None, None]", "scale.repeat(weight.shape[1])[: weight.shape[1], None, None]")),
            "the folded convolution gives something else than convolution and BatchNorm",
        ),
        (
            "mutates the weight",
            _fold(("weight * scale[", "weight.mul_(scale["), ("None], beta", "None]), beta")),
            "changed its argument",
        ),
    ],
    "step-gradient": [
        (
            "step: 0 inside",
            _gradient(("torch.round(v) - v, quantized", "torch.zeros_like(v), quantized")),
            "∂ŵ/∂s is wrong: product rule inside the range (edges included), ŵ = −n·s or p·s outside",
        ),
        (
            "the value only",
            _gradient((", inside.to(weight.dtype), by_step", "")),
            "return three tensors: the value and two derivatives",
        ),
        ("no clip", _gradient((".clamp(low, high)", "")), "large weights must be clipped"),
        (
            "round has the derivative 0",
            _gradient(("inside.to(weight.dtype)", "torch.zeros_like(weight)")),
            "the derivative of round counts as 1, not as 0: nothing would ever learn",
        ),
        (
            "clipped weights learn as well",
            _gradient(("inside.to(weight.dtype)", "torch.ones_like(weight)")),
            "a clipped weight does not move ŵ: its derivative is 0",
        ),
        (
            "step: forgets the inside of round",
            _gradient(("torch.round(v) - v, quantized", "torch.round(v), quantized")),
            "∂ŵ/∂s = round(w/s) forgets that w/s inside the round depends on s, too",
        ),
        (
            "step: sign",
            _gradient(("torch.round(v) - v, quantized", "v - torch.round(v), quantized")),
            "∂ŵ/∂s has the wrong sign inside the range",
        ),
        (
            "step: clipped weights give 0",
            _gradient(("torch.round(v) - v, quantized", "torch.round(v) - v, torch.zeros_like(v)")),
            "clipped weights do have a derivative by s: they sit at −n·s or p·s",
        ),
        (
            "step: with a unit",
            _gradient(("torch.round(v) - v, quantized", "step * torch.round(v) - weight, quantized")),
            "∂ŵ/∂s has no unit, since ŵ and s have the same: divide by s",
        ),
        (
            "2^(b−1) on both sides",
            _gradient(("2 ** (bits - 1) - 1", "2 ** (bits - 1)")),
            "ŵ is not s·clip(round(w/s), −2^(b−1), 2^(b−1) − 1)",
        ),
        (
            "the edges count as outside",
            _gradient(("(v >= low) & (v <= high)", "(v > low) & (v < high)")),
            "∂ŵ/∂w: 1 inside the range (edges included), 0 outside",
        ),
        (
            "unsigned range",
            _gradient(("-(2 ** (bits - 1)), 2 ** (bits - 1) - 1", "0, 2**bits - 1")),
            "ŵ is not s·clip(round(w/s), −2^(b−1), 2^(b−1) − 1)",
        ),
        (
            "returns codes",
            _gradient(("return step * quantized", "return quantized")),
            "ŵ is not s·clip(round(w/s), −2^(b−1), 2^(b−1) − 1)",
        ),
        (
            "cuts off",
            _gradient(("quantized = torch.round(v)", "quantized = torch.trunc(v)")),
            "ŵ is not s·clip(round(w/s), −2^(b−1), 2^(b−1) − 1)",
        ),
    ],
    "ldlq": [
        (
            "half of the feedback",
            _ldlq(("+ (weight - result)", "+ 0.5 * (weight - result)")),
            "",  # by chance as good as plain rounding, or not
        ),
        (
            "plain rounding",
            _ldlq((" + (weight - result) @ feedback[:, k]", "")),
            "this is plain rounding: the errors must feed back, through column k of U",
        ),
        (
            "the I stays in",
            _ldlq(
                (" - torch.eye(len(hessian), dtype=hessian.dtype)", ""),
                ("weight.clone()", "torch.zeros_like(weight)"),
            ),
            "take the I out: feed back U, not U + I",
        ),
        (
            "sign of the feedback",
            _ldlq(("weight[:, k] + (weight", "weight[:, k] - (weight")),
            "the sign: the errors W − Ŵ are added",
        ),
        (
            "lower triangle, left to right",
            _ldlq(("torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)", "torch.linalg.cholesky(hessian)")),
            "this is plain rounding: the errors must feed back, through column k of U",
        ),
        (
            "transpose of the lower triangle",
            _ldlq(("torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)", "torch.linalg.cholesky(hessian).T")),
            "H = UᵀDU is another decomposition: here the upper factor stands on the left, H = (U + I) D (U + I)ᵀ",
        ),
        (
            "H = UᵀDU with a unit diagonal",
            _ldlq(
                ("torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)", "torch.linalg.cholesky(hessian).T"),
                ("factor / factor.diagonal()", "factor / factor.diagonal()[:, None]"),
            ),
            "H = UᵀDU is another decomposition: here the upper factor stands on the left, H = (U + I) D (U + I)ᵀ",
        ),
        (
            "a row of U",
            _ldlq(("feedback[:, k]", "feedback[k]"), ("weight.clone()", "torch.zeros_like(weight)")),
            "the feedback runs along column k of U, not along its row k",
        ),
        (
            "a row of U, errors in a copy",
            _ldlq(("feedback[:, k]", "feedback[k]")),
            "this is plain rounding: the errors must feed back, through column k of U",
        ),
        (
            "rows divided, not columns",
            _ldlq(("factor / factor.diagonal()", "factor / factor.diagonal()[:, None]")),
            "divide each column of C by its diagonal entry, not each row",
        ),
        (
            "right to left",
            _ldlq(
                ("torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)", "torch.linalg.cholesky(hessian)"),
                ("range(weight.shape[1])", "reversed(range(weight.shape[1]))"),
            ),
            "you went from right to left (a lower U): U is upper, k = 1 comes first",
        ),
        (
            "only the last error",
            _ldlq(("(weight - result) @ feedback[:, k]", "(weight - result)[:, k - 1] * feedback[k - 1, k]")),
            "all earlier errors come in, not only the last one",
        ),
        ("not rounded", _ldlq(("torch.round(", "(")), "the result must be whole numbers"),
        (
            "leaves the last column",
            _ldlq(("range(weight.shape[1])", "range(weight.shape[1] - 1)")),
            "the result must be whole numbers",
        ),
        (
            "mutates the weight",
            _ldlq(("    result = weight.clone()\n", "    result, weight = weight, weight.clone()\n")),
            "changed its argument",
        ),
        (
            "of the inverse",
            _ldlq(("hessian.flip(0, 1)).flip", "torch.linalg.inv(hessian).flip(0, 1)).flip")),
            "decompose H, not its inverse",
        ),
    ],
    "nearest-e8": [
        (
            "thirds",
            function("nearest_e8(x)", "return (3 * x).round() / 3"),
            "coordinates of E8 are whole numbers or halves",
        ),
        (
            "plain rounding",
            function("nearest_e8(x)", "return x.round()"),
            "the sum (after taking off the halves) is odd: this is not a point of E8, see the parity rule",
        ),
        ("D8 only", _e8(("(0.0, 0.5)", "(0.0, 0.0)")), "nearest in D8, but a point of D8 + ½ is nearer: try both"),
        (
            "D8 + ½ only",
            _e8(("(0.0, 0.5)", "(0.5, 0.5)")),
            "nearest in D8 + ½, but a point of D8 is nearer: try both",
        ),
        (
            "no parity",
            _e8(("torch.where(odd, other, rounded)", "rounded")),
            "the sum (after taking off the halves) is odd: this is not a point of E8, see the parity rule",
        ),
        (
            "turns the surest coordinate",
            _e8(("rest.abs().argmax", "rest.abs().argmin")),
            "the parity was mended at the wrong coordinate: turn the one that is furthest from its whole number",
        ),
        (
            "turns it to the far side",
            _e8((">= 0, 1.0, -1.0", ">= 0, -1.0, 1.0")),
            "the right coordinate was turned the wrong way: it goes to the side on which x lies, up or down",
        ),
        (
            "always up",
            _e8((">= 0, 1.0, -1.0", ">= 0, 1.0, 1.0")),
            "the right coordinate was turned the wrong way: it goes to the side on which x lies, up or down",
        ),
        (
            "turns even sums",
            _e8(("% 2 == 1", "% 2 == 0")),
            "the sum (after taking off the halves) is odd: this is not a point of E8, see the parity rule",
        ),
        ("keeps the farther one", _e8(("<= (x - second)", ">= (x - second)")), ": keep the nearer one of the two"),
        (
            "whole numbers and halves mixed",
            function("nearest_e8(x)", "return (2 * x).round() / 2"),
            "mixed: all eight coordinates are whole, or all eight are halves",
        ),
        (
            "mutates its argument",
            _e8(
                ("    candidates = []\n", "    y, x_before = x.clone(), x\n    candidates = []\n"),
                (
                    "return torch.where(nearer, first, second)",
                    "return x_before.copy_(torch.where(nearer, first, second))",
                ),
            ),
            "changed its argument",
        ),
    ],
}
