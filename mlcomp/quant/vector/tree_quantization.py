r"""Tree-structured vector quantization: the codebook is found by a walk down a tree, not by a search of all entries.

Notation: K entries are the leaves of a tree of depth D with F branches at each node, $K = F^D$. A vector walks to the
nearest of F centres at each level: F·D distances instead of $F^D$.
Source: Buzo, Gray, Gray and Markel 1980; Gersho and Gray 1992, section 12.4.   Syllabus: 1.07
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from mlcomp.checks import check_finite, check_floating, check_matrix, check_whole
from mlcomp.context import isolated
from mlcomp.quant.vector.kmeans import kmeans, kmeans_assign
from mlcomp.quant.vector.vector_quantized import VectorQuantized, to_vectors


@dataclass(frozen=True)
class TreeCodebook:
    """Centres of all levels: ``levels[l]`` is (F^l, F, d), the branches of each node of level l.

    The last level's centres are the entries. The others serve the search alone; a decoder does not need them.
    """

    levels: tuple[Float[Tensor, "_ branching dim"], ...]

    @property
    def entries(self) -> Float[Tensor, "entries dim"]:
        """The leaves, in the order of their codes."""
        return self.levels[-1].flatten(0, 1)

    @property
    def distances(self) -> int:
        """Distances computed to encode a vector; a full search takes one for each entry."""
        return sum(centres.shape[1] for centres in self.levels)

    @isolated
    def encode(self, points: Float[Tensor, "points dim"]) -> Int32[Tensor, " points"]:
        """Return the leaf that each point walks to: at each node the nearest branch, of equal ones the first.

        Raises:
            ValueError: points that are not (N, d), NaN or infinity.
        """
        check_floating("points", points)
        if points.ndim != 2 or points.shape[1] != self.levels[0].shape[2] or len(points) == 0:
            raise ValueError(f"points must be (N, {self.levels[0].shape[2]}), got {tuple(points.shape)}")
        check_finite("points", points)
        x = points.to(self.levels[0].dtype)
        node = torch.zeros(len(x), dtype=torch.long, device=x.device)
        for centres in self.levels:
            branch = torch.zeros_like(node)
            for at in node.unique().tolist():
                here = (node == at).nonzero()[:, 0]
                branch[here] = kmeans_assign(x[here], centres[at]).long()
            node = node * centres.shape[1] + branch
        return node.to(torch.int32)


@isolated
def fit_tree(
    points: Float[Tensor, "points dim"],
    entries: int,
    *,
    branching: int,
    generator: torch.Generator,
    max_steps: int = 100,
) -> TreeCodebook:
    """Fit the tree from the root down: each node's points get a k-means codebook of their own.

    Args:
        points: (N, d), finite, computed in float32 (float64 stays); not modified.
        entries: K = branching^D for a whole D ≥ 1.
        branching: F, at least 2 (or 1 with one entry). F = K is plain k-means.
        generator: of the k-means++ seedings, on the device of ``points``.
        max_steps: k-means iterations of a node at the most.
    Raises:
        ValueError: malformed points, entries not a power of the branching or more than there are points.
    Guarantee: no level fits the points worse than the level above it (up to rounding). A node with fewer points than
        branches repeats its last centre, and the repeats stay unused.
    Cost: 2·N·F·d FLOPs an iteration and level.
    """
    depth = _depth(entries, branching)
    check_matrix("points", points)
    if entries > len(points):
        raise ValueError(f"entries must be at most the {len(points)} points, got {entries}")
    x = points.detach() if points.dtype == torch.float64 else points.detach().float()
    groups, home, levels = [x], [x.mean(0, keepdim=True)], []
    for _ in range(depth):
        below, centres = [], []
        for members, parent in zip(groups, home, strict=True):
            found, parts = _split(members, parent, branching, generator, max_steps)
            centres.append(found)
            below += parts
        levels.append(torch.stack(centres))
        groups, home = below, list(levels[-1].flatten(0, 1)[:, None])
    return TreeCodebook(tuple(levels))


@isolated
def tree_quantization(
    weight: Float[Tensor, "out inp"],
    *,
    dim: int,
    entries: int,
    branching: int,
    generator: torch.Generator,
    max_steps: int = 100,
) -> VectorQuantized:
    r"""Quantize each vector to the leaf it walks to: $\log_2 K / d$ bits a weight, and the leaves.

    Args:
        weight: (out, inp), any float dtype, computed in float32 (float64 stays); not modified.
        dim: d, must divide ``inp``.
        entries: K = branching^D for a whole D ≥ 1, at most the number of vectors, out·inp/d.
        branching: F; F = K is :func:`mlcomp.quant.vector_quantization`, to the last bit.
        generator, max_steps: see :func:`fit_tree`.
    Raises:
        ValueError: malformed weight, dim that does not divide, entries not a power of the branching or out of range.
    """
    x = to_vectors(weight, dim)
    tree = fit_tree(x, entries, branching=branching, generator=generator, max_steps=max_steps)
    return VectorQuantized(tree.encode(x)[:, None], tree.entries[None], (len(weight), weight.shape[1]), "sum")


def _split(
    members: Tensor, parent: Tensor, branching: int, generator: torch.Generator, max_steps: int
) -> tuple[Tensor, list[Tensor]]:
    """Return the branches' centres (F, d) of one node and the points that go to each."""
    count = min(branching, len(members))
    if count == 0:
        return parent.expand(branching, -1), [members] * branching
    centres = kmeans(members, count, generator=generator, max_steps=max_steps).codebook
    centres = torch.cat([centres, centres[-1:].expand(branching - count, -1)])
    index = kmeans_assign(members, centres)
    return centres, [members[index == b] for b in range(branching)]


def _depth(entries: int, branching: int) -> int:
    check_whole("entries", entries, 1)
    check_whole("branching", branching, 1)
    depth, leaves = 1, branching
    while leaves < entries and branching > 1:
        depth, leaves = depth + 1, leaves * branching
    if leaves != entries:
        raise ValueError(f"entries must be a power of branching={branching}, got {entries}")
    return depth
