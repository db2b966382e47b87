import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mlcomp.models import vit
from mlcomp.prune import DynamicViT

TWO = {1: 0.5, 3: 0.2}


def images(n=4):
    return torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@torch.no_grad()
def dynamic(ratios=TWO, *, spread=True):
    """An untrained network whose predictors tell tokens apart: about half of them are more likely kept than not."""
    model = DynamicViT(vit(pretrained=False).double(), ratios)
    x = model.backbone.embed(images())
    for number, block in enumerate(model.backbone.blocks):
        if number in ratios and spread:
            predictor = model.predictors[str(number)]
            for p in predictor.parameters():
                p *= 4 if p.ndim == 2 else 1
            logits = predictor(x[:, 1:], torch.ones(4, 49).double())
            predictor.logits.bias[0] -= (logits[..., 0] - logits[..., 1]).median()
        x = block(x)
    return model


def as_numbers(kept):
    return tuple(k.double() for k in kept)


@torch.no_grad()
def run_alone(model, image, kept):
    """The network on one image, token by token list: what the blocks see is cut by hand."""
    x, left = model.backbone.embed(image[None]), list(range(49))
    stages = dict(zip(model.ratios, kept, strict=True))
    for number, block in enumerate(model.backbone.blocks):
        if number in stages:
            rows = [0] + [1 + left.index(i) for i in left if stages[number][i]]
            left = [i for i in left if stages[number][i]]
            x = x[:, rows]
        x = block(x)
    return model.backbone.classify(x)[0]


@pytest.mark.parametrize("options", [{}, {"threshold": 0.5}, {"threshold": 0.6}])
def test_removed_masked_and_cut_by_hand_are_the_same(options):
    """Float64: sums of at most 50 terms in another order."""
    model, x = dynamic(), images()
    with torch.no_grad():
        got = model.select(x, **options)
        masked = model.decide(x, decisions=as_numbers(got.kept))
    torch.testing.assert_close(got.logits, masked.logits, rtol=0, atol=1e-13)
    for i, image in enumerate(x):
        alone = run_alone(model, image, [k[i] for k in got.kept])
        torch.testing.assert_close(got.logits[i], alone, rtol=0, atol=1e-13)
    assert (got.kept[0] | ~got.kept[1]).all()  # nothing comes back
    counts = [k.sum(1).tolist() for k in got.kept]
    assert counts == [[24] * 4, [9] * 4] if not options else len({*counts[0]}) > 1


def test_every_image_of_a_batch_is_as_if_alone():
    model, x = dynamic(), images()
    with torch.no_grad():
        together = model.select(x, threshold=0.6).logits
        alone = torch.cat([model.select(image[None], threshold=0.6).logits for image in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-13)


def test_the_predictors_scores_decide_what_is_kept():
    model, x = dynamic({0: 0.3}), images()
    with torch.no_grad():
        tokens = model.backbone.embed(x)[:, 1:]
        logits = model.predictors["0"](tokens, torch.ones(4, 49).double())
        kept = model.select(x).kept[0]
        above = model.select(x, threshold=0.6).kept[0]
    scores = logits[..., 0] - logits[..., 1]
    for i in range(4):
        assert set(kept[i].nonzero()[:, 0].tolist()) == set(sorted(range(49), key=lambda j: -scores[i, j])[:14])
        assert torch.equal(above[i], logits[i].softmax(-1)[:, 0] > 0.6)


def test_given_scores_take_the_place_of_the_predictors():
    model, x = dynamic(), images()
    scores = torch.arange(49.0).expand(4, -1)
    kept = model.select(x, scores=scores).kept
    assert kept[0].nonzero()[:, 1].reshape(4, -1).tolist() == [list(range(25, 49))] * 4
    assert kept[1].nonzero()[:, 1].reshape(4, -1).tolist() == [list(range(40, 49))] * 4
    ties = model.select(x, scores=torch.zeros(4, 49)).kept[1]
    assert ties[0].nonzero()[:, 0].tolist() == list(range(9))  # by place


def test_at_nothing_above_the_threshold_the_best_token_stays():
    model, x = dynamic(), images()
    kept = model.select(x, threshold=1.0).kept
    with torch.no_grad():
        logits = model.predictors["1"](
            model.backbone.blocks[0](model.backbone.embed(x))[:, 1:], torch.ones(4, 49).double()
        )
    best = (logits[..., 0] - logits[..., 1]).argmax(1)
    assert kept[0].sum(1).tolist() == [1] * 4 and kept[0].nonzero()[:, 1].tolist() == best.tolist()
    for predictor in model.predictors.values():  # never kept by the draw either
        predictor.logits.bias.data = torch.tensor([-1e3, 1e3]).double()
    decided = model.decide(x, generator=torch.Generator().manual_seed(0))
    assert decided.decisions[0].sum(1).tolist() == [1.0] * 4


def test_decisions_are_drawn_nested_and_carry_a_gradient():
    model, x = dynamic(spread=False), images()
    got = model.decide(x, generator=torch.Generator().manual_seed(1))
    again = model.decide(x, generator=torch.Generator().manual_seed(1))
    first, second = got.decisions
    assert torch.equal(got.logits, again.logits) and set(first.unique().tolist()) == {0.0, 1.0}
    assert (second <= first).all() and 0.3 < first.mean() < 0.7 and second.mean() < first.mean()
    got.logits.sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
    assert all(p.grad.abs().max() > 0 for p in model.predictors.parameters())


def test_everything_kept_is_the_backbone():
    backbone, x = vit(pretrained=False).double(), images()
    model = DynamicViT(backbone, {0: 1.0, 2: 1.0})
    with torch.no_grad():
        torch.testing.assert_close(model(x), backbone(x), rtol=0, atol=1e-14)
        decided = model.decide(x, decisions=(torch.ones(4, 49).double(),) * 2)
    torch.testing.assert_close(decided.logits, backbone(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("ratios", [TWO, {0: 0.1}, {1: 0.7, 2: 0.49, 3: 0.343}])
def test_multiply_adds_are_what_torch_counts(ratios):
    model = DynamicViT(vit(pretrained=False), ratios)
    # Only the plain kernel's products are seen; half of what is counted, for a multiply-add is two FLOPs there.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images(1).float())
    assert model.multiply_adds() == counter.get_total_flops() // 2
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.select(images(1).float(), scores=torch.rand(1, 49))
    assert model.multiply_adds(predictors=False) == counter.get_total_flops() // 2
    fewer = tuple(max(1, c - 1) for c in model.counts)
    assert model.multiply_adds(fewer) < model.multiply_adds()


def test_the_backbone_is_a_copy_and_the_seed_decides_the_predictors():
    backbone = vit(pretrained=False)
    before = torch.get_rng_state()
    a, b, c = (DynamicViT(backbone, TWO, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [m.predictors["1"].logits.weight for m in (a, b, c)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    a.backbone.head.weight.data.zero_()
    assert backbone.head.weight.any()
    assert a.counts == (24, 9) and DynamicViT(backbone, {0: 0.001}).counts == (1,)
    assert DynamicViT(backbone, {0: 0.7 * 0.7}).counts == (24,)


def test_bad_input(as_user):
    backbone, x = vit(pretrained=False), images().float()
    for ratios, words in (
        ({}, "names no block"),
        ({4: 0.5}, "a block of ratios must be a whole number"),
        ({1: 0.0}, r"ratios\[1\] must lie in"),
        ({1: 0.5, 2: 0.6}, "cannot rise"),
    ):
        with pytest.raises(ValueError, match=words):
            DynamicViT(backbone, ratios)
    model = DynamicViT(backbone, TWO)
    with pytest.raises(ValueError, match=r"scores must be \(4, 49\)"):
        model.select(x, scores=torch.zeros(4, 48))
    with pytest.raises(ValueError, match="scores holds 1 NaN"):
        model.select(x, scores=torch.tensor([float("nan")] + [0.0] * (4 * 49 - 1)).view(4, 49))
    with pytest.raises(ValueError, match="threshold must lie in"):
        model.select(x, threshold=1.5)
    with pytest.raises(ValueError, match=r"decisions\[0\] must be \(4, 49\)"):
        model.decide(x, decisions=(torch.ones(4, 48), torch.ones(4, 49)))
