"""Wrong answers to the exercises on quantization: (what is wrong, what a student would hand in)."""

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

WRONG: dict[str, list[tuple[str, str]]] = {
    "affine": [
        (
            "one grid for the matrix",
            _affine(
                ("weight.amin(1, keepdim=True)", "weight.amin().reshape(1, 1)"),
                ("weight.amax(1, keepdim=True)", "weight.amax().reshape(1, 1)"),
            ),
        ),
        (
            "one grid for each column",
            _affine(("amin(1, keepdim=True)", "amin(0, keepdim=True)"), ("amax(1, keepdim", "amax(0, keepdim")),
        ),
        ("2^b steps", _affine(("(high - low) / (2**bits - 1)", "(high - low) / 2**bits"))),
        ("no clip", _affine((".clamp(0, 2**bits - 1)", ""))),
        ("clip one too high", _affine((".clamp(0, 2**bits - 1)", ".clamp(0, 2**bits)"))),
        ("zero is not on the grid", _affine((".clamp(max=0)", ""), (".clamp(min=0)", ""))),
        ("cuts off", _affine(("torch.round(weight / step)", "torch.floor(weight / step)"))),
        ("zero code not rounded", _affine(("torch.round(-low / step)", "-low / step"))),
        (
            "symmetric",
            _affine(("    step = (high", "    high = torch.maximum(high, -low)\n    low = -high\n    step = (high")),
        ),
        ("0/0 in a row of zeros", _affine(("    step = torch.where(step > 0, step, 1.0)\n", ""))),
        (
            "the zero code comes in before rounding",
            _affine(("torch.round(weight / step) + zero", "torch.round((weight - low) / step)")),
        ),
        ("ignores the share", _affine(("share * ", ""))),
        ("mutates the weight", _affine(("weight / step", "weight.div_(step)"))),
        ("codes as floats", _affine(("codes.long()", "codes"))),
        ("returns the weight only", _affine(("return codes.long(), step, zero", "return step * (codes - zero)"))),
    ],
    "bits-per-weight": [
        ("codes only", _size("return bits")),
        ("no zero codes", _size("return bits + -(-inp // group) * 16 / inp")),
        ("steps of 32 bits", _size("return bits + -(-inp // group) * (32 + bits) / inp")),
        ("rounds the groups down", _size("return bits + (inp // group) * (16 + bits) / inp")),
        ("part of a group", _size("return bits + (16 + bits) / group")),
        ("groups of the whole matrix", _size("return bits + -(-out * inp // group) * (16 + bits) / (out * inp)")),
        ("all bits, not per weight", _size("return out * (inp * bits + -(-inp // group) * (16 + bits))")),
        ("zero codes of 16 bits", _size("return bits + -(-inp // group) * 32 / inp")),
        ("whole bits", _size("return (bits * inp + -(-inp // group) * (16 + bits)) // inp")),
    ],
    "lloyd-step": [
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
        ),
        (
            "0/0 in an empty cell",
            _lloyd(("torch.where(count > 0, total / count.clamp(min=1), levels)", "total / count")),
        ),
        (
            "an empty level goes to 0",
            _lloyd(("torch.where(count > 0, total / count.clamp(min=1), levels)", "total / count.clamp(min=1)")),
        ),
        ("levels as thresholds", _lloyd(("(levels[1:] + levels[:-1]) / 2", "levels[1:].contiguous()"))),
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
        ),
        ("no-op", _lloyd(("torch.where(count > 0, total / count.clamp(min=1), levels)", "levels"))),
        (
            "half of the way",
            _lloyd(
                (
                    "torch.where(count > 0, total / count.clamp(min=1), levels)",
                    "(levels + torch.where(count > 0, total / count.clamp(min=1), levels)) / 2",
                )
            ),
        ),
        (
            "computed in float32",
            _lloyd(
                ("weights=samples", "weights=samples.float()"),
                ("    return torch", "    total = total.double()\n    return torch"),
            ),
        ),
        (
            "returns the thresholds",
            _lloyd(("torch.where(count > 0, total / count.clamp(min=1), levels)", "(levels[1:] + levels[:-1]) / 2")),
        ),
        (
            "mutates the levels",
            _lloyd(
                (
                    "    return torch.where(count > 0, total / count.clamp(min=1), levels)",
                    "    levels[count > 0] = (total / count)[count > 0]\n    return levels",
                )
            ),
        ),
    ],
    "fold-batchnorm": [
        ("variance instead of deviation", _fold(("torch.sqrt(var + eps)", "(var + eps)"))),
        ("no ε", _fold(("var + eps", "var"))),
        ("ε outside the root", _fold(("torch.sqrt(var + eps)", "(torch.sqrt(var) + eps)"))),
        ("the convolution's bias is lost", _fold(("(bias - mean) * scale", "-mean * scale"))),
        ("bias not scaled", _fold(("(bias - mean) * scale", "bias - mean * scale"))),
        ("mean not scaled", _fold(("(bias - mean) * scale", "bias * scale - mean"))),
        ("sign of the mean", _fold(("bias - mean", "bias + mean"))),
        ("β is missing", _fold(("beta + ", ""))),
        ("γ is missing", _fold(("gamma / torch", "1 / torch"))),
        (
            "scales the inputs",
            _fold(("scale[:, None, None, None]", "scale.repeat(weight.shape[1])[: weight.shape[1], None, None]")),
        ),
        ("mutates the weight", _fold(("weight * scale[", "weight.mul_(scale["), ("None], beta", "None]), beta"))),
    ],
    "step-gradient": [
        ("no clip", _gradient((".clamp(low, high)", ""))),
        ("round has the derivative 0", _gradient(("inside.to(weight.dtype)", "torch.zeros_like(weight)"))),
        ("clipped weights learn as well", _gradient(("inside.to(weight.dtype)", "torch.ones_like(weight)"))),
        (
            "step: forgets the inside of round",
            _gradient(("torch.round(v) - v, quantized", "torch.round(v), quantized")),
        ),
        ("step: sign", _gradient(("torch.round(v) - v, quantized", "v - torch.round(v), quantized"))),
        (
            "step: clipped weights give 0",
            _gradient(("torch.round(v) - v, quantized", "torch.round(v) - v, torch.zeros_like(v)")),
        ),
        (
            "step: with a unit",
            _gradient(("torch.round(v) - v, quantized", "step * torch.round(v) - weight, quantized")),
        ),
        ("2^(b−1) on both sides", _gradient(("2 ** (bits - 1) - 1", "2 ** (bits - 1)"))),
        ("the edges count as outside", _gradient(("(v >= low) & (v <= high)", "(v > low) & (v < high)"))),
        ("unsigned range", _gradient(("-(2 ** (bits - 1)), 2 ** (bits - 1) - 1", "0, 2**bits - 1"))),
        ("returns codes", _gradient(("return step * quantized", "return quantized"))),
        ("cuts off", _gradient(("quantized = torch.round(v)", "quantized = torch.trunc(v)"))),
    ],
    "ldlq": [
        ("plain rounding", _ldlq((" + (weight - result) @ feedback[:, k]", ""))),
        (
            "the I stays in",
            _ldlq(
                (" - torch.eye(len(hessian), dtype=hessian.dtype)", ""),
                ("weight.clone()", "torch.zeros_like(weight)"),
            ),
        ),
        ("sign of the feedback", _ldlq(("weight[:, k] + (weight", "weight[:, k] - (weight"))),
        (
            "lower triangle, left to right",
            _ldlq(("torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)", "torch.linalg.cholesky(hessian)")),
        ),
        (
            "transpose of the lower triangle",
            _ldlq(("torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)", "torch.linalg.cholesky(hessian).T")),
        ),
        (
            "H = UᵀDU with a unit diagonal",
            _ldlq(
                ("torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)", "torch.linalg.cholesky(hessian).T"),
                ("factor / factor.diagonal()", "factor / factor.diagonal()[:, None]"),
            ),
        ),
        (
            "a row of U",
            _ldlq(("feedback[:, k]", "feedback[k]"), ("weight.clone()", "torch.zeros_like(weight)")),
        ),
        ("a row of U, errors in a copy", _ldlq(("feedback[:, k]", "feedback[k]"))),
        ("rows divided, not columns", _ldlq(("factor / factor.diagonal()", "factor / factor.diagonal()[:, None]"))),
        (
            "right to left",
            _ldlq(
                ("torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)", "torch.linalg.cholesky(hessian)"),
                ("range(weight.shape[1])", "reversed(range(weight.shape[1]))"),
            ),
        ),
        (
            "only the last error",
            _ldlq(("(weight - result) @ feedback[:, k]", "(weight - result)[:, k - 1] * feedback[k - 1, k]")),
        ),
        ("not rounded", _ldlq(("torch.round(", "("))),
        ("leaves the last column", _ldlq(("range(weight.shape[1])", "range(weight.shape[1] - 1)"))),
        (
            "mutates the weight",
            _ldlq(("    result = weight.clone()\n", "    result, weight = weight, weight.clone()\n")),
        ),
        ("of the inverse", _ldlq(("hessian.flip(0, 1)).flip", "torch.linalg.inv(hessian).flip(0, 1)).flip"))),
    ],
    "nearest-e8": [
        ("plain rounding", function("nearest_e8(x)", "return x.round()")),
        ("D8 only", _e8(("(0.0, 0.5)", "(0.0, 0.0)"))),
        ("D8 + ½ only", _e8(("(0.0, 0.5)", "(0.5, 0.5)"))),
        ("no parity", _e8(("torch.where(odd, other, rounded)", "rounded"))),
        ("turns the surest coordinate", _e8(("rest.abs().argmax", "rest.abs().argmin"))),
        ("turns it to the far side", _e8((">= 0, 1.0, -1.0", ">= 0, -1.0, 1.0"))),
        ("always up", _e8((">= 0, 1.0, -1.0", ">= 0, 1.0, 1.0"))),
        ("turns even sums", _e8(("% 2 == 1", "% 2 == 0"))),
        ("keeps the farther one", _e8(("<= (x - second)", ">= (x - second)"))),
        ("whole numbers and halves mixed", function("nearest_e8(x)", "return (2 * x).round() / 2")),
        (
            "mutates its argument",
            _e8(
                ("    candidates = []\n", "    y, x_before = x.clone(), x\n    candidates = []\n"),
                (
                    "return torch.where(nearer, first, second)",
                    "return x_before.copy_(torch.where(nearer, first, second))",
                ),
            ),
        ),
    ],
}
