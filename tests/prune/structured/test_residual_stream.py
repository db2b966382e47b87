import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.models import byte_lm
from mlcomp.prune import Gates, gated_size, gating, open_gates, remove_gated, residual_stream
from tests.prune.structured.nets import run, seeded, with_zeros


def rms_norm(width: int) -> nn.RMSNorm:
    return nn.RMSNorm(width, eps=1e-6)


class Tiny(nn.Module):
    """Two feed-forward sublayers on a stream, the second with biases, and a head of its own or a tied one."""

    def __init__(self, width=3, units=2, tied=False, norm=rms_norm):
        super().__init__()
        self.embedding = nn.Embedding(5, width)
        self.first, self.second, self.last = norm(width), norm(width), norm(width)
        self.up1, self.down1 = nn.Linear(width, units, bias=False), nn.Linear(units, width, bias=False)
        self.up2, self.down2 = nn.Linear(width, units), nn.Linear(units, width)
        self.head = nn.Linear(width, 5, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = x + self.down1(F.gelu(self.up1(self.first(x))))
        x = x + self.down2(F.gelu(self.up2(self.second(x))))
        return self.head(self.last(x))


TOKENS = torch.arange(5)[None]


def drawn(gates: Gates, seed: int, closed: float = 0.3, whole: bool = False) -> Gates:
    """Gates between 0.5 and 1, some of them 0 and, if ``whole``, all others 1."""
    g = torch.Generator().manual_seed(seed)

    def of(z):
        value = torch.ones(z.shape) if whole else torch.rand(z.shape, generator=g) / 2 + 0.5
        return value * (torch.rand(z.shape, generator=g) >= closed)

    return gates.map(of)


def literal(model, z: Gates):
    """The tiny model under gates, written out entry by entry of the stream."""
    layers, (one, two), k = z.layers.double(), [u.double() for u in z.units], z.dimensions.double()

    def norm(x, module):
        return module.weight * x / (x.square().mean(-1, keepdim=True) + module.eps).sqrt()

    x = model.embedding.weight * k
    hidden = one * F.gelu(norm(x, model.first) @ model.up1.weight.T)
    x = x + k * (layers[0] * (hidden @ model.down1.weight.T))
    hidden = two * F.gelu(norm(x, model.second) @ model.up2.weight.T + model.up2.bias)
    x = x + k * (layers[1] * (hidden @ model.down2.weight.T) + model.down2.bias)
    return norm(x, model.last) @ model.head.weight.T


def matrices(model) -> int:
    """Entries in the matrices of the sublayers, counted in the model itself."""
    names = ("up", "down", "qkv", "out")
    return sum(m.weight.numel() for n, m in model.named_modules() if n.rpartition(".")[2].rstrip("12") in names)


@pytest.mark.parametrize("tied", [False, True])
def test_gates_and_removal_are_what_is_written_out(tied):
    model = seeded(lambda: Tiny(6, 4, tied))
    stream = residual_stream(model, TOKENS)
    assert [s.writer for s in stream.sublayers] == ["down1", "down2"] and stream.sources == ("embedding",)
    assert [s.cost for s in stream.sublayers] == [2, 2] and stream.norms == ("first", "second", "last")
    for seed in range(8):
        gates = drawn(open_gates(stream), seed)
        if not gates.dimensions.any():
            continue
        with gating(model, stream, gates):
            got = run(model, TOKENS)
        with torch.no_grad():
            torch.testing.assert_close(got[0], literal(model, gates), rtol=0, atol=1e-6)  # gates are float32
        small = remove_gated(model, stream, gates)
        torch.testing.assert_close(run(small, TOKENS), got, rtol=0, atol=1e-6)
        assert matrices(small) == float(gated_size(stream, gates.map(lambda z: (z > 0).float())))
        assert (small.head.weight is small.embedding.weight) == tied


@pytest.mark.slow
def test_the_expected_size_is_the_mean_over_all_masks():
    """2⁹ masks of the tiny model, each cut out and counted, weighted by its probability."""
    model = seeded(Tiny)
    stream = residual_stream(model, TOKENS)
    p = open_gates(stream).map(
        lambda z: torch.rand(z.shape, generator=torch.Generator().manual_seed(len(z))).double()
    )
    flat = torch.cat((p.layers, *p.units, p.dimensions))
    mean = 0.0
    for bits in itertools.product((0.0, 1.0), repeat=9):
        z = torch.tensor(bits, dtype=torch.float64)
        chance = math.prod((z * flat + (1 - z) * (1 - flat)).tolist())
        if z[6:].any():  # else nothing is left
            mean += chance * matrices(remove_gated(model, stream, Gates(z[:2], (z[2:4], z[4:6]), z[6:])))
    assert float(gated_size(stream, p)) == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_byte_lm_without_its_gated_parts_is_byte_lm_with_them_at_zero(seed):
    model = byte_lm(32, pretrained=False, seed=seed).double()
    batch = torch.randint(256, (2, 24), generator=torch.Generator().manual_seed(seed))
    stream = residual_stream(model, batch)
    assert [s.cost for s in stream.sublayers] == 4 * [4 * 16, 2]
    assert float(gated_size(stream, open_gates(stream))) == 48 * 32**2 == matrices(model)
    gates = drawn(open_gates(stream), seed, whole=True)
    zero = {stream.dimensions: (gates.dimensions == 0).nonzero().flatten().tolist()}
    for sublayer, layer, units in zip(stream.sublayers, gates.layers, gates.units, strict=True):
        zero[sublayer.units] = (layer * units == 0).nonzero().flatten().tolist()
    want = run(with_zeros(model, zero), batch)
    with gating(model, stream, gates):
        torch.testing.assert_close(run(model, batch), want, rtol=0, atol=1e-12)
    small = remove_gated(model, stream, gates)
    torch.testing.assert_close(run(small, batch), want, rtol=0, atol=1e-6)  # RMSNorm's epsilon and gain are rescaled
    assert matrices(small) == float(gated_size(stream, gates)) < matrices(model)
    closed = int((gates.layers == 0).sum())
    assert (
        closed
        and sum(m.weight.numel() == 0 for n, m in small.named_modules() if n.endswith(("out", "down"))) >= closed
    )


def test_gradients_reach_gates_and_weights_and_no_hook_stays():
    model = seeded(Tiny)
    stream = residual_stream(model, TOKENS)
    gates = open_gates(stream).map(lambda z: z.requires_grad_())
    with gating(model, stream, gates):
        model(TOKENS).square().sum().backward()
    for z in (gates.layers, *gates.units, gates.dimensions):
        assert z.grad is not None and bool((z.grad != 0).all())
    assert model.down1.weight.grad is not None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_nothing_of_the_model_is_changed():
    model = seeded(Tiny)
    before = copy.deepcopy(model.state_dict())
    stream = residual_stream(model, TOKENS)
    remove_gated(model, stream, drawn(open_gates(stream), 1))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_dimensions_stay_behind_a_layer_norm():
    model = seeded(lambda: Tiny(6, 4, norm=nn.LayerNorm))
    stream = residual_stream(model, TOKENS)
    gates = drawn(open_gates(stream), 0)
    with pytest.raises(ValueError, match="is a LayerNorm: it averages over the dimensions"):
        remove_gated(model, stream, gates)
    gates = Gates(gates.layers, gates.units, torch.ones(6))
    with gating(model, stream, gates):
        want = run(model, TOKENS)
    torch.testing.assert_close(run(remove_gated(model, stream, gates), TOKENS), want, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_bert_loses_heads_and_units():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=8
    )
    model = seeded(lambda: transformers.BertForSequenceClassification(config))
    batch = {"input_ids": torch.arange(6)[None], "attention_mask": torch.ones(1, 6, dtype=torch.int64)}
    stream = residual_stream(model, batch)
    assert [(s.units.channels, s.cost) for s in stream.sublayers] == 2 * [(3, 16), (8, 2)]
    gates = drawn(open_gates(stream), 3)
    gates = Gates(torch.tensor([1.0, 0.0, 0.0, 1.0]), gates.units, torch.ones(12))
    with gating(model, stream, gates):
        want = run(model, batch)
    torch.testing.assert_close(run(remove_gated(model, stream, gates), batch), want, rtol=0, atol=1e-6)


def test_bad_input(as_user):
    with pytest.raises(ValueError, match="Sequential has no residual stream"):
        residual_stream(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(1, 3))
    with pytest.raises(ValueError, match="no linear layers"):
        residual_stream(nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4), nn.Linear(4, 2)), torch.rand(1, 3))
    model = seeded(Tiny)
    stream = residual_stream(model, TOKENS)
    gates = open_gates(stream)
    with pytest.raises(ValueError, match="all dimensions of the stream"):
        remove_gated(model, stream, Gates(gates.layers, gates.units, torch.zeros(3)))
    with pytest.raises(ValueError, match="units for 1"):
        gated_size(stream, Gates(gates.layers, gates.units[:1], gates.dimensions))
    with pytest.raises(ValueError, match=r"gates must be \(3,\)"):
        gated_size(stream, Gates(gates.layers, gates.units, torch.ones(4)))
    with pytest.raises(ValueError, match="must not be negative"):
        gated_size(stream, Gates(-gates.layers, gates.units, gates.dimensions))
    with pytest.raises(TypeError, match="gates must be a Gates"):
        remove_gated(model, stream, torch.ones(3))
