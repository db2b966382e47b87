import pytest
import torch

from mlcomp.quant.additive.additive_student import AdditiveStudent, AdditiveWeight
from tests.quant.additive.additive_case import error, network

OPTIONS = {"targets": None, "loss": None, "batch_size": 64, "train_rest": True, "seed": 0}


@pytest.fixture(scope="module")
def case():
    return network()


def student(case, **options):
    block, x, _, layers = case
    return AdditiveStudent(block, x, layers, **(OPTIONS | options))


def test_the_decoded_weight_is_what_the_codes_stand_for(case):
    for quantized in case[3].values():
        # dequantize rounds to the float16 of what is stored: half a unit in the last of eleven digits.
        torch.testing.assert_close(
            AdditiveWeight(quantized)(), quantized.dequantize().float(), rtol=2.0**-11, atol=2.0**-25
        )


def test_the_loss_is_that_of_the_block_with_decoded_weights(case):
    block, x, _, layers = case
    pupil = student(case, batch_size=len(x))
    done = pupil.result(torch.float32, [])
    # One batch, so the mean of the batches' ratios is the ratio itself; float32 sums of 200 samples.
    assert pupil.mean_loss() == pytest.approx(error(block, done.block, x), rel=1e-4)
    assert set(done.layers) == set(layers) and done.history == ()


def test_gradients_are_the_slopes_of_the_loss(case):
    """Against finite differences along a random direction, over batches of unequal size."""
    pupil = student(case)
    matrices = [m.detach().double() for m in pupil.decoded()]
    pupil.block.double()
    pupil.rest = {name: p.detach().double() for name, p in pupil.rest.items()}
    pupil.inputs, pupil.targets = pupil.inputs.double(), pupil.targets.double()
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(m.shape, generator=generator, dtype=m.dtype) for m in matrices]
    slope = sum(float((g * d).sum()) for g, d in zip(pupil.gradients(matrices), direction, strict=True))

    def loss(step):
        moved = [m + step * d for m, d in zip(matrices, direction, strict=True)]
        parts = [float(pupil.batch_loss(moved, x, z)) * len(x) for x, z in pupil._data(None)]
        return sum(parts) / len(pupil.inputs)

    step = 1e-6  # of the central difference: its error is of the order of step², ReLU's kinks aside
    assert slope == pytest.approx((loss(step) - loss(-step)) / (2 * step), rel=1e-5)


def test_a_state_can_be_restored_and_the_block_given_is_left_alone(case):
    block = case[0]
    before = {name: p.clone() for name, p in block.state_dict().items()}
    pupil = student(case)
    state, loss = pupil.state(), pupil.mean_loss()
    with torch.no_grad():
        for weight in pupil.weights.values():
            weight.codes.zero_()
            for p in weight.parameters():
                p.add_(1)
        for p in pupil.rest.values():
            p.add_(1)
    assert pupil.mean_loss() != pytest.approx(loss)
    pupil.restore(state)
    assert pupil.mean_loss() == loss
    assert all(torch.equal(p, before[name]) for name, p in block.state_dict().items())


def test_without_the_rest_only_codebooks_and_scales_learn(case):
    assert student(case, train_rest=False).rest == {}
    assert set(student(case).rest) == {"0.bias", "1.weight", "1.bias", "3.bias"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b, x, c: (b, x[:0], c), "at least one sample"),
        (lambda b, x, c: (b, x.masked_fill(x == x[0, 0], torch.nan), c), "inputs"),
        (lambda b, x, c: (b, x, {}), "names no layer"),
        (lambda b, x, c: (b, x, {"1": c["0"]}), "layer '1' is LayerNorm; only nn.Linear"),
        (lambda b, x, c: (b, x, {"3": c["0"]}), "codes of a matrix"),
    ],
)
def test_bad_input(as_user, case, change, message):
    block, x, _, layers = case
    block, x, layers = change(block, x, layers)
    with pytest.raises(ValueError, match=message):
        AdditiveStudent(block, x, layers, **OPTIONS)
