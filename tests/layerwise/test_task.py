"""Tasks and what comes back, pickled there and back in this process: what a pool does, without its processes."""

import pickle
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from mlcomp.layerwise import compress
from mlcomp.layerwise.matrix import find_layer
from mlcomp.layerwise.plan import is_own
from mlcomp.layerwise.task import Inputs, LayerTask, Piece, compress_layer
from mlcomp.obs import gptq, sparsegpt
from mlcomp.prune import magnitude, wanda
from mlcomp.quant import rtn
from tests.layerwise.test_attention import encoder
from tests.layerwise.test_compress import conv_net, mlp
from tests.layerwise.test_experts import Mixture

GENERATOR = torch.Generator().manual_seed(1)
MODELS = {
    "convolutions": (conv_net, torch.randn(12, 2, 8, 8, generator=GENERATOR)),
    "attention": (encoder, torch.randn(4, 5, 16, generator=GENERATOR)),
    "experts": (Mixture, torch.randn(60, 6, generator=GENERATOR)),
    "bfloat16": (lambda: mlp().bfloat16(), torch.randn(60, 6, generator=GENERATOR).bfloat16()),
}
METHODS = {
    "gptq": partial(gptq, bits=3),
    "sparsegpt": partial(sparsegpt, sparsity=0.5),
    "wanda": partial(wanda, sparsity=0.5),
    "rtn": partial(rtn, bits=4),
}


def shipped(function, items):
    """Do what a pool of one process does."""
    for item in items:
        yield pickle.loads(pickle.dumps(function(pickle.loads(pickle.dumps(item)))))


def compressed(kind, method, map, **options):
    make, batch = MODELS[kind]
    torch.manual_seed(0)
    model, report = compress(make(), list(batch.split(6)), method, map=map, progress=False, **options)
    weights = {name: weight.tolist() for name, weight in model.state_dict().items()}
    packed = {name: str([(part.tensors, part.facts) for part in parts]) for name, parts in report.results.items()}
    return weights, [replace(row, seconds=0.0) for row in report.rows], packed


PAIRS = [("attention", method) for method in METHODS] + [(kind, "gptq") for kind in MODELS if kind != "attention"]


@pytest.mark.parametrize(("kind", "method"), PAIRS)
def test_every_kind_of_layer_and_result_goes_there_and_back(kind, method):
    chosen = METHODS[method]
    options = {"sequential": False, "held_out": [MODELS[kind][1][:3]]}
    here, there = (compressed(kind, chosen, map, **options) for map in (map, shipped))
    assert here == there


def test_a_layer_that_is_left_says_the_same():
    def refused(weight, hessian):
        if weight.shape[1] == 32:
            raise ValueError("too many inputs")
        return weight

    def here_only(function, items):
        return [pickle.loads(pickle.dumps(function(item))) for item in items]

    outcomes = [compressed("attention", refused, map, on_error="skip") for map in (map, here_only)]
    assert outcomes[0] == outcomes[1]
    assert [row.status for row in outcomes[0][1] if row.status != "compressed"] == ["skipped: too many inputs"]


def noisy(weight, *, generator):
    return weight + torch.rand(weight.shape, generator=generator)


def test_a_generator_begins_anew_for_each_layer_wherever_it_is_compressed():
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    here, there = (compressed("attention", partial(noisy, generator=generator), map) for map in (map, shipped))
    assert here == there and torch.equal(generator.get_state(), before)
    torch.manual_seed(0)
    dense = encoder().state_dict()
    drawn = torch.rand(32, 16, generator=torch.Generator().manual_seed(3))
    assert here[0]["layers.0.linear1.weight"] == (dense["layers.0.linear1.weight"] + drawn).tolist()


def nothing_shared():
    return None


def task(layer, hessian):
    found = LayerTask.of("name", layer, METHODS["rtn"], (None, None), skip=False, shared=nothing_shared)
    return found if hessian is None else replace(found, inputs=(Inputs(hessian, 5, False), None))


def test_a_view_is_sent_without_the_rest_of_its_parameter():
    torch.manual_seed(0)
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(64, 2), "plain": nn.Linear(64, 64)})
    sizes = [len(pickle.dumps(task(find_layer(model, name), None))) for name in ("attention.q_proj", "plain")]
    assert abs(sizes[0] - sizes[1]) < 500 and sizes[1] < 64 * 64 * 4 + 2000


def test_what_is_sent_is_the_weight_the_inputs_and_the_result_as_packed():
    layer, hessian = nn.Linear(64, 32), torch.eye(64)[None]
    there = pickle.dumps(task(layer, hessian))
    assert 4 * (64 * 32 + 64 * 64) < len(there) < 4 * (64 * 32 + 64 * 64) + 2000
    outcome = compress_layer(pickle.loads(there))
    back = pickle.dumps(outcome)
    assert outcome.row.nbytes_after < len(back) < outcome.row.nbytes_after + 2000  # four bits a weight, and the facts
    found = pickle.loads(back)
    assert isinstance(found, Piece)
    matrix, row, parts = found.read(layer)
    assert torch.equal(matrix, outcome.matrix) and row == outcome.row and len(parts) == 1


def test_nothing_is_kept_of_a_method_that_returns_a_plain_weight():
    layer = nn.Linear(8, 4)
    plain = replace(task(layer, None), method=partial(magnitude, sparsity=0.5))
    matrix, _, parts = pickle.loads(pickle.dumps(compress_layer(plain))).read(layer)
    assert parts == () and torch.equal(matrix[0], magnitude(layer.weight.detach(), sparsity=0.5))


def test_only_methods_of_this_library_see_the_weight_and_h_themselves():
    def other(weight, hessian):
        return weight

    for own in (rtn, partial(gptq, bits=3), partial(partial(sparsegpt, damp=0.1), sparsity=0.5)):
        assert is_own(own)
    for unknown in (other, partial(other), lambda weight: rtn(weight, bits=4), nn.Identity(), torch.round):
        assert not is_own(unknown)
