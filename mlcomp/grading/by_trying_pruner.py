"""What the checks of the exercises on LLM-Pruner and OneBit compare with: the definition, tried out.

``slip`` names a known mistake. A check computes its result as well, to draw inputs on which it shows, and to tell the
student of it.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def gone_nodes(reads: Tensor, products: Tensor, start: int, slip: str = "") -> Tensor:
    """Return 1 for each node of a graph that is gone with ``start``, else 0.

    Slips: "printed" (only where one node is read, or reads), "sums" (any part takes a sum along), "products" (only
    all factors take a product along), "forward", "backward" (one of the two directions), "once" (the rules are not
    repeated), "vacuous" (all of nothing is gone).
    """
    n = len(reads)
    before = [[j for j in range(n) if reads[i, j]] for i in range(n)]
    after = [[j for j in range(n) if reads[j, i]] for i in range(n)]
    is_product = products.tolist()

    def all_gone(nodes: list[int], gone: set[int]) -> bool:
        if not nodes or (slip == "printed" and len(nodes) != 1):
            return not nodes and slip == "vacuous"
        return all(j in gone for j in nodes)

    def silent(i: int, gone: set[int]) -> bool:
        any_part = slip == "sums" or (is_product[i] and slip not in ("products", "printed"))
        return any(j in gone for j in before[i]) if any_part else all_gone(before[i], gone)

    gone = {start}
    while True:
        new = {
            i
            for i in range(n)
            if (slip != "backward" and silent(i, gone)) or (slip != "forward" and all_gone(after[i], gone))
        }
        if new <= gone or slip == "once":
            return torch.tensor([float(i in gone | new) for i in range(n)], dtype=torch.float64)
        gone |= new


def head_rows(member: str, index: int, heads: int, kv_heads: int, size: int, slip: str = "") -> Tensor:
    """Return the rows of q, then those of k, that go with one row of a projection, or with one column of o.

    Slips: "alone" (one query head), "interleaved" (query heads take turns), "row" (one position of each head), "pair"
    (two positions, those that the rotary embedding mixes), "every" (all heads).
    """
    share = heads // kv_heads
    head, place = divmod(index, size)
    reader = {h: h % kv_heads if slip == "interleaved" else h // share for h in range(heads)}
    kv = reader[head] if member in ("q", "o") else head
    query = [h for h in range(heads) if reader[h] == kv or slip == "every"]
    if slip == "alone":
        query = [head]
    places = {"row": [place], "pair": sorted({place, (place + size // 2) % size})}.get(slip, list(range(size)))
    keys = range(kv_heads) if slip == "every" else [kv]
    rows = [h * size + i for part in (query, keys) for h in part for i in places]
    return torch.tensor(rows, dtype=torch.float64)


def pruned_size(
    width: int,
    channels: int,
    heads: int,
    kv_heads: int,
    size: int,
    layers: int,
    pruned: int,
    percent: int,
    slip: str = "",
) -> Tensor:
    """Return how many channels and key-value heads go in a pruned layer, and the weights that are left.

    Slips: "floor" (what goes is rounded down, not what stays), "up" (heads are), "keys" (rows of k and v only),
    "one-query", "everywhere" (all layers lose), "two" (an MLP channel has two vectors).
    """
    rows = kv_heads * size
    gone, lost = (n - n * (100 - percent) // 100 for n in (channels, rows))
    if slip == "floor":
        gone, lost = channels * percent // 100, rows * percent // 100
    gone_heads = math.ceil(lost / size) if slip == "up" else lost // size
    queries = heads // kv_heads
    vectors = {"keys": 2, "one-query": 4}.get(slip, 2 + 2 * queries) * size
    whole = layers * (3 * width * channels + (2 * heads + 2 * kv_heads) * size * width)
    left = whole - (layers if slip == "everywhere" else pruned) * width * (
        (2 if slip == "two" else 3) * gone + vectors * gone_heads
    )
    return torch.tensor([gone, gone_heads, left], dtype=torch.float64)


def importance(gradients: Tensor, weights: Tensor, element: bool, slip: str = "") -> Tensor:
    """Return the importance of each structure to the second order, one example and weight after the other.

    Slips: "plus" (the quadratic term is added), "no-half", "square-of-mean", "total" (the sum of squares), "first"
    (without the quadratic term), "other" (vector for element, and the reverse), "early" (sizes of each example),
    "signed".
    """
    found = []
    for k, weight in enumerate(weights):
        products = gradients[:, k] * weight  # (examples, weights)
        if element is (slip == "other"):
            products = products.sum(1, keepdim=True)
        total = 0.0
        for column in products.T:
            squares = column.mean() ** 2 if slip == "square-of-mean" else (column**2).mean()
            squares = squares * {"total": len(column), "no-half": 2, "plus": -1, "first": 0}.get(slip, 1)
            change = column.mean() - squares / 2
            if slip == "early":
                change = (column - column**2 / 2).abs().mean()
            total += float(change if slip == "signed" else change.abs())
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)


def removal_order(scores: Tensor, how: str, slip: str = "") -> Tensor:
    """Return the channels in the order in which they go.

    Slips: "turned", "ranks" (each channel's place in the order), "underflow" (the product itself), and "sum",
    "product", "max", "min", "first", "last" in the place of ``how``.
    """

    def total(column: list[float]) -> float:
        way = slip if slip in ("sum", "product", "max", "min", "first", "last") else how
        if slip == "underflow":
            return math.prod(column)
        if way == "product":
            return sum(math.log(s) if s else -math.inf for s in column)
        return {"sum": sum(column), "max": max(column), "min": min(column), "first": column[0]}.get(way, column[-1])

    values = [total(column) for column in scores.T.tolist()]
    order = sorted(range(len(values)), key=values.__getitem__, reverse=slip == "turned")
    if slip == "ranks":
        order = [order.index(c) for c in range(len(values))]
    return torch.tensor(order, dtype=torch.float64)


def smaller_norm(gain: Tensor, eps: float, keep: Tensor, slip: str = "") -> Tensor:
    """Return the gains of an RMSNorm over what is kept, and its ε behind them.

    Slips: "same", "turned" (the ratio upside down), "linear" (no root), "all" (also the gains that are gone);
    "eps-same", "eps-turned".
    """
    ratio = len(gain) / int(keep.sum())
    factor = {"same": 1.0, "turned": ratio**-0.5, "linear": ratio}.get(slip, ratio**0.5)
    new = {"eps-same": eps, "eps-turned": eps / ratio}.get(slip, eps * ratio)
    gains = (gain if slip == "all" else gain[keep]) * factor
    return torch.cat([gains, torch.tensor([new], dtype=gain.dtype)])


def sign_value(weight: Tensor, slip: str = "") -> Tensor:
    """Return the matrix that signs and two vectors stand for, the vectors by a singular value decomposition of |W|.

    Slips: "itself" (that of W), "rows" (each row's mean size), "means" (row mean times column mean), "one-step" (one
    power iteration), "unscaled" (unit vectors), "squared" (the singular value in both).
    """
    signs = torch.where(weight >= 0, 1.0, -1.0).double()
    size = weight.abs()
    u, s, v = torch.linalg.svd(weight if slip == "itself" else size)
    a, b = u[:, 0].abs() * s[0], v[0].abs()
    if slip == "rows":
        a, b = size.mean(1), torch.ones_like(b)
    elif slip == "means":
        a, b = size.mean(1), size.mean(0) / size.mean()
    elif slip == "one-step":
        b = size.sum(0) / size.sum(0).norm()
        a = size @ b
    scale = {"unscaled": 1 / s[0], "squared": s[0]}.get(slip, 1.0)
    return signs * torch.outer(a, b) * scale


def onebit_bits(shapes: Sequence[Sequence[int]], rest: int, slip: str = "") -> Tensor:
    """Return bits per weight, bits per parameter of the layers, bits per parameter of the whole model.

    Slips: "no-values", "one-vector" (a value for each row only), "wide" (32 bits a value), "mean" (of the layers'
    ratios), "rest-lost", "rest-signs" (one bit for each of them).
    """
    weights = sum(m * n for m, n in shapes)
    values = sum({"no-values": 0, "one-vector": m}.get(slip, m + n) for m, n in shapes)
    width = 32 if slip == "wide" else 16
    bits = weights + width * values
    ratios = [bits / weights, bits / (weights + values)]
    if slip == "mean":
        each = [(m * n + 16 * (m + n), m * n, m * n + m + n) for m, n in shapes]
        ratios = [sum(x[0] / x[k] for x in each) / len(each) for k in (1, 2)]
    more = {"rest-lost": 0, "rest-signs": rest}.get(slip, 16 * rest)
    ratios.append((bits + more) / (weights + values + (0 if slip == "rest-lost" else rest)))
    return torch.tensor(ratios, dtype=torch.float64)


def onebit_outputs(x: Tensor, signs: Tensor, a: Tensor, b: Tensor, slip: str = "") -> Tensor:
    """Return OneBit's layer, token by token.

    Slips: "no-norm", "swapped" (a before the signs, b behind), "norm-first" (of the input), "norm-inside" (before a),
    "unbiased" (n − 1), "rms" (no mean is taken away), "tokens" (along the other axis), "no-columns" (without b),
    "no-rows" (without a).
    """

    def normed(t: Tensor) -> Tensor:
        centred = t if slip == "rms" else t - t.mean()
        count = len(t) - 1 if slip == "unbiased" else len(t)
        return centred / (centred.square().sum() / count + 1e-5).sqrt()

    before, after = (a, b) if slip == "swapped" else (b, a)
    before = torch.ones_like(before) if slip == "no-columns" else before
    after = torch.ones_like(after) if slip == "no-rows" else after
    rows = []
    for token in x:
        inner = signs @ (before * (normed(token) if slip == "norm-first" else token))
        if slip == "norm-inside":
            rows.append(after * normed(inner))
        else:
            rows.append(after * inner if slip in ("no-norm", "norm-first", "tokens") else normed(after * inner))
    found = torch.stack(rows)
    return torch.stack([normed(column) for column in found.T], 1) if slip == "tokens" else found


def packed_signs(weight: Tensor, slip: str = "") -> Tensor:
    """Return the bytes that hold the signs of each row, written as the text of binary numbers.

    Slips: "strict" (0 for a weight of 0), "turned" (1 for −), "high-first", "columns" (each byte down a column),
    "padding" (ones), "planes" (bit k of all bytes holds a stretch of neighbours).
    """
    rows = []
    for row in (weight.T if slip == "columns" else weight).tolist():
        bits = ["1" if (w > 0 or (w == 0 and slip != "strict")) != (slip == "turned") else "0" for w in row]
        count = -(-len(bits) // 8)
        bits += ["1" if slip == "padding" else "0"] * (8 * count - len(bits))
        parts = [bits[i::count] if slip == "planes" else bits[8 * i : 8 * i + 8] for i in range(count)]
        rows.append([float(int("".join(p if slip == "high-first" else p[::-1]), 2)) for p in parts])
    found = torch.tensor(rows, dtype=torch.float64)
    return found.T.contiguous() if slip == "columns" else found


def packed_product(packed: Tensor, a: Tensor, b: Tensor, x: Tensor, slip: str = "") -> Tensor:
    """Return a ⊙ (S (b ⊙ x)) from packed signs, sum by sum.

    Slips: "plus" (the sum over + alone), "difference" (that less the whole sum), "turned", "plain-total" (the whole
    sum of x without b), "counts" (signs alone), "high-first", "no-rows", "no-columns".
    """
    found = []
    for token, (row, scale) in itertools.product(x, zip(packed.tolist(), a.tolist(), strict=True)):
        text = "".join(f"{byte:08b}" if slip == "high-first" else f"{byte:08b}"[::-1] for byte in row)
        scaled = token if slip == "no-columns" else b * token
        scaled = torch.ones_like(token) if slip == "counts" else scaled
        plus = sum(float(v) for v, bit in zip(scaled, text, strict=False) if bit == "1")
        total = float((token if slip == "plain-total" else scaled).sum())
        value = {"plus": plus, "difference": plus - total, "turned": total - 2 * plus}.get(slip, 2 * plus - total)
        found.append(value if slip == "no-rows" else scale * value)
    return torch.tensor(found, dtype=torch.float64).reshape(len(x), len(packed))
