import math
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from mlcomp.compare import bits_per_byte
from mlcomp.data import committed_results, reference_bytes
from mlcomp.models import byte_lm
from mlcomp.models.byte_lm import HEAD, LAYERS, WIDTHS, rotary_angles, rotate
from mlcomp.models.pretrained import WEIGHTS

RESULTS = committed_results("scaling_family")


def literal(model, tokens):
    """The same network position by position with complex rotations and an explicit mask, in float64."""
    state = {k: v.double() for k, v in model.state_dict().items()}
    norm = lambda x, g: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * g  # noqa: E731
    x = state["embedding.weight"][tokens]
    length, width = x.shape
    frequency = 1000.0 ** (-2 * torch.arange(HEAD // 2).double() / HEAD)
    turn = torch.polar(torch.ones(length, HEAD // 2).double(), torch.arange(length)[:, None] * frequency)
    for i in range(LAYERS):
        p = {k.removeprefix(f"blocks.{i}."): v for k, v in state.items() if k.startswith(f"blocks.{i}.")}
        q, k, v = (norm(x, p["norm1.weight"]) @ p["qkv.weight"].T).split(width, dim=1)
        heads = []
        for h in range(0, width, HEAD):
            a, b = (torch.complex(m[:, h : h + 8], m[:, h + 8 : h + 16]) * turn for m in (q, k))
            scores = (a @ b.conj().T).real / math.sqrt(HEAD)
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
            heads.append(scores.softmax(-1) @ v[:, h : h + HEAD])
        x = x + torch.cat(heads, dim=1) @ p["out.weight"].T
        x = x + F.gelu(norm(x, p["norm2.weight"]) @ p["up.weight"].T) @ p["down.weight"].T
    return norm(x, state["norm.weight"]) @ state["embedding.weight"].T


def test_equals_the_literal_network():
    model = byte_lm(48, pretrained=False, seed=3)
    tokens = torch.randint(256, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = model(tokens)
    for row, want in zip(got, (literal(model, t) for t in tokens), strict=True):
        assert torch.allclose(row.double(), want, atol=1e-5)  # float32 sums of up to 192 terms of size one


def test_no_position_sees_a_later_byte():
    model = byte_lm(16, pretrained=False)
    tokens = torch.randint(256, (1, 12), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 256
    with torch.no_grad():
        a, b = model(tokens), model(changed)
    assert torch.equal(a[:, :7], b[:, :7]) and not torch.equal(a[:, 7:], b[:, 7:])


def test_rotation_depends_on_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, HEAD, generator=torch.Generator().manual_seed(0)).expand(2, 1, 1, 9, HEAD)
    turned = rotate(q, rotary_angles(9, q.device)) @ rotate(k, rotary_angles(9, q.device)).mT
    for distance in range(-8, 9):
        along = turned[0, 0].diagonal(distance)
        assert torch.allclose(along, along[:1].expand_as(along), atol=1e-5)


@pytest.mark.parametrize("width", WIDTHS)
def test_size_seed_and_global_state(width):
    before = torch.get_rng_state()
    model = byte_lm(width, pretrained=False, seed=1)
    assert torch.equal(torch.get_rng_state(), before) and not model.training
    assert sum(p.numel() for p in model.parameters()) == 48 * width**2 + 265 * width
    again, other = byte_lm(width, pretrained=False, seed=1), byte_lm(width, pretrained=False, seed=2)
    assert torch.equal(model.blocks[0].up.weight, again.blocks[0].up.weight)
    assert not torch.equal(model.blocks[0].up.weight, other.blocks[0].up.weight)


@pytest.mark.parametrize("width", WIDTHS)
def test_committed_weights_are_the_stated_ones(width):
    facts = RESULTS["models"][str(width)]
    path = WEIGHTS / f"byte_lm_{width}.safetensors"
    assert path.stat().st_size == facts["file_bytes"]
    assert all(v.dtype == torch.float16 for v in load_file(path).values())
    model = byte_lm(width)
    assert sum(p.numel() for p in model.parameters()) == facts["parameters"]
    # An eighth of the text; the stated loss is of all of it, so this looks for a wrong file, not for a digit.
    part = bits_per_byte(model, reference_bytes(8193))
    assert part == pytest.approx(facts["held_out_bits_per_byte"], abs=0.25)


def test_loss_falls_with_width():
    facts = RESULTS["models"]
    losses = [facts[str(width)]["held_out_bits_per_byte"] for width in WIDTHS]
    assert all(b < a - 0.01 for a, b in pairwise(losses))
    assert sum(facts[str(width)]["file_bytes"] for width in WIDTHS) < 4_000_000


def test_bad_input(as_user):
    for width in (0, -16, 8, 24, 16.0, True):
        with pytest.raises(ValueError, match=r"multiple of 16|whole number of at least 16"):
            byte_lm(width)
    with pytest.raises(ValueError, match="trained widths are"):
        byte_lm(80)
    assert byte_lm(80, pretrained=False).embedding.weight.shape == (256, 80)
