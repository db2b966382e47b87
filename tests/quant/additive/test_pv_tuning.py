import pytest
import torch
from torch import nn

from mlcomp.quant import residual_kmeans
from mlcomp.quant.additive.pv_tuning import pv_tuning
from tests.quant.additive.additive_case import error, network, one_layer


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_beats_ste_and_continuous_tuning_on_the_layer_wise_loss_below_two_bits(seed):
    layer, root, start, _ = one_layer(seed=seed)
    assert start.codes.numel() * 5 / layer.weight.numel() < 2
    options = {"rounds": 8, "steps": 10, "v_steps": 8, "dtype": torch.float32, "share": 0.02}
    reached = {
        method: error(
            layer, pv_tuning(layer, root, {"": start}, method=method, learning_rate=r, **options).block, root
        )
        for method, r in (("pv", 3e-3), ("continuous", 1e-2), ("ste", 3e-3))  # each at the best of these two rates
    }
    assert reached["pv"] < 0.92 * min(reached["continuous"], reached["ste"])


@pytest.mark.parametrize("method", ["pv", "continuous", "ste"])
def test_result_is_what_is_stored_and_never_worse(method):
    block, x, _, layers = network()
    before = {name: t.clone() for name, t in block.state_dict().items()}
    result = pv_tuning(block, x, layers, method=method, rounds=2, steps=5)
    assert all(torch.equal(t, before[name]) for name, t in block.state_dict().items())
    assert len(result.history) == 3 and not result.block.training
    for name, q in result.layers.items():
        assert q.codebooks.dtype == torch.float16
        assert torch.equal(result.block.get_submodule(name).weight, q.dequantize().float())
        assert q.bits_per_weight == layers[name].bits_per_weight
    # float16 codebooks: a relative error of 2⁻¹¹ in each weight.
    assert error(block, result.block, x) <= min(result.history) * 1.01 <= result.history[0] * 1.01
    codes_moved = any(not torch.equal(q.codes, layers[n].codes) for n, q in result.layers.items())
    assert codes_moved or method != "pv"
    assert not codes_moved or method != "continuous"


def test_classifier_with_labels_and_a_loss_of_its_own():
    block, x, _, layers = network(code_bits=3)
    labels = block(x).argmax(1)
    result = pv_tuning(block, x, layers, targets=labels, loss=nn.functional.cross_entropy, rounds=3, steps=10)
    assert min(result.history) < 0.9 * result.history[0]


class GroupedLinear(nn.Linear):
    """A convolution in two groups as a linear layer on the patches of each: x (samples, positions, groups, inp)."""

    def forward(self, x):
        halves = [x[:, :, i] @ rows.T for i, rows in enumerate(self.weight.chunk(2))]
        return torch.cat(halves, -1) + self.bias

    # Each vector of its input is multiplied by rows of its weight: its forward may pass for that of its kind.
    __module__ = nn.Linear.__module__


@pytest.mark.parametrize("method", ["pv", "ste"])
def test_a_grouped_convolution_is_tuned_like_the_linear_layer_on_its_patches(method):
    conv = nn.Conv2d(4, 8, 3, padding=1, groups=2).double()
    x = torch.randn(12, 4, 4, 4).double()
    x[:, 2:] = 3 * x[:, 2:].cumsum(-1)  # so that the groups' curvatures differ
    linear = GroupedLinear(18, 8).double()
    with torch.no_grad():
        linear.weight.copy_(conv.weight.flatten(1))
        linear.bias.copy_(conv.bias)
    patches = torch.stack([nn.functional.unfold(half, 3, padding=1) for half in x.chunk(2, 1)], 1)
    patches = patches.permute(0, 3, 1, 2).contiguous()
    layers = {"": residual_kmeans(linear.weight.detach().float(), dim=2, books=1, code_bits=4)}
    options = {"method": method, "rounds": 2, "steps": 5, "v_steps": 2, "share": 0.05, "dtype": torch.float32}
    by_conv, by_linear = (pv_tuning(m, data, layers, **options) for m, data in ((conv, x), (linear, patches)))
    # The loss is computed in float64, the parameters in float32: sums in another order seldom change one digit.
    assert by_conv.history == pytest.approx(by_linear.history, rel=1e-5)
    assert torch.equal(by_conv.layers[""].codes, by_linear.layers[""].codes)
    torch.testing.assert_close(by_conv.block.weight.flatten(1), by_linear.block.weight, rtol=1e-4, atol=1e-6)
    assert by_conv.block.weight.shape == conv.weight.shape


def test_same_seed_same_result_and_global_generator_untouched():
    block, x, _, layers = network()
    x, state = x[:60], torch.random.get_rng_state()
    options = {"rounds": 1, "steps": 3, "v_steps": 1, "batch_size": 20}
    one, two, three = (pv_tuning(block, x, layers, **options, seed=s) for s in (4, 4, 5))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.layers["0"].codebooks, two.layers["0"].codebooks)
    assert not torch.equal(one.layers["0"].codebooks, three.layers["0"].codebooks)
    with torch.no_grad():
        inside = pv_tuning(block, x, layers, **options, seed=4)
    assert torch.equal(inside.layers["0"].codebooks, one.layers["0"].codebooks)


def test_no_rounds_and_rest_left_alone():
    block, x, _, layers = network()
    same = pv_tuning(block, x, layers, rounds=0)
    assert all(torch.equal(same.layers[n].codes, layers[n].codes) for n in layers)
    result = pv_tuning(block, x, layers, rounds=1, steps=3, train_rest=False)
    assert torch.equal(result.block[1].weight, block[1].weight) and torch.equal(result.block[0].bias, block[0].bias)
    tuned = pv_tuning(block, x, layers, rounds=1, steps=3)
    assert not torch.equal(tuned.block[1].weight, block[1].weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "qat"}, "method must be one of pv"),
        ({"rounds": -1}, "rounds must be"),
        ({"steps": 0}, "steps must be"),
        ({"v_steps": 0}, "v_steps must be"),
        ({"v_batch_size": 0}, "v_batch_size must be"),
        ({"share": 0.0}, "share must lie"),
        ({"metric": "x"}, "metric must be"),
        ({"learning_rate": 0.0}, "learning_rate must be"),
        ({"tolerance": 1.0}, "tolerance must lie"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"inputs": torch.zeros(0, 16)}, "inputs must be"),
        ({"inputs": torch.full((4, 16), torch.nan)}, "inputs holds"),
        ({"targets": torch.zeros(3, 8)}, "targets must have one entry"),
        ({"layers": {}}, "layers names no layer"),
        ({"layers": "wrong name"}, "layer '2' is ReLU; only nn.Linear"),
        ({"layers": "wrong shape"}, "codes of a matrix"),
    ],
)
def test_bad_input_is_a_clear_error(as_user, options, message):
    block, x, _, layers = network()
    if options.get("layers") == "wrong name":
        options = {"layers": {"2": layers["0"]}}
    if options.get("layers") == "wrong shape":
        options = {"layers": {"0": layers["3"]}}
    arguments = {"inputs": x, "layers": layers, **options}
    with pytest.raises(ValueError, match=message):
        pv_tuning(block, arguments.pop("inputs"), arguments.pop("layers"), **arguments)
