"""What the checks of Lecture 5's exercises compare with agrees with the library, or with a shorter way to it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.grading import by_trying_pruner as pruner
from mlcomp.prune import coupled_nodes, dependency_groups, structure_importance
from mlcomp.prune.structured.group_importance import AGGREGATIONS
from mlcomp.quant import onebit_decompose


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(8))
def test_gone_nodes_are_those_of_the_library(seed):
    reads = (normal(seed, 9, 9) > 0.6).tril(-1)
    products = reads.sum(1) > 1
    graph = {i: reads[i].nonzero()[:, 0].tolist() for i in range(9)}
    for start in range(9):
        gone = coupled_nodes(graph, start, products=products.nonzero()[:, 0].tolist())
        assert set(pruner.gone_nodes(reads, products, start).nonzero()[:, 0].tolist()) == gone


def test_heads_are_repeated_as_grouped_query_attention_repeats_them():
    heads, kv_heads, size = 6, 2, 3
    keys = torch.arange(kv_heads * size).reshape(kv_heads, size)
    read = keys.repeat_interleave(heads // kv_heads, 0).flatten() // size  # the key-value head of each row of q
    for index in range(heads * size):
        kv = read[index]
        wanted = [*(read == kv).nonzero()[:, 0].tolist(), *keys[kv].tolist()]
        assert pruner.head_rows("q", index, heads, kv_heads, size).tolist() == wanted


def test_sizes_of_smollm2():
    shape = 576, 1536, 9, 3, 64, 30, 26
    assert pruner.pruned_size(*shape, 0).tolist() == [0, 0, 106_168_320]
    # A third of the heads needs more than a third of the rows to go.
    assert pruner.pruned_size(*shape, 34).tolist() == [523, 1, 106_168_320 - 26 * (523 * 1728 + 294_912)]
    assert pruner.pruned_size(*shape, 20).tolist() == [308, 0, 106_168_320 - 26 * 308 * 1728]


@pytest.mark.parametrize("element", [False, True])
def test_importances_are_those_of_the_library(element):
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False)).double()
    examples = [normal(seed, 4, 3) for seed in range(6)]

    def loss(output, batch):
        return (output - batch[:, :2]).square().mean()

    groups = dependency_groups(model, examples[0])
    expansion = "element" if element else "vector"
    ((_, found),) = structure_importance(
        model, examples, groups, expansion=expansion, order="both", loss=loss
    ).items()
    first, last = model[0].weight, model[2].weight
    gradients = [torch.autograd.grad(loss(model(x), x), (first, last)) for x in examples]
    rows, columns = (torch.stack(parts) for parts in zip(*gradients, strict=True))
    truth = torch.stack(
        [
            pruner.importance(rows, first.detach(), element),
            pruner.importance(columns.transpose(1, 2), last.detach().T, element),
        ]
    )
    torch.testing.assert_close(found, truth)


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_orders_are_those_of_the_library(how):
    scores = normal(0, 4, 12).exp()
    scores[:, 3:5] = 0
    assert pruner.removal_order(scores, how).tolist() == AGGREGATIONS[how](scores).argsort(stable=True).tolist()


def test_the_smaller_norm_is_the_whole_one_with_zeros():
    gain, x = normal(1, 7), normal(2, 3, 7)
    keep = torch.tensor([1, 0, 1, 1, 0, 0, 1]) > 0
    found = pruner.smaller_norm(gain, 0.3, keep)
    whole = F.rms_norm(x * keep, (7,), gain, 0.3)
    torch.testing.assert_close(F.rms_norm(x[:, keep], (4,), found[:-1], float(found[-1])), whole[:, keep])


def test_signs_and_values_are_those_of_the_library():
    weight = normal(3, 12, 8) * normal(4, 12, 1).exp()
    weight[2, 3] = 0
    stored = onebit_decompose(weight, dtype=torch.float32)
    torch.testing.assert_close(pruner.sign_value(weight), stored.dequantize().double(), rtol=1e-6, atol=1e-6)
    bits = pruner.onebit_bits([(12, 8)], 0)[0]
    assert float(bits) * 96 == 8 * onebit_decompose(weight).nbytes
    a_parameter = 16_908_288 / 16_785_408
    assert pruner.onebit_bits([(4096, 4096)], 0).tolist() == [16_908_288 / 4096**2, a_parameter, a_parameter]


def test_packed_products_are_those_of_matrices():
    weight, a, b, x = normal(5, 4, 13), normal(6, 4).exp(), normal(7, 13).exp(), normal(8, 3, 13)
    weight[1, 2] = 0
    packed = torch.from_numpy(np.packbits((weight >= 0).numpy(), axis=1, bitorder="little"))
    assert torch.equal(pruner.packed_signs(weight), packed.double())
    signs = torch.where(weight >= 0, 1.0, -1.0).double()
    product = x @ (a[:, None] * signs * b).T
    torch.testing.assert_close(pruner.packed_product(packed, a, b, x), product)
    torch.testing.assert_close(pruner.onebit_outputs(x, signs, a, b), F.layer_norm(product, (4,)))
