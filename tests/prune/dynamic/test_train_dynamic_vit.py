import copy

import pytest
import torch
from torch.nn import functional as F

from mlcomp.data import mnist5k
from mlcomp.models import vit
from mlcomp.prune import DynamicViT, train_dynamic_vit

FAST = {"batch_size": 8, "progress": False}


def data(n=16):
    g = torch.Generator().manual_seed(0)
    return torch.rand(n, 1, 28, 28, generator=g), torch.arange(n) % 10


def started(ratios=None, **options):
    x, y = data()
    return train_dynamic_vit(vit(pretrained=False), x, y, ratios=ratios or {1: 0.5}, epochs=1, **FAST | options).model


def test_the_first_loss_is_the_sum_of_its_terms():
    """One batch: the loss that training reports is that of the start, with the draws of its seed."""
    x, y = mnist5k("train", count=8)
    backbone, ratios, seed = vit(), {0: 0.6, 2: 0.3}, 5  # from block 0 on: far from the teacher
    weights = {"ratio_weight": 3.0, "kl_weight": 0.7, "token_weight": 0.4}
    seen = []

    def keep_noise(step, optimizer):
        seen.append(step)

    got = train_dynamic_vit(
        backbone, x, y, ratios=ratios, epochs=1, seed=seed, before_step=keep_noise, **weights, **FAST
    )
    # the order of the epoch, then the seed of what its batches draw, as the training loop has them
    generator = torch.Generator().manual_seed(seed * 1_000_003)
    order = torch.randperm(8, generator=generator)
    start = DynamicViT(backbone, ratios, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        student = start.decide(x[order])
    with torch.no_grad():
        tokens = backbone.embed(x[order])
        for block in backbone.blocks:
            tokens = block(tokens)
        teacher, tokens = backbone.classify(tokens).softmax(-1), backbone.norm(tokens[:, 1:])
    want = -student.logits.log_softmax(-1)[torch.arange(8), y[order]].mean()
    want += 0.7 * (teacher * (teacher.log() - student.logits.log_softmax(-1))).sum(1).mean()
    last = student.decisions[-1].bool()
    want += 0.4 * (student.tokens[last] - tokens[last]).square().mean()
    gaps = [(d.mean(1) - r).square().mean() for d, r in zip(student.decisions, (0.6, 0.3), strict=True)]
    want += 3.0 * sum(gaps) / 2
    assert seen == [1]
    assert got.history.loss[0] == pytest.approx(want.item(), rel=1e-5)


def test_the_backbone_moves_at_its_own_rate():
    start = vit(pretrained=False).state_dict()
    moved = {}
    for rate in (0, 0.01, 1):
        model = started(backbone_rate=rate)
        moved[rate] = max(float((v - start[k]).abs().max()) for k, v in model.backbone.state_dict().items())
        assert not model.training and all(p.requires_grad for p in model.parameters())
    # two steps of AdamW, each at most the rate in size: 0.01 and about half of it
    assert moved[0] == 0 and 0 < moved[0.01] < 2.1e-4 and 5e-3 < moved[1] < 2.1e-2


@pytest.mark.slow
def test_the_share_kept_goes_to_its_target():
    """The ratio loss alone has its minimum there: what the draws keep on average is the target, up to noise."""
    x, y = data(8)
    options = {"ratio_weight": 100, "kl_weight": 0, "token_weight": 0, "lr": 2e-2, "backbone_rate": 0}
    model = train_dynamic_vit(vit(pretrained=False), x, y, ratios={1: 0.7}, epochs=16, **options, **FAST).model
    with torch.no_grad():
        kept = model.decide(x, generator=torch.Generator().manual_seed(0)).decisions[0].mean()
    assert abs(float(kept) - 0.7) < 0.1  # from 0.3


def test_same_arguments_same_weights_and_nothing_changed():
    x, y = data()
    backbone = vit(pretrained=False)
    state = copy.deepcopy(backbone.state_dict())
    torch.manual_seed(1)
    a = train_dynamic_vit(backbone, x, y, ratios={1: 0.5}, epochs=1, **FAST).model
    torch.manual_seed(2)
    b = train_dynamic_vit(backbone, x, y, ratios={1: 0.5}, epochs=1, **FAST).model
    assert all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))
    assert all(torch.equal(v, state[k]) for k, v in backbone.state_dict().items())
    assert all(p.requires_grad for p in backbone.parameters())


def test_bad_input(as_user):
    for options, words in (
        ({"ratio_weight": -1.0}, "ratio_weight must lie in"),
        ({"kl_weight": float("nan")}, "kl_weight must lie in"),
        ({"backbone_rate": 1.5}, "backbone_rate must lie in"),
        ({"ratios": {1: 2.0}}, r"ratios\[1\] must lie in"),
        ({"lr": 0.0}, "lr must be positive"),
    ):
        with pytest.raises(ValueError, match=words):
            started(**options)
    with pytest.raises(TypeError, match="loss"):
        started(loss=F.cross_entropy)
