import math
import random

import pytest

from mlcomp.prune import coupled_nodes, degree_rules


def swiglu(inputs=3, hidden=4, outputs=2):
    """Return the neurons of a gated MLP: node → what it reads, and the nodes that multiply."""
    reads = {("x", i): () for i in range(inputs)}
    for k in range(hidden):
        reads[("gate", k)] = reads[("up", k)] = tuple(("x", i) for i in range(inputs))
        reads[("silu", k)] = (("gate", k),)
        reads[("product", k)] = (("silu", k), ("up", k))
    for o in range(outputs):
        reads[("down", o)] = tuple(("product", k) for k in range(hidden))
    return reads, {("product", k) for k in range(hidden)}


def random_graph(seed, nodes=14):
    """Return a random network of sums, activations and products, three inputs first."""
    draw = random.Random(seed)
    reads = {n: () for n in range(3)}
    for n in range(3, nodes):
        reads[n] = tuple(draw.sample(range(n), min(n, draw.choice([1, 1, 2, 2, 3]))))
    return reads, {n for n in reads if len(reads[n]) > 1 and draw.random() < 0.5}


def values(reads, products, weights, inputs, held):
    """Compute every node one after the other; those in ``held`` have a value of their own."""
    out = {}
    for node, read in reads.items():
        if node in held:
            out[node] = held[node]
        elif not read:
            out[node] = inputs[node]
        elif node in products:
            out[node] = math.prod(out[i] for i in read)
        else:
            out[node] = math.tanh(sum(weights[node, i] * out[i] for i in read))
    return out


def useless(reads, products, start, seed):
    """Return by trial what is 0 for all inputs, or changes nothing behind it, when ``start`` and these are 0."""
    draw = random.Random(seed)
    weights = {(j, i): draw.uniform(0.5, 1.5) * draw.choice([-1, 1]) for j, read in reads.items() for i in read}
    inputs = [{n: draw.uniform(0.5, 1.5) for n in reads if not reads[n]} for _ in range(3)]
    ends = [n for n in reads if not any(n in read for read in reads.values())]
    gone, size = {start}, 0
    while size < len(gone):
        size = len(gone)
        held = dict.fromkeys(gone, 0.0)
        runs = [values(reads, products, weights, x, held) for x in inputs]
        gone |= {n for n in reads if all(run[n] == 0 for run in runs)}
        for node in reads:
            if node not in ends and node not in gone:
                moved = [values(reads, products, weights, x, held | {node: 0.7}) for x in inputs]
                # Below 1e-12: a sum in another order; a real influence is of the size of the weights.
                same = all(abs(a[e] - b[e]) < 1e-12 for a, b in zip(runs, moved, strict=True) for e in ends)
                if same:
                    gone.add(node)
    return gone


def test_the_printed_rules_stop_at_the_product():
    reads, products = swiglu()
    assert degree_rules(reads, ("gate", 1)) == {("gate", 1), ("silu", 1)}
    assert degree_rules(reads, ("up", 1)) == {("up", 1)}
    whole = {(name, 1) for name in ("gate", "silu", "up", "product")}
    assert degree_rules(reads, ("product", 1)) == whole  # the same network, and another group
    for start in whole:
        assert coupled_nodes(reads, start, products=products) == whole


def test_without_a_product_the_printed_rules_are_enough():
    """The paper's own example: an MLP, one neuron with its activation."""
    reads = {("x", i): () for i in range(3)}
    for k in range(4):
        reads["hidden", k], reads["relu", k] = tuple(reads)[:3], (("hidden", k),)
    reads |= {("out", o): tuple(("relu", k) for k in range(4)) for o in range(2)}
    for start in (("hidden", 2), ("relu", 2)):
        assert degree_rules(reads, start) == coupled_nodes(reads, start) == {("hidden", 2), ("relu", 2)}


@pytest.mark.parametrize("start", ["x", "gate", "silu", "up", "product"])
def test_a_gated_mlp_by_trial(start):
    reads, products = swiglu()
    assert coupled_nodes(reads, (start, 0), products=products) == useless(reads, products, (start, 0), seed=1)


@pytest.mark.parametrize("seed", range(25))
def test_random_networks_by_trial(seed):
    reads, products = random_graph(seed)
    for start in (3, 6, 9):
        found = coupled_nodes(reads, start, products=products)
        assert found == useless(reads, products, start, seed)
        assert degree_rules(reads, start) <= found


def test_it_has_a_direction():
    """One addend leaves the sum, one reader leaves what it read; the other way round all go."""
    reads = {"x": (), "y": (), "a": ("x", "y"), "b": ("x", "y"), "sum": ("a", "b"), "end": ("sum", "x")}
    assert coupled_nodes(reads, "a") == {"a"}
    assert coupled_nodes(reads, "sum") == {"sum", "a", "b", "y"}


def test_bad_input():
    for function in (degree_rules, coupled_nodes):
        with pytest.raises(ValueError, match="'z' is no node"):
            function({"x": ()}, "z")
        with pytest.raises(ValueError, match="'y' is no node"):
            function({"x": ("y",)}, "x")
    with pytest.raises(ValueError, match="'z' is no node"):
        coupled_nodes({"x": ()}, "x", products=["z"])
