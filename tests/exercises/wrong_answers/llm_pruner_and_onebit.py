"""Wrong answers to the exercises on LLM-Pruner and OneBit."""

from functools import partial

from tests.exercises.wrong_answers.code import function, mutated

_mutated = partial(mutated, "lecture5_pruning")
_gone = partial(_mutated, "gone-nodes")
_heads = partial(_mutated, "head-rows")
_norm = partial(_mutated, "smaller-norm")
_size = partial(_mutated, "pruned-size")
_importance = partial(_mutated, "structure-importance")
_order = partial(_mutated, "removal-order")
_value = partial(_mutated, "sign-value")
_bits = partial(_mutated, "onebit-bits")
_layer = partial(_mutated, "onebit-layer")
_pack = partial(_mutated, "pack-signs")
_product = partial(_mutated, "packed-product")

_SILENT = "reads.any(1) & (dead == reads).all(1)"
_UNREAD = "reads.any(0) & (reads & gone[:, None] == reads).all(0)"
_NEW = "gone | silent | (products & dead.any(1)) | unread"
_SIGNS = "torch.where(weight >= 0, 1.0, -1.0).double()"
_ROWS = "torch.arange(share * rows, share * (rows + size))"
_TOTAL = "(bits + 16 * rest) / (weights + values + rest)"


def _decomposed(matrix: str, vectors: str) -> str:
    return function(
        "sign_value(weight)",
        f"u, s, v = torch.linalg.svd({matrix})\na, b = {vectors}\nreturn {_SIGNS}, a, b",
    )


WRONG: dict[str, list[tuple[str, str, str]]] = {
    "gone-nodes": [
        (
            "the printed rules",
            _gone(
                (_SILENT, "(reads.sum(1) == 1) & (dead == reads).all(1)"),
                (_UNREAD, "(reads.sum(0) == 1) & (reads & gone[:, None] == reads).all(0)"),
                (" | (products & dead.any(1))", ""),
            ),
            "these are the printed rules: 'reads one node' and 'read by one' mean all of them, however many",
        ),
        (
            "any part of a sum",
            _gone((_SILENT, "dead.any(1)")),
            "a sum that still reads something goes on: only all that it reads takes it along",
        ),
        (
            "all factors",
            _gone((" | (products & dead.any(1))", "")),
            "a product is zero as soon as one factor is",
        ),
        ("forwards", _gone((" | unread", "")), "backwards, too: a node that is read only by gone nodes"),
        (
            "backwards",
            _gone((_NEW, "gone | unread")),
            "forwards, too: a node that reads only gone nodes is zero",
        ),
        (
            "once",
            _gone(("if torch.equal(new, gone):", "if True:"), ("return gone", "return new")),
            "what was added takes others along: apply the rules until nothing is added",
        ),
        (
            "all of nothing",
            _gone(("reads.any(1) & ", ""), ("reads.any(0) & ", "")),
            "'all of nothing' is no reason: an input that reads nothing, or an output nobody reads, stays",
        ),
        (
            "not the start",
            _gone(("return gone\n", "return gone & (torch.arange(len(gone)) != start)\n")),
            "the start is gone",
        ),
        (
            "inputs of all of nothing",
            _gone(("reads.any(1) & ", "")),
            "'all of nothing' is no reason: an input that reads nothing",
        ),
        (
            "neighbours",
            function(
                "gone_nodes(reads, products, start)",
                """
                gone = reads[start] | reads[:, start]
                gone[start] = True
                return gone
                """,
            ),
            "other nodes are gone: apply the four rules to a small graph by hand",
        ),
        ("numbers", _gone(("return gone\n", "return gone.long()\n")), "the result must be bool"),
        (
            "mutates the graph",
            _gone(("    gone[start] = True", "    gone[start] = True\n    reads |= products")),
            "changed its argument",
        ),
    ],
    "head-rows": [
        ("rows of q alone", _heads((", torch.arange(rows, rows + size)", "")), "return two tensors: rows of q and"),
        (
            "lists",
            _heads((_ROWS + ",", _ROWS + ".tolist(),")),
            "the numbers of rows are int64 tensors",
        ),
        (
            "one query head",
            _heads(
                ("    rows = kv", "    head = index // size\n    rows = kv"),
                (_ROWS, "torch.arange(head * size, head * size + size)"),
            ),
            "a key-value head goes with all query heads that read it, not with one",
        ),
        (
            "query heads take turns",
            function(
                "head_rows(member, index, heads, kv_heads, size)",
                """
                kv = index // size % kv_heads
                rows = torch.arange(size)
                return (size * torch.arange(kv, heads, kv_heads)[:, None] + rows).flatten(), size * kv + rows
                """,
            ),
            "the query heads of a key-value head are neighbours: they do not take turns",
        ),
        (
            "one row of each head",
            _heads(
                ("    rows = kv", "    place = index % size\n    rows = kv"),
                (
                    f"{_ROWS}, torch.arange(rows, rows + size)",
                    "torch.arange(share * rows + place, share * (rows + size), size), torch.tensor([rows + place])",
                ),
            ),
            "a head goes as a whole, not one position of each",
        ),
        (
            "rotary pairs",
            _heads(
                ("    rows = kv", "    pair = index % (size // 2) + torch.tensor([0, size // 2])\n    rows = kv"),
                (
                    f"{_ROWS}, torch.arange(rows, rows + size)",
                    "(size * torch.arange(share * kv, share * (kv + 1))[:, None] + pair).flatten(), rows + pair",
                ),
            ),
            "a head goes as a whole, not only the two positions that the rotary embedding mixes",
        ),
        (
            "every head",
            function(
                "head_rows(member, index, heads, kv_heads, size)",
                "return torch.arange(heads * size), torch.arange(kv_heads * size)",
            ),
            "only one key-value head goes, and the query heads that read it",
        ),
        (
            "keys like queries",
            _heads(("torch.arange(rows, rows + size)", _ROWS)),
            "the wrong number of rows of q, or of k",
        ),
        (
            "o like k",
            _heads(('("q", "o")', '("q",)')),
            "the right numbers of rows, but others: which head is the given row in?",
        ),
        (
            "the next head",
            _heads(("rows = kv * size", "rows = (kv + 1) % kv_heads * size")),
            "the right numbers of rows, but others: which head is the given row in?",
        ),
    ],
    "smaller-norm": [
        ("gains alone", _norm((", eps * ratio", "")), "return the gains and ε"),
        (
            "a list of gains",
            _norm(("* math.sqrt(ratio),", "* math.sqrt(ratio)).tolist(),"), ("gain[keep]", "(gain[keep]")),
            "the gains are a tensor",
        ),
        (
            "ε for each channel",
            _norm(("eps * ratio", "eps * ratio * torch.ones(len(gain))")),
            "ε is one number",
        ),
        (
            "the old gains",
            _norm((" * math.sqrt(ratio)", "")),
            "with the old gains the outputs shrink: the mean is over fewer channels, so the root is larger",
        ),
        ("nothing changes", _norm((" * math.sqrt(ratio), eps * ratio", ", eps")), "with the old gains the outputs"),
        (
            "turned round",
            _norm(("* math.sqrt(ratio)", "/ math.sqrt(ratio)")),
            "turned round: the root over fewer channels is larger, and the gains make up for it",
        ),
        (
            "no root",
            _norm(("math.sqrt(ratio)", "ratio")),
            "the mean stands under a root, so the gains change by a root, too",
        ),
        ("all gains", _norm(("gain[keep]", "gain")), "gains of the kept channels only"),
        (
            "the old ε",
            _norm(("eps * ratio", "eps")),
            "the gains are right, ε is not: it stands under the same root, beside a mean that has changed",
        ),
        (
            "ε turned round",
            _norm(("eps * ratio", "eps / ratio")),
            "the gains are right, the factor of ε is turned round",
        ),
        (
            "the root for ε",
            _norm(("eps * ratio", "eps * math.sqrt(ratio)")),
            "the gains are right, ε is not: try both norms on a small vector",
        ),
        (
            "the mean gain",
            _norm(("gain[keep] *", "gain[keep].mean() + 0 * gain[keep] *")),
            "not the gains with which both norms agree",
        ),
        ("mutates the gains", _norm(("gain[keep] *", "gain.mul_(2)[keep] *")), "changed its argument"),
    ],
    "pruned-size": [
        ("two numbers", _size(("return gone, ", "return ")), "return three numbers: channels, heads, weights"),
        ("floats", _size(("return gone,", "return float(gone),")), "weights: whole numbers of Python"),
        (
            "rounds down what goes",
            _size(
                ("channels - channels * (100 - percent) // 100", "channels * percent // 100"),
                ("(rows - rows * (100 - percent) // 100) // size", "rows * percent // 100 // size"),
            ),
            "what stays is rounded down, not what goes",
        ),
        (
            "rounds heads up",
            _size(("(rows - rows * (100 - percent) // 100) //", "-(rows * (100 - percent) // 100 - rows) //"))
            .replace("gone_heads = -(", "gone_heads = -((")
            .replace("- rows) // size", "- rows) // size)"),
            "only complete heads go: the rows to go over the size of a head, rounded down",
        ),
        (
            "k and v only",
            _size(
                ("pruned * (3 * gone + gone_heads * group)", "pruned * (3 * gone + gone_heads * 2 * size)"),
            ),
            "with a key-value head go the rows of q and the columns of o of all query heads that read it",
        ),
        (
            "one query head",
            _size(("gone_heads * group)", "gone_heads * 4 * size)")),
            "several query heads read one key-value head: all of them go with it",
        ),
        ("every layer", _size(("- pruned *", "- layers *")), "only some of the layers lose anything"),
        ("two vectors", _size(("(3 * gone +", "(2 * gone +")), "an MLP channel has three vectors: gate, up and down"),
        (
            "rounds channels to the nearest",
            _size(("channels - channels * (100 - percent) // 100", "(channels * percent + 50) // 100")),
            "",
        ),
        (
            "rounds a share of the heads",
            _size(("(rows - rows * (100 - percent) // 100) // size", "(kv_heads * percent + 50) // 100")),
            "",
        ),
        ("counts vectors", _size(("return gone,", "return 3 * gone,")), " channels go, it should be "),
        (
            "counts query heads",
            _size(("return gone, gone_heads", "return gone, gone_heads * heads // kv_heads")),
            " key-value heads go, it should be ",
        ),
        ("without the width", _size(("width * (layers", "(layers")), " weights are left, it should be "),
        (
            "at least one head",
            _size(("// 100) // size", "// 100) // size or 1")),
            "SmolLM2 at 20 %: 308 channels and no head at all",
        ),
        (
            "nothing at nought",
            _size(("    group =", "    if percent == 0:\n        return 0, 0, 0\n    group =")),
            "wrong for 0 percent",
        ),
    ],
    "structure-importance": [
        (
            "plus",
            _importance(("- products.square()", "+ products.square()")),
            "the quadratic term is subtracted: L(w) − L(0), seen from the trained weights",
        ),
        ("no half", _importance((".mean(0) / 2", ".mean(0)")), "half of the quadratic term"),
        (
            "the square of the mean",
            _importance(("products.square().mean(0)", "products.mean(0).square()")),
            "the mean of the squares, not the square of the mean: square for each example",
        ),
        (
            "the sum over the examples",
            _importance(("products.square().mean(0)", "products.square().sum(0)")),
            "the loss is a mean, so the squares are averaged as well, not added up",
        ),
        (
            "first order",
            _importance((" - products.square().mean(0) / 2", "")),
            "this is the first order alone: the quadratic term is missing",
        ),
        (
            "mixed up",
            _importance(("if not element", "if element")),
            "vector and element are mixed up: in the vector the weights of a structure can cancel",
        ),
        (
            "sizes of examples",
            _importance(
                (
                    "products.mean(0) - products.square().mean(0) / 2",
                    "(products - products.square() / 2).abs().mean(0)",
                )
            ),
            "sizes come last: gradients of different examples may cancel",
        ),
        ("signed", _importance((".abs()", "")), "an importance is a size: take the absolute value"),
        (
            "without the weights",
            _importance(("gradients * weights", "gradients * (weights / weights.abs())")),
            "neither known mistake nor the importance: compute one structure by hand",
        ),
        ("always by element", _importance(("if not element", "if False")), "vector and element are mixed up"),
        ("one for each weight", _importance((".sum(-1)\n    ### END", "\n    ### END")), "the shape must be"),
        ("mutates the gradients", _importance(("gradients * weights", "gradients.mul_(weights)")), "changed its"),
    ],
    "removal-order": [
        (
            "turned round",
            _order((".argsort(stable=True)", ".neg().argsort(stable=True)")),
            "turned round: the least important channel goes first",
        ),
        (
            "places",
            _order((".argsort(stable=True)", ".argsort(stable=True).argsort()")),
            "these are the places of the channels in the order, not the channels in their order",
        ),
        (
            "the largest for the sum",
            _order(
                (
                    "scores.sum(0),",
                    "scores.amax(0),",
                )
            ).replace("scores.log().amax(0)", "scores.log().sum(0)"),
            "for the sum all structures count, not the largest alone",
        ),
        (
            "the product itself",
            _order(("scores.log().sum(0)", "scores.prod(0)")),
            "the product of such small numbers is 0 in floating point: all channels seem equal",
        ),
        (
            "the sum for the product",
            _order(("scores.log().sum(0)", "scores.sum(0)")),
            "this is the order by the sum, where the product was asked for",
        ),
        ("the smallest", _order(("scores.amax(0)", "scores.amin(0)")), "the largest structure decides, not the"),
        ("the sum for the maximum", _order(("scores.amax(0)", "scores.sum(0)")), "this is the sum, not the maximum"),
        ("the first", _order(("scores[-1]", "scores[0]")), "the last structure is the last row"),
        ("the maximum for the last", _order(("scores[-1]", "scores.amax(0)")), "the last structure alone decides"),
        (
            "one channel twice",
            _order((".argsort(stable=True)", ".argsort(stable=True).clamp(min=1)")),
            "each channel once",
        ),
        (
            "the last but one",
            _order(("scores[-1]", "scores[-2]")),
            ": which axis are the structures along?",
        ),
        (
            "the last of equal ones",
            _order((".argsort(stable=True)", ".flip(0).argsort(stable=True).neg() + scores.shape[1] - 1")),
            "among equal scores the first channel goes",
        ),
        ("scores", _order((".argsort(stable=True)", "")), "the result must be int64"),
        ("mutates the scores", _order(("scores.log()", "scores.log_()")), "changed its argument"),
    ],
    "sign-value": [
        ("the product", _value((", a / root, b * root", "")), "return three tensors: S, a, b"),
        (
            "torch.sign",
            _value((_SIGNS, "weight.sign()")),
            "a sign is +1 or −1: torch.sign makes 0 of 0",
        ),
        (
            "negative vectors",
            _value(("a / root, b * root", "-a / root, -b * root")),
            "the vectors have no negative entries: turn both round",
        ),
        (
            "W itself",
            _decomposed("weight", "u[:, 0].abs() * s[0].sqrt(), v[0].abs() * s[0].sqrt()"),
            "the vectors of |W|: W itself is much harder to approach by one product",
        ),
        (
            "rows",
            function(
                "sign_value(weight)",
                f"a = weight.abs().mean(1)\nreturn {_SIGNS}, a, torch.ones_like(weight[0])",
            ),
            "one number for each row only: columns have a number, too",
        ),
        (
            "means",
            function(
                "sign_value(weight)",
                f"size = weight.abs()\nreturn {_SIGNS}, size.mean(1), size.mean(0) / size.mean()",
            ),
            "row means times column means are near to the best product, but not the best",
        ),
        ("one round", _value(("range(100)", "range(1)")), "this is one round: repeat until the vectors no longer"),
        (
            "unit vectors",
            _value(("a / root, b * root", "a / a.norm(), b")),
            "both vectors have the length 1: the singular value is missing",
        ),
        (
            "σ in both",
            _value(("a / root, b * root", "a, b * a.norm()")),
            "the singular value counts once: its root in each of the two vectors",
        ),
        (
            "negative signs turned",
            _value((_SIGNS, "torch.where(weight > 0, 1.0, -1.0).double()")),
            "other signs than those of W; sign(0) = +1",
        ),
        (
            "a few rounds",
            _value(("range(100)", "range(5)")),
            "nearly the best product: repeat the rounds until nothing changes, in float64",
        ),
        (
            "half",
            _value(("a / root,", "a / root / 2,")),
            "a bᵀ is not the product that is nearest to |W|",
        ),
        (
            "σ in a",
            _value(("a / root, b * root", "a, b")),
            "the product is right; give both vectors one length",
        ),
        ("float32 signs", _value((".double()", "")), "the result must be float64"),
        ("mutates the weight", _value(("weight.abs()", "weight.abs_()")), "changed its argument"),
    ],
    "onebit-bits": [
        ("one ratio", _bits(("return bits / weights, ", "return ")), "return three ratios"),
        (
            "signs alone",
            _bits(("bits = weights + 16 * values", "bits = weights")),
            "the two vectors are stored as well, 16 bits a value",
        ),
        (
            "values of rows",
            _bits(("sum(m + n for", "sum(m for")),
            "two vectors: a value for each row and one for each column",
        ),
        ("32 bits", _bits(("weights + 16 * values", "weights + 32 * values")), "a value takes 16 bits"),
        (
            "mean of ratios",
            function(
                "onebit_bits(shapes, rest)",
                """
                each = [(m * n, m + n) for m, n in shapes]
                first = sum((w + 16 * v) / w for w, v in each) / len(each)
                second = sum((w + 16 * v) / (w + v) for w, v in each) / len(each)
                bits, count = sum(w + 16 * v for w, v in each), sum(w + v for w, v in each)
                return first, second, (bits + 16 * rest) / (count + rest)
                """,
            ),
            "large layers weigh more: add up the bits of all layers, then divide once",
        ),
        (
            "without the rest",
            _bits((_TOTAL, "bits / (weights + values)")),
            "the whole model has the rest, too: its bits, and its parameters",
        ),
        ("a bit for the rest", _bits(("16 * rest", "rest")), "the rest stays in 16 bits"),
        (
            "values are no parameters",
            _bits((_TOTAL, "(bits + 16 * rest) / (weights + rest)")),
            "bits of the model: ",
        ),
        (
            "over all weights",
            _bits(("bits / (weights + values), (bits", "bits / weights, (bits")),
            "bits a parameter: ",
        ),
        ("bytes", _bits(("return bits / weights", "return bits / 8 / weights")), "bits a weight: "),
        ("two bits a sign", _bits(("bits = weights +", "bits = 2 * weights +")), ", it should be "),
    ],
    "onebit-layer": [
        (
            "no norm",
            _layer(("torch.nn.functional.layer_norm(z, z.shape[-1:], eps=1e-5)", "z")),
            "the LayerNorm is missing",
        ),
        (
            "norm of the input",
            _layer(
                ("(x * b)", "(torch.nn.functional.layer_norm(x, x.shape[-1:]) * b)"),
                ("torch.nn.functional.layer_norm(z, z.shape[-1:], eps=1e-5)", "z"),
            ),
            "the LayerNorm comes last: its input is the product, not x",
        ),
        (
            "a behind the norm",
            _layer((" * a\n", "\n"), ("eps=1e-5)", "eps=1e-5) * a")),
            "the LayerNorm comes last, after a",
        ),
        (
            "m − 1",
            _layer(
                (
                    "torch.nn.functional.layer_norm(z, z.shape[-1:], eps=1e-5)",
                    "(z - z.mean(1, keepdim=True)) / (z.var(1, keepdim=True) + 1e-5).sqrt()",
                )
            ),
            "the variance is divided by m, not by m − 1",
        ),
        ("RMSNorm", _layer(("functional.layer_norm", "functional.rms_norm")), "the mean is taken away first"),
        (
            "over tokens",
            _layer(
                (
                    "torch.nn.functional.layer_norm(z, z.shape[-1:], eps=1e-5)",
                    "torch.nn.functional.layer_norm(z.T, z.shape[:1], eps=1e-5).T",
                )
            ),
            "each token is normalized by itself: mean and variance along its outputs",
        ),
        ("no b", _layer(("(x * b)", "x")), "b is missing: it multiplies the input"),
        ("no a", _layer((" * a\n", "\n")), "a is missing: it multiplies the outputs"),
        (
            "swapped",
            _layer(
                ("(x * b) @ signs.T * a", "(x * p) @ signs.T * q"),
                ("    z =", "    p, q = (a, b) if len(a) == len(b) else (b, a)\n    z ="),
            ),
            "a and b are swapped: b belongs to the columns, so to x; a to the rows, so to the outputs",
        ),
        (
            "divides by a",
            _layer(("signs.T * a", "signs.T / a")),
            "not the outputs of the layer: follow one token by hand",
        ),
        ("mutates x", _layer(("(x * b)", "x.mul_(b)")), "changed its argument"),
    ],
    "pack-signs": [
        ("0 is no plus", _pack(("weight >= 0", "weight > 0")), "the sign of 0 is +: its bit is 1"),
        ("turned round", _pack(("weight >= 0", "weight < 0")), "turned round: the bit of a positive weight is 1"),
        (
            "high first",
            _pack(("torch.arange(8)", "torch.arange(7, -1, -1)")),
            "the first of eight signs is the bit worth 1, not the one worth 128",
        ),
        (
            "ones behind",
            _pack(
                (
                    "torch.nn.functional.pad((weight >= 0).long(), (0, -weight.shape[1] % 8))",
                    "torch.nn.functional.pad(weight, (0, -weight.shape[1] % 8)) >= 0",
                )
            ),
            "behind the last sign of a row the bits are 0, whatever stands for a sign of 0",
        ),
        (
            "planes",
            _pack(
                (
                    "(bits.reshape(len(weight), -1, 8) * worth).sum(-1)",
                    "(bits.reshape(len(weight), 8, -1) * worth[:, None]).sum(1)",
                )
            ),
            "a byte holds eight neighbours",
        ),
        (
            "down the columns",
            _pack(("    bits =", "    weight = weight.T\n    bits ="), ("torch.uint8)", "torch.uint8).T")),
            "signs are packed along a row, not down a column",
        ),
        ("half of it", _pack(("* worth)", "* worth / 2)")), "other bytes: write the eight bits of one byte down"),
        ("int64", _pack((".to(torch.uint8)", "")), "the result must be uint8"),
        ("mutates the weight", _pack(("weight >= 0", "weight.add_(1) >= 1")), "changed its argument"),
    ],
    "packed-product": [
        (
            "positive places alone",
            _product(("2 * plus - scaled.sum(1, keepdim=True)", "plus")),
            "this is the sum over the positive places: a sign of −1 counts as 0 there",
        ),
        ("once", _product(("2 * plus", "plus")), "Σ₊ counts twice: Σ₊ − Σ is the negative places' part alone"),
        (
            "turned round",
            _product(("2 * plus - scaled.sum(1, keepdim=True)", "scaled.sum(1, keepdim=True) - 2 * plus")),
            "turned round: a bit of 1 is the sign +1",
        ),
        (
            "the sum of x",
            _product(("- scaled.sum", "- x.sum")),
            "the sum that is subtracted is that of b ⊙ x, not of x",
        ),
        (
            "counts signs",
            _product(("scaled = b * x", "scaled = torch.ones_like(x)")),
            "signs are counted here, whatever x is: add up b ⊙ x where the bit is 1",
        ),
        (
            "high first",
            _product(("torch.arange(8)", "torch.arange(7, -1, -1)")),
            "the first of eight signs is the bit worth 1, not the one worth 128",
        ),
        ("no a", _product(("return a * ", "return ")), "a is missing"),
        ("no b", _product(("scaled = b * x", "scaled = x")), "b is missing"),
        (
            "b behind",
            _product(("return a * (2", "return a * b.mean() * (2"), ("scaled = b * x", "scaled = x")),
            "not the product: write one sum of signs times numbers down",
        ),
        (
            "float32",
            _product(("return a * ", "return a.float() * 1.0 * ")).replace(
                "keepdim=True))", "keepdim=True)).float()"
            ),
            "must be float64",
        ),
        ("mutates x", _product(("scaled = b * x", "scaled = x.mul_(b)")), "changed its argument"),
    ],
}
