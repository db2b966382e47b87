import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.quant import (
    DiffQLayer,
    MixedBits,
    SizeTarget,
    diffq_codes,
    diffq_size,
    meet_size,
    prepare_diffq,
    pseudo_noise,
)
from mlcomp.train import train
from tests.quant.aware_training.test_qat import trained


def test_noise_has_the_range_and_variance_of_rounding():
    weight = torch.linspace(-1, 2, 40_000).reshape(200, 200)
    bits = torch.tensor([3.0, 5.0])
    noisy = pseudo_noise(weight, bits, group_size=20_000, generator=torch.Generator().manual_seed(0))
    for b, part in zip(bits, (noisy - weight).reshape(2, -1), strict=True):
        delta = 3 / (2 ** float(b) - 1)
        assert part.abs().max() <= delta / 2 * 1.0001 and part.abs().max() > 0.49 * delta
        # 20 000 samples: mean within 4 standard errors, the variance Δ²/12 within 4 %.
        assert abs(float(part.mean())) < 4 * delta / math.sqrt(12 * 20_000)
        assert float(part.var()) == pytest.approx(delta**2 / 12, rel=0.04)


def test_gradients_by_finite_differences_at_fixed_noise():
    torch.manual_seed(0)
    weight, target = torch.randn(12, dtype=torch.float64), torch.randn(12, dtype=torch.float64)

    def loss(w, b):
        g = torch.Generator().manual_seed(7)
        return (pseudo_noise(w, b, group_size=5, generator=g) - target).square().sum()

    bits = torch.tensor([2.5, 4.0, 3.2], dtype=torch.float64, requires_grad=True)
    w = weight.clone().requires_grad_()
    loss(w, bits).backward()
    for i in range(3):
        h = torch.zeros(3, dtype=torch.float64)
        h[i] = 1e-6
        slope = (loss(weight, bits.detach() + h) - loss(weight, bits.detach() - h)) / 2e-6
        assert float(bits.grad[i]) == pytest.approx(float(slope), rel=1e-5)
    inner = [i for i in range(12) if i not in (int(weight.argmin()), int(weight.argmax()))]  # these two set the range
    for i in inner[:4]:
        h = torch.zeros(12, dtype=torch.float64)
        h[i] = 1e-6
        slope = (loss(weight + h, bits.detach()) - loss(weight - h, bits.detach())) / 2e-6
        assert float(w.grad[i]) == pytest.approx(float(slope), rel=1e-5)


@pytest.mark.parametrize("group_size", [None, 8, 7])
def test_size_is_that_of_the_packed_codes(group_size):
    layer = nn.Conv2d(4, 6, 3)
    module = DiffQLayer(layer, group_size=group_size, min_bits=2, max_bits=15, init_bits=5.0, speed=3.0)
    assert torch.allclose(module.bits, torch.full_like(module.bits, 5.0))
    # Equal whole numbers of bits: the two sizes are the same up to padding, of the widths and of the codes.
    assert abs(float(module.size_bits.detach()) / 8 - module.quantized().nbytes) < 2
    with torch.no_grad():
        module.logit += torch.linspace(-2, 0.5, len(module.logit)) if len(module.logit) > 1 else 0.1
    packed = module.quantized()
    whole = module.bits.detach().round()
    count = 216
    widths = whole.repeat_interleave(group_size or count)[:count]
    assert packed.nbytes >= float(widths.sum() / 8 + len(whole) / 2 + 8)
    # The differentiable size differs by the rounding of the bits and by padding to whole bytes.
    assert abs(float(module.size_bits.detach()) / 8 - packed.nbytes) <= count * 0.5 / 8 + 25
    module.size_bits.backward()
    assert (module.logit.grad > 0).all()


def test_evaluation_uses_the_codes_and_training_the_noise():
    torch.manual_seed(0)
    model = prepare_diffq(nn.Linear(16, 4), init_bits=4.0)
    x = torch.randn(5, 16)
    assert not torch.equal(model.train()(x), model(x))
    codes = diffq_codes(model.eval())[""]
    assert torch.equal(model(x), nn.functional.linear(x, codes.dequantize(), model.layer.bias))
    again = MixedBits.unpack(codes.pack(), low=codes.low, high=codes.high, group_size=8, shape=(4, 16))
    assert torch.equal(again.dequantize(), codes.dequantize())


class Sum(nn.Module):
    """Two layers side by side, of which one counts for a hundredth."""

    def __init__(self):
        super().__init__()
        self.important, self.idle = nn.Linear(32, 8, bias=False), nn.Linear(32, 8, bias=False)

    def forward(self, x):
        return self.important(x) + 0.01 * self.idle(x)


def regression(seed: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        teacher, x = Sum(), torch.randn(256, 32)
    return teacher, x, teacher(x).detach()


@pytest.mark.parametrize("seed", [0, 1])
def test_bits_go_where_they_matter(seed):
    teacher, x, y = regression(seed)
    student = prepare_diffq(teacher, group_size=None, init_bits=6.0, min_bits=2, max_bits=10, speed=30.0)

    def loss(out, y):
        return (out - y).square().mean() + 5e-6 * diffq_size(student)

    train(student, x, y, epochs=30, lr=3e-3, loss=loss, progress=False)
    bits = {name: int(c.bits[0]) for name, c in diffq_codes(student).items()}
    assert bits["important"] >= bits["idle"] + 3


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.slow
def test_a_size_target_is_met_with_different_bits_for_each_layer(seed):
    teacher, x, y = regression(seed)
    student = prepare_diffq(teacher, group_size=None, init_bits=8.0, speed=20.0)
    target = 512 * 5 / 8 + 17  # five bits a weight on average, and what is stored beside the codes
    loss = SizeTarget(student, target, loss=nn.functional.mse_loss, start=1e-4)
    train(student, x, y, epochs=60, lr=3e-3, loss=loss, progress=False)
    packed = diffq_codes(student)
    assert sum(c.nbytes for c in packed.values()) == pytest.approx(target, rel=0.12)  # whole numbers of bits: ± 0.5
    assert int(packed["important"].bits) >= int(packed["idle"].bits) + 3 and loss.multiplier != 1e-4
    # The same size without the choice is worse.
    with torch.no_grad():
        learned = (student.eval()(x) - y).square().mean()
        for layer in (student.important, student.idle):
            layer.logit.copy_(prepare_diffq(teacher, group_size=None, init_bits=5.0, speed=20.0).idle.logit)
        assert learned < 0.5 * (student(x) - y).square().mean()


@pytest.mark.parametrize("group_size", [None, 8, 24])
@pytest.mark.parametrize("share", [0.2, 0.9, 0.99])
@pytest.mark.slow
def test_meet_size_gives_up_the_nearest_bits_and_no_more(group_size, share):
    model = nn.Sequential(nn.Linear(20, 24), nn.Linear(24, 5))
    student = prepare_diffq(model, group_size=group_size, speed=3.0).eval()
    with torch.no_grad():
        for layer in student:
            layer.logit.copy_(torch.randn(layer.logit.shape, generator=torch.Generator().manual_seed(1)))
    bits = torch.cat([m.bits.detach() for m in student])

    def size(network):
        return sum(len(c.pack()) + 8 for c in diffq_codes(network).values())

    least = prepare_diffq(model, group_size=group_size, init_bits=2.0001).eval()
    target = size(least) + share * (size(student) - size(least))
    fitted = meet_size(student, target)
    assert size(fitted) <= target < size(student)
    # Literally: again and again the group that is the least above the half below it, of those above two bits ...
    parts = [len(m.logit) for m in student]
    weights = torch.cat([m.group_weights for m in student])

    def packed(whole):
        return sum(m.packed_nbytes(b.to(torch.uint8)) for m, b in zip(student, whole.split(parts), strict=True))

    steps = [bits.round()]
    while packed(steps[-1]) > target:
        lower = steps[-1].clone()
        lower[torch.where(lower > 2, bits - lower, torch.inf).argmin()] -= 1
        steps.append(lower)
    # ... but for the last one, where a smaller group may do.
    last = (steps[-2] - steps[-1]).argmax()
    changed = (steps[-2] - torch.cat([c.bits for c in diffq_codes(fitted).values()])).float()
    assert changed.sum() == 1 and (changed >= 0).all() and weights[changed.argmax()] <= weights[last]
    sufficient = [
        g
        for g in range(len(bits))
        if steps[-2][g] > 2 and packed(steps[-2] - F.one_hot(torch.tensor(g), len(bits))) <= target
    ]
    assert weights[changed.argmax()] <= min(weights[g] for g in sufficient) + 16
    # The bits are fixed from then on, while the weights train.
    assert not any(m.logit.requires_grad for m in fitted) and all(m.layer.weight.requires_grad for m in fitted)
    assert all(m.logit.requires_grad for m in student)
    # What fits stays, to the last bit of the logits.
    assert all(torch.equal(a.logit, b.logit) for a, b in zip(student, meet_size(student, 1e9), strict=True))


def test_the_model_stays_and_the_rest_is_not_touched():
    model, x, _ = trained()
    before = {k: t.clone() for k, t in model.state_dict().items()}
    student = prepare_diffq(model, layers=["3"], group_size=None)
    student.train()(x[:4])
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert isinstance(student[3], DiffQLayer) and isinstance(student[0], nn.Conv2d)
    assert list(diffq_codes(student)) == ["3"]


def test_bad_input():
    model = nn.Linear(4, 4)
    for options, message in (
        ({"min_bits": 0}, "need 1 ≤ min_bits"),
        ({"max_bits": 16}, "need 1 ≤ min_bits"),
        ({"init_bits": 2.0}, "need 1 ≤ min_bits"),
        ({"group_size": 0}, "group_size must"),
        ({"speed": 0.0}, "speed must"),
        ({"layers": ["x"]}, "no layer 'x'"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare_diffq(model, **options)
    with pytest.raises(ValueError, match="no layers"):
        prepare_diffq(nn.ReLU())
    with pytest.raises(ValueError, match="no DiffQLayer"):
        diffq_size(model)
    with pytest.raises(ValueError, match="no DiffQLayer"):
        SizeTarget(model, 100.0)
    with pytest.raises(ValueError, match="must be positive"):
        SizeTarget(prepare_diffq(model), 0.0)
    with pytest.raises(ValueError, match="no DiffQLayer"):
        meet_size(model, 100.0)
    with pytest.raises(ValueError, match="with the fewest bits everywhere the codes take 13 bytes, above 12"):
        meet_size(prepare_diffq(model), 12)
