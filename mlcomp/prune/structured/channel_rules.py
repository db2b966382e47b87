"""What each kind of operation does with the labels of channels: one rule a kind.

A sum or product of equal shapes joins position by position; a matrix product joins the columns of one operand with
the rows of the other; what only moves numbers (a view, a transpose, a concatenation) is done to the labels as well.
An operation that is not known here makes the channels that it reads fixed, so nothing is removed by mistake.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mlcomp.prune.structured.channel_labels import WHOLE, Labels, LabelTrace

FIXED_SIZE = "they are combined with numbers that are no channels (a constant, or what the model is given)"

# Operations that act entry by entry, and do not say so by their tag.
ENTRYWISE = """_to_copy zeros_like ones_like full_like empty_like rand_like randn_like native_dropout
    contiguous detach alias lift_fresh _conj""".split()
# What moves numbers and is no view.
MOVES = "cat stack repeat _unsafe_view constant_pad_nd roll flip pixel_shuffle pixel_unshuffle".split()
MOVES += "repeat_interleave channel_shuffle index index_select gather reshape _reshape_alias".split()
SUMS = "sum linalg_vector_norm norm any".split()
AVERAGES = "mean var var_mean std std_mean amax amin max min logsumexp prod all argmax argmin".split()


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors in nested lists, tuples and mappings."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [x for part in parts for x in tensors(part)]


def fix_all(trace: LabelTrace, x: Tensor, reason: str) -> None:
    """Say that none of the channels of ``x`` can be removed."""
    for labels in trace.get(x).values():
        trace.fix(labels, reason)


def entrywise(trace: LabelTrace, read: list[Tensor], out: Tensor) -> None:
    """Join position by position; an operand of size 1 along a dimension is spread over it and joins nothing."""
    every = [(x, trace.get(x)) for x in read if x.ndim <= out.ndim]
    found = trace.meet_whole(labels for _, labels in every)
    for dim, size in enumerate(out.shape):
        aligned = [(labels, dim - out.ndim + x.ndim, x) for x, labels in every]
        full = [(labels, at) for labels, at, x in aligned if at >= 0 and x.shape[at] == size]
        met = trace.meet(full, size, FIXED_SIZE) if size > 1 else None
        if met is not None:
            found[dim] = met
    trace.put(out, found)


def move(trace: LabelTrace, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
    """Do to the labels what is done to the numbers."""
    first = args[0]
    data = list(first) if isinstance(first, list | tuple) else [first]
    _fix_indexed(trace, func, args)
    every = [trace.get(x) for x in data]
    results = tensors(out)
    found: list[Labels] = [{} for _ in results]
    joined = args[1] if func.overloadpacket.__name__ in ("cat", "stack") and len(args) > 1 else 0
    for dim in sorted({dim for labels in every for dim in labels}):
        planes = [_plane(x, labels, dim) for x, labels in zip(data, every, strict=True)]
        given = planes if isinstance(first, list | tuple) else planes[0]
        rest = [0 if isinstance(v, float) else v for v in args[1:]]  # padding: whatever is put there is no channel
        try:
            moved = func(given, *rest, **kwargs)
        except RuntimeError:  # a view that is none of expanded labels
            moved = func([p.contiguous() for p in planes] if given is planes else planes[0].contiguous(), *rest)
        for labels, plane in zip(found, tensors(moved), strict=True):
            _read_plane(trace, labels, plane, joined if given is planes else None)
    for result, labels in zip(results, found, strict=True):
        trace.put(result, labels)


def _plane(x: Tensor, labels: Labels, dim: int) -> Tensor:
    """Return the labels along one dimension in the shape of ``x``, without memory for the others."""
    shape = [-1 if d == dim else 1 for d in range(x.ndim)]
    here = labels.get(dim, labels.get(WHOLE, torch.zeros(1, dtype=torch.int64)))
    return here.reshape(shape if len(here) > 1 else [1] * x.ndim).expand(x.shape)


def _read_plane(trace: LabelTrace, labels: Labels, plane: Tensor, joined: int | None) -> None:
    """Enter into ``labels`` what stands in a plane: along one dimension, or after joining what belongs together."""
    if not plane.numel():
        return
    for dim, stride in enumerate(plane.stride()):
        if stride == 0:
            plane = plane.narrow(dim, 0, 1)
    varying = [d for d in range(plane.ndim) if bool((plane != plane.narrow(d, 0, 1)).any())]
    if joined is not None and len(varying) > 1:  # one tensor beside the other: the channel is the same in both
        varying = [d for d in varying if d != joined % plane.ndim]
    # Channels cut into equal parts, such as heads: the parts stay whole, since all must keep one size.
    kept = varying[0] if varying else WHOLE
    rows = plane.movedim(kept, 0).flatten(1) if varying else plane.reshape(1, -1)
    trace.join(rows, rows[:, :1].expand_as(rows))
    if kept in labels:
        trace.join(labels[kept], rows[:, 0])
    labels[kept] = rows[:, 0]


def _fix_indexed(trace: LabelTrace, func: Any, args: tuple) -> None:
    """Channels that are picked by numbers have to stay where they are."""
    name, dims = func.overloadpacket.__name__, []
    if name == "index":
        dims = [dim for dim, index in enumerate(args[1]) if index is not None]
    elif name in ("index_select", "gather"):
        dims = [args[1] % args[0].ndim]
    for dim in dims:
        if dim in trace.get(args[0]):
            trace.fix(trace.get(args[0])[dim], "they are picked by their numbers")


def _matmul(trace: LabelTrace, a: Tensor, b: Tensor, out: Tensor, *, batch: int) -> None:
    """Join the columns of ``a`` with the rows of ``b``; what both have before these is a batch."""
    left, right = trace.get(a), trace.get(b)
    inner = trace.meet([(left, a.ndim - 1), (right, batch)], b.shape[batch], FIXED_SIZE)
    left, right = trace.get(a), trace.get(b)
    whole = trace.meet_whole([left, right])
    if inner is not None and WHOLE in whole and (trace.roots(whole[WHOLE]) == trace.roots(inner)).any():
        whole = {}  # one channel met the columns made for it
    found = dict(whole)
    for dim in range(batch):
        met = trace.meet([(left, dim), (right, dim)], a.shape[dim], FIXED_SIZE)
        if met is not None:
            found[dim] = met
    rows = a.ndim - 1 - batch
    if rows and batch in left:
        found[batch] = left[batch]
    if b.ndim > batch + 1 and batch + 1 in right:
        found[batch + rows] = right[batch + 1]
    trace.put(out, found)


def _copy(trace: LabelTrace, func: Any, args: tuple, kwargs: dict, out: Tensor) -> None:
    """What is written into a tensor of its own is what was read; a part of another one keeps what that has."""
    target, source = args[:2]
    if trace.get(target) or target.untyped_storage().nbytes() > target.numel() * target.element_size():
        entrywise(trace, [target, source], out)
    else:
        trace.put(out, {})
        entrywise(trace, [source], out)


def _product(first: int, batch: int) -> Callable:
    """Return the rule of a matrix product whose operands start at an argument; one before them is added."""

    def rule(trace: LabelTrace, func: Any, args: tuple, kwargs: dict, out: Tensor) -> None:
        _matmul(trace, args[first], args[first + 1], out, batch=batch)
        if first:
            entrywise(trace, [args[0], out], out)

    return rule


def _convolution(trace: LabelTrace, func: Any, args: tuple, kwargs: dict, out: Tensor) -> None:
    x, weight, bias = args[:3]
    transposed, groups = args[6], args[8]
    inputs = trace.get(x)
    for dim, labels in inputs.items():
        if dim > 1:
            trace.fix(labels, "a convolution slides over them")
    channels = trace.channels.get(id(weight))
    if channels is None and groups == 1:  # a computed weight
        of_weight, none = trace.get(weight), torch.zeros(1, dtype=torch.int64)
        sides = [of_weight.get(d, none).expand(weight.shape[d]) for d in ((0, 1) if transposed else (1, 0))]
        channels = (sides[0], sides[1])
    if channels is None:
        for read in tensors(list(args)):
            fix_all(trace, read, "a grouped convolution with a computed weight reads them")
        return
    trace.meet([(inputs, 1), ({1: channels[0]}, 1)], x.shape[1], FIXED_SIZE)
    if groups > 1:
        _grouped(trace, channels, groups)
    found = {1: channels[1]}
    if bias is not None and trace.meet([(found, 1), (trace.get(bias), 0)], len(bias), FIXED_SIZE) is None:
        found = {}
    trace.put(out, found)


def _grouped(trace: LabelTrace, channels: tuple[Tensor, Tensor], groups: int) -> None:
    """A group with one input goes with its outputs; else every group has to keep as many as every other."""
    inputs, outputs = (side.reshape(groups, -1) for side in channels)
    if inputs.shape[1] == 1:
        trace.join(inputs.expand_as(outputs), outputs)
    else:
        trace.equal += [(side, groups) for side in channels]


def _affine(trace: LabelTrace, x: Tensor, dim: int, entries: list, out: Tensor, labels: Labels) -> Labels:
    """Join the entries of a norm with the dimension of ``x`` that they stand for."""
    places = [(labels, dim)] + [(trace.get(v), 0) for v in entries if v is not None and v.ndim == 1]
    met = trace.meet(places, x.shape[dim], FIXED_SIZE)
    found = {d: v for d, v in labels.items() if d != dim} | ({} if met is None else {dim: met})
    trace.put(out, found)
    return found


def _batch_norm(trace: LabelTrace, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
    _affine(trace, args[0], 1, list(args[1:5]), tensors(out)[0], trace.get(args[0]))


def _last_norm(trace: LabelTrace, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
    """LayerNorm and RMSNorm over the last dimensions: their average is over the channels."""
    x, dim = args[0], args[0].ndim - 1
    if len(args[1]) > 1:
        fix_all(trace, x, "a norm over several dimensions averages over them")
    found = _affine(trace, x, dim, [v for v in args[2:4] if isinstance(v, Tensor)], tensors(out)[0], trace.get(x))
    if dim in found:
        trace.averages.append((trace.module, found[dim]))


def _group_norm(trace: LabelTrace, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
    found = _affine(trace, args[0], 1, list(args[1:3]), tensors(out)[0], trace.get(args[0]))
    if 1 in found:
        trace.averages.append((trace.module, found[1]))
        trace.equal += [(found[1], args[6])] if args[6] > 1 else []


def _softmax(trace: LabelTrace, func: Any, args: tuple, kwargs: dict, out: Tensor) -> None:
    labels = trace.get(args[0])
    if args[1] % max(1, args[0].ndim) in labels:
        trace.fix(labels[args[1] % args[0].ndim], f"{func.overloadpacket.__name__.strip('_')} runs over them")
    entrywise(trace, [args[0]], out)


def _embedding(trace: LabelTrace, func: Any, args: tuple, kwargs: dict, out: Tensor) -> None:
    labels = trace.get(args[0])
    if 0 in labels:
        trace.fix(labels[0], "they are looked up by their numbers")
    trace.put(out, {args[1].ndim: labels[1]} if 1 in labels else {})


def _reduce(averages: bool) -> Callable:
    """Return the rule of a reduction: what lies along the dimensions that go is no channel of the result."""

    def rule(trace: LabelTrace, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
        names = [a.name for a in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        x, labels = args[0], trace.get(args[0])
        dims = given.get("dim")
        every = list(range(x.ndim))
        dims = [dims] if isinstance(dims, int) else dims
        gone = [d % x.ndim for d in dims] if dims else every
        for dim in gone:
            if dim in labels and averages:
                trace.averages.append((trace.module, labels[dim]))
        kept = every if given.get("keepdim") else [d for d in every if d not in gone]
        found = {d if d == WHOLE else kept.index(d): v for d, v in labels.items() if d == WHOLE or d not in gone}
        for result in tensors(out):
            trace.put(result, found)

    return rule


def _local(trace: LabelTrace, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
    """Pooling and resizing: channels stay what they are, and the positions behind them are none."""
    labels = trace.get(args[0])
    for dim in [d for d in labels if d > 1]:
        trace.fix(labels[dim], "pooling or resizing runs over them")
    for result in tensors(out):
        trace.put(result, {d: v for d, v in labels.items() if d <= 1})


RULES: dict[str, Callable] = {
    "copy": _copy,
    "mm": _product(0, 0),
    "mv": _product(0, 0),
    "dot": _product(0, 0),
    "bmm": _product(0, 1),
    "addmm": _product(1, 0),
    "addmv": _product(1, 0),
    "baddbmm": _product(1, 1),
    "convolution": _convolution,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "native_layer_norm": _last_norm,
    "_fused_rms_norm": _last_norm,
    "native_group_norm": _group_norm,
    "embedding": _embedding,
    "_softmax": _softmax,
    "_safe_softmax": _softmax,
    "_log_softmax": _softmax,
    **dict.fromkeys(SUMS, _reduce(False)),
    **dict.fromkeys(AVERAGES, _reduce(True)),
    **dict.fromkeys(("avg_pool2d", "max_pool2d_with_indices", "_adaptive_avg_pool2d"), _local),
    **dict.fromkeys(("avg_pool3d", "max_pool3d_with_indices", "_adaptive_avg_pool3d"), _local),
    **dict.fromkeys(("adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d"), _local),
}
