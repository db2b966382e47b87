r"""Cut attention heads out of a network: what is left computes what the whole one does with these heads masked.

Notation: in grouped-query attention R query heads read one key–value head; a group is that head with its R readers.
Where R = 1 every head is a group of its own. Query heads of a group can be removed while every group of the layer
that stays keeps equally many, since R is one number.
Source: Michel, Levy, Neubig 2019, arXiv:1905.10650, section 3; Ainslie et al. 2023, arXiv:2305.13245 (grouped
queries).   Syllabus: 4.10
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from mlcomp.context import isolated_run
from mlcomp.prune.structured.attention_heads import attention_heads
from mlcomp.prune.structured.dependency_graph import Group, Member, dependency_groups, find_group, fixed_channels
from mlcomp.prune.structured.remove_channels import remove_channels


@isolated_run
def remove_heads(model: nn.Module, heads: Mapping[str, Iterable[int]], batch: Any) -> nn.Module:
    """Return a copy of ``model`` without these heads.

    Args:
        model: not modified.
        heads: name of an output projection (see :func:`mlcomp.prune.attention_heads`) → the numbers of its query
            heads to remove. A key–value head goes when all its query heads do.
        batch: a small batch, to see which rows and columns belong to a head.
    Returns:
        The smaller network, each module in the mode it had; where all layers of a transformers model lost equally
        many, its configuration states the new numbers. Generation works in either case.
    Raises:
        ValueError: a layer that is no output projection, a head that is not there or stands twice, all heads of a
            layer; key–value groups that would keep different numbers of query heads; single query heads where one
            matrix gives queries, keys and values; a model whose sizes do not follow from its weights.
    Guarantee: up to rounding the outputs of ``model`` with these heads at zero in the input of the output projection.
    Cost: two forward passes over ``batch`` and a copy of the model.
    """
    counts = attention_heads(model, batch)
    groups = dependency_groups(model, batch)
    whole: dict[Group, list[int]] = {}
    single: dict[Group, list[int]] = {}
    factors: dict[str, int] = {}
    for name, numbers in heads.items():
        chosen = _checked(name, list(numbers), counts)
        if not chosen:
            continue
        group = _group_of(model, batch, groups, name)
        held = _heads_of_channels(group.member(name, "in"), counts[name])
        gone = [n for n, own in enumerate(held) if own <= chosen]
        whole[group] = gone
        rest = chosen - {h for n in gone for h in held[n]}
        if rest:
            stay = [own for n, own in enumerate(held) if n not in gone]
            left = [len(own - rest) for own in stay]
            if len(set(left)) > 1:
                raise ValueError(
                    f"{name!r}: every key–value group that stays has to keep equally many query heads, and of "
                    f"{[sorted(own) for own in stay]} they would keep {left}"
                )
            queries, reader = _query_heads(group, name, counts[name], stay)
            single[queries] = [index for index, h in enumerate(sorted(set().union(*stay))) if h in rest]
            factors[reader] = left[0]
    small = remove_channels(model, whole | single)
    for path, readers in factors.items():
        attention: Any = small.get_submodule(path)
        if hasattr(attention, "num_key_value_groups"):  # transformers repeats keys and values so many times
            attention.num_key_value_groups = readers
    return small


def _checked(name: str, numbers: list[int], counts: Mapping[str, int]) -> set[int]:
    if name not in counts:
        raise ValueError(f"{name!r} is no output projection of heads; these are {list(counts)}")
    count = counts[name]
    if any(isinstance(h, bool) or not isinstance(h, int) or not 0 <= h < count for h in numbers):
        raise ValueError(f"the heads of {name!r} are whole numbers from 0 to {count - 1}, got {numbers}")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"a head of {name!r} stands twice in {numbers}")
    if len(numbers) == count:
        raise ValueError(f"at least one head of {name!r} has to stay")
    return set(numbers)


def _group_of(model: nn.Module, batch: Any, groups: Iterable[Group], name: str) -> Group:
    try:
        return find_group(groups, name, "in")
    except ValueError as problem:
        reason = fixed_channels(model, batch).get(f"{name}.in", "the model computes its sizes from others")
        raise ValueError(f"the heads of {name!r} cannot be removed: {reason}") from problem


def _heads_of_channels(member: Member, count: int) -> list[set[int]]:
    """Return for each channel of the group the query heads that it consists of."""
    size = sum(map(len, member.indices)) // count
    return [{position // size for position in places} for places in member.indices]


def _query_heads(group: Group, name: str, count: int, stay: list[set[int]]) -> tuple[Group, str]:
    """Return the query heads of the key–value groups that stay, as channels of their own, and the attention's path.

    Their rows in the query layer are their columns in the output projection.
    """
    columns = group.member(name, "in").indices
    query = next((m for m in group.members if m.axis == "out" and m.indices == columns), None)
    if query is None:
        raise ValueError(
            f"{name!r}: one matrix gives queries, keys and values, so only whole key–value groups can be removed: "
            f"{[sorted(own) for own in _heads_of_channels(group.member(name, 'in'), count)]}"
        )
    size = sum(map(len, columns)) // count
    left = sorted(set().union(*stay))
    places = tuple(tuple(range(h * size, (h + 1) * size)) for h in left)
    blocks = tuple(next(n for n, own in enumerate(stay) if h in own) for h in left)
    members = (Member(query.name, "out", places), Member(name, "in", places))
    return Group(members, (blocks,)), query.name.rpartition(".")[0]
