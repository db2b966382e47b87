r"""Which neurons go with one: LLM-Pruner's two rules as printed, and rules that also pass products and fans.

Notation: $N_j \in \mathrm{Out}(N_i)$ reads $N_i$; $\mathrm{Deg}^-(N_j)$ is how many nodes $N_j$ reads,
$\mathrm{Deg}^+(N_i)$ how many read $N_i$. The printed rules are

$$N_j \in \mathrm{Out}(N_i) \wedge \mathrm{Deg}^-(N_j) = 1 \Rightarrow N_j \text{ is dependent on } N_i \quad (1)$$
$$N_i \in \mathrm{In}(N_j) \wedge \mathrm{Deg}^+(N_i) = 1 \Rightarrow N_i \text{ is dependent on } N_j \quad (2)$$

A network is a mapping from each node to the nodes that it reads; inputs read nothing.
Source: Ma, Fang, Wang 2023, arXiv:2305.11627, eq. (1)–(2).   Syllabus: 5.03
"""

from collections.abc import Collection, Mapping
from typing import TypeVar

from mlcomp.context import isolated

Node = TypeVar("Node")


@isolated
def degree_rules(reads: Mapping[Node, Collection[Node]], start: Node) -> set[Node]:
    """Return ``start`` and all that depends on it by the printed rules, applied until they add nothing.

    Args:
        reads: node → the nodes that it reads.
        start: the node that is removed first.
    Raises:
        ValueError: ``start``, or a node that is read, is not among the keys.
    Guarantee: every node found goes with ``start`` by :func:`coupled_nodes`, too, but not the reverse: from a gate
        neuron of SwiGLU the rules stop at the product, which reads two.
    """
    readers = _readers(reads, [start])
    found, new = {start}, [start]
    while new:
        node = new.pop()
        after = [j for j in readers[node] if len(reads[j]) == 1]
        before = [i for i in reads[node] if len(readers[i]) == 1]
        for other in (*after, *before):
            if other not in found:
                found.add(other)
                new.append(other)
    return found


@isolated
def coupled_nodes(
    reads: Mapping[Node, Collection[Node]], start: Node, *, products: Collection[Node] = ()
) -> set[Node]:
    """Return ``start`` and all that is of no use without it: what is zero then, or what nothing reads any more.

    A product is gone with any node that it reads, every other node with all of them; and a node is gone with all that
    read it. Applied until this adds nothing.

    Args:
        reads: node → the nodes that it reads.
        start: the node that is removed first.
        products: the nodes that multiply what they read; all others (sums, activations with f(0) = 0) are zero when
            all that they read is.
    Raises:
        ValueError: ``start``, a product, or a node that is read, is not among the keys.
    Guarantee: what is found is what computes zero whatever comes in, or changes nothing behind it, when ``start`` is
        held at zero, but for weights that cancel. In a gated MLP it is the same whichever member it starts from. In
        general it has a direction: a sum takes all that only it reads, one addend leaves the sum. What must be cut
        for shapes to fit goes both ways: :func:`mlcomp.prune.dependency_groups`.
    """
    readers = _readers(reads, [start, *products])
    gone, size = {start}, 0
    while size < len(gone):
        size = len(gone)
        for node, read in reads.items():
            dead = [other in gone for other in read]
            unread = [other in gone for other in readers[node]]
            if (dead and (any(dead) if node in products else all(dead))) or (unread and all(unread)):
                gone.add(node)
    return gone


def _readers(reads: Mapping[Node, Collection[Node]], named: Collection[Node]) -> dict[Node, list[Node]]:
    """Return node → the nodes that read it."""
    unknown = [node for node in (*named, *(i for read in reads.values() for i in read)) if node not in reads]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no node: reads must have each as a key, inputs with nothing to read")
    readers: dict[Node, list[Node]] = {node: [] for node in reads}
    for node, read in reads.items():
        for other in read:
            readers[other].append(node)
    return readers
