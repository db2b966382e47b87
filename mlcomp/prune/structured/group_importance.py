r"""Group importance of LLM-Pruner: by how much the loss would change without all that a group's channel consists of.

Notation: $W_i$ a structure, the weights that one channel has in one member of its group (a row, or a column); M
structures are a channel. With the loss $L = \frac1N\sum_j L_j$ of N examples and $g_j = \partial L_j/\partial W_i$,

$$I_{W_i} = \Big|\frac1N\sum_j g_j^\top W_i - \frac1{2N}\sum_j (g_j^\top W_i)^2\Big| \ \text{(vector)}, \qquad
I_{W_i} = \sum_k \Big|\frac1N\sum_j g_j^k W_i^k - \frac1{2N}\sum_j (g_j^k W_i^k)^2\Big| \ \text{(element)}$$

with the Fisher matrix $\frac1N\sum_j g_j g_j^\top$, of elements its diagonal, in the place of the Hessian. The
importance of a channel is the sum, product or maximum of its M structures, or that of the last one.
Source: Ma, Fang, Wang 2023, arXiv:2305.11627, eq. (3)–(5) and section 3.2.   Syllabus: 5.03
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlcomp.checks import check_choice, check_finite
from mlcomp.context import isolated_run
from mlcomp.layerwise.fit import copy_model
from mlcomp.layerwise.running import call_model, check_batches
from mlcomp.prune.structured.dependency_graph import Group
from mlcomp.prune.structured.remove_channels import group_weights

# What becomes of the mean of g·w and of (g·w)² over the examples.
ORDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "first": lambda first, second: first,
    "second": lambda first, second: -second / 2,
    "both": lambda first, second: first - second / 2,
}
# What becomes of (structures, channels).
AGGREGATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda scores: scores.sum(0),
    "product": lambda scores: scores.log().sum(0),
    "max": lambda scores: scores.amax(0),
    "last": lambda scores: scores[-1],
}

Structures = dict[tuple[int, str], Tensor]


def next_token_loss(output: Any, batch: Any) -> Tensor:
    """Return the mean cross-entropy [nats] of each token but the first, of a causal language model.

    Args:
        output: of the model; its ``logits`` are (b, length, vocabulary).
        batch: tokens (b, length), or a mapping with them as "input_ids".
    """
    tokens = batch["input_ids"] if isinstance(batch, Mapping) else batch
    logits = output.logits[:, :-1].flatten(0, 1)
    return F.cross_entropy(_wide(logits), tokens[:, 1:].flatten().to(logits.device))


@isolated_run
def group_importance(
    model: nn.Module,
    examples: Iterable,
    groups: Iterable[Group],
    *,
    expansion: str = "vector",
    order: str = "first",
    aggregation: str = "sum",
    loss: Callable[[Any, Any], Tensor] = next_token_loss,
) -> dict[Group, Tensor]:
    """Return a score for each channel of each group; the least can go first.

    Args:
        model, examples, groups, expansion, order, loss: as for :func:`structure_importance`.
        aggregation: of a channel's structures: "sum", "product", "max", or "last", that of the last member of the
            group: what leads back into the residual stream, where modules stand in the order in which they run.
    Returns:
        group → (channels,), float64. Of "product" it is the sum of the logarithms, since a product of a few small
        numbers leaves the range of floats; −inf where a structure has no importance at all.
    Raises:
        ValueError: as :func:`structure_importance`; an unknown aggregation.
    """
    check_choice("aggregation", aggregation, AGGREGATIONS)
    found = structure_importance(model, examples, groups, expansion=expansion, order=order, loss=loss)
    return {group: AGGREGATIONS[aggregation](scores) for group, scores in found.items()}


@isolated_run
def structure_importance(
    model: nn.Module,
    examples: Iterable,
    groups: Iterable[Group],
    *,
    expansion: str = "vector",
    order: str = "first",
    loss: Callable[[Any, Any], Tensor] = next_token_loss,
) -> dict[Group, Tensor]:
    """Return $I_{W_i}$ of every structure of every channel.

    Args:
        model: run in eval mode; not modified.
        examples: batches for the model, each one example $L_j$: for the first order alone it does not matter how they
            are cut, if all are of one size.
        groups: of :func:`mlcomp.prune.dependency_groups`.
        expansion: "vector", the change by a whole structure, in which weights can cancel; "element", the sum over its
            weights of what each alone would change.
        order: of the expansion: "first", "second" (its quadratic term alone), or "both", the formula above.
        loss: ``loss(model(batch), batch)``, a scalar mean.
    Returns:
        group → (structures, channels), float64: a row for each member of the group that has weights of its own.
    Raises:
        ValueError: an unknown option; no example, no group, or a group of another model; a loss that is no finite
            number.
    Guarantee: where the loss is linear in a structure, its first order by "vector" is the change of the loss that its
        removal makes.
    Deviations: a bias goes with the weights beside it as one structure, which the paper, without biases, does not
        say. The sum over the examples in its eq. (5) is a mean here, in both terms alike, since the loss is a mean.
        In the quadratic term of "vector", which the paper leaves out for its cost, the Fisher matrix stands for H.
    Cost: a forward and a backward pass for each example, a copy of the model, and as much memory again for the
        gradients; with "element" as much once more for each term.
    """
    check_choice("expansion", expansion, ("vector", "element"))
    check_choice("order", order, ORDERS)
    check_batches(examples)
    chosen = tuple(groups)
    if not chosen:
        raise ValueError("groups is empty: there is nothing to score")
    first: dict[Any, Any] = {}
    second: dict[Any, Any] = {}
    count = 0
    for products in _products(model, examples, loss):
        parts: Mapping[Any, Tensor] = _structures(model, chosen, products) if expansion == "vector" else products
        for key, part in parts.items():
            first[key] = first.get(key, 0) + part
            if order != "first":
                second[key] = second.get(key, 0) + part.square()
        count += 1
    if not count:
        raise ValueError("examples is empty: importance needs a gradient")
    changes = {key: ORDERS[order](v / count, second.get(key, first[key]) / count).abs() for key, v in first.items()}
    found = changes if expansion == "vector" else _structures(model, chosen, changes)
    rows: dict[int, list[Tensor]] = {}
    for (number, _), row in found.items():
        rows.setdefault(number, []).append(row)
    return {group: torch.stack(rows[number]) for number, group in enumerate(chosen)}


def _products(
    model: nn.Module, examples: Iterable, loss: Callable[[Any, Any], Tensor]
) -> Iterator[dict[str, Tensor]]:
    """Yield name of a parameter → g·w, entry by entry, for each example."""
    student = copy_model(model).eval().requires_grad_(True)
    weights = dict(student.named_parameters())
    for batch in examples:
        with torch.enable_grad():
            value = loss(call_model(student, batch), batch)
            if value.ndim:
                raise ValueError(f"loss must return one number, got {tuple(value.shape)}")
            check_finite("the loss", value.detach())
            gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        yield {
            name: torch.zeros_like(w) if g is None else _wide(g) * _wide(w.detach())
            for (name, w), g in zip(weights.items(), gradients, strict=True)
        }


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _structures(model: nn.Module, groups: Iterable[Group], values: Mapping[str, Tensor]) -> Structures:
    """Return (number of a group, structure) → (channels,), sums of the values of the structure's weights."""
    found: Structures = {}
    for number, group in enumerate(groups):
        homes: dict[str, str] = {}  # module → its first structure, to which its vectors belong
        for (name, dim), rows in group_weights(model, group, values).items():
            home = homes.setdefault(name.rpartition(".")[0], f"{name}, {dim}")
            key = (number, home if values[name].ndim == 1 else f"{name}, {dim}")
            total = rows.sum(1, dtype=torch.float64)
            found[key] = found[key] + total if key in found else total
    return found
