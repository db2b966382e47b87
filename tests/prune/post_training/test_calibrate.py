import copy

import pytest
import torch
from torch import nn

from mlcomp.layerwise import reestimate_batchnorm
from mlcomp.prune import (
    FinetunedLayer,
    calibrate,
    layer_weights,
    magnitude,
    masked_finetune,
    weight_correction,
    with_weights,
)


class Net(nn.Module):
    """A convolution without bias before BatchNorm, a grouped one with bias, one without either, a linear head."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2, stride=2)
        self.bare = nn.Conv2d(8, 6, 1, bias=False)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.grouped(x))
        return self.head(torch.relu(self.bare(x)).mean((2, 3)))


LAYERS = ["first", "grouped", "bare", "head"]


def networks(sparsity=0.5):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = Net().double()
        batches = list((torch.rand(40, 2, 9, 9, dtype=torch.float64) + 0.2).split(16))
    dense = reestimate_batchnorm(dense, batches)
    cut = {n: magnitude(w.flatten(1), sparsity=sparsity).reshape(w.shape) for n, w in layer_weights(dense).items()}
    return dense.eval(), with_weights(dense, cut), batches


def outputs(model, batches, name):
    """What leaves the layer, its BatchNorm included, over all batches: (channels, samples)."""
    found = []
    module = model.get_submodule({"first": "norm"}.get(name, name))
    handle = module.register_forward_hook(lambda m, args, out: found.append(out.detach().transpose(0, 1).flatten(1)))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    handle.remove()
    return torch.cat(found, 1)


def test_bias_step_restores_every_mean():
    """Through BatchNorm's running mean, an old bias and a new one; each layer with the inputs it really gets."""
    dense, pruned, batches = networks()
    made = calibrate(dense, pruned, batches, steps=["bias"])
    for name in LAYERS:
        expected = outputs(dense, batches, name).mean(1)
        assert not torch.allclose(outputs(pruned, batches, name).mean(1), expected, atol=1e-3)
        torch.testing.assert_close(outputs(made, batches, name).mean(1), expected, atol=1e-12, rtol=1e-12)
    assert made.first.bias is None and made.bare.bias is not None
    assert all(torch.equal(w, layer_weights(pruned)[n]) for n, w in layer_weights(made).items())


def test_weight_step_is_weight_correction_of_each_group_and_needs_no_data():
    dense, pruned, batches = networks()
    for exact_mean in (False, True):
        made = calibrate(dense, pruned, batches, steps=["weight"], exact_mean=exact_mean)
        for name in LAYERS:
            w, p = (layer_weights(m)[name].flatten(1) for m in (dense, pruned))
            expected = weight_correction(w, p, exact_mean=exact_mean)
            torch.testing.assert_close(layer_weights(made)[name].flatten(1), expected)
        again = calibrate(dense, pruned, [torch.zeros_like(batches[0])], steps=["weight"], exact_mean=exact_mean)
        assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))


def test_finetuning_is_masked_finetune_on_the_inputs_that_the_layer_gets():
    dense, pruned, batches = networks()
    options = {"finetune_steps": 40, "batch_size": 32, "learning_rate": 0.05}
    made = calibrate(dense, pruned, batches, steps=["finetune"], max_samples=10**6, **options)
    x, x_hat = [], []
    for model, rows in ((dense, x), (made, x_hat)):
        handle = model.head.register_forward_pre_hook(lambda m, args, rows=rows: rows.append(args[0]))
        with torch.no_grad():
            for batch in batches:
                model(batch)
        handle.remove()
    # The order of the columns is part of what the seed decides.
    draw = torch.Generator().manual_seed(0)
    order = [torch.randperm(len(rows), generator=draw) for rows in x]
    x, x_hat = (torch.cat([r[o] for r, o in zip(rows, order, strict=True)]).T for rows in (x, x_hat))
    w = dense.head.weight.detach()
    one = masked_finetune(pruned.head.weight.detach(), x_hat, w @ x, steps=40, batch_size=32, learning_rate=0.05)
    torch.testing.assert_close(made.head.weight.detach(), one.weight)
    torch.testing.assert_close(made.head.bias.detach(), dense.head.bias.detach() + one.bias)


def test_another_fit_gets_the_dense_outputs_as_targets():
    dense, pruned, batches = networks()
    asked = []

    def fit(weight, inputs, targets, *, bias, seed):
        asked.append((weight.shape, inputs.shape, targets.shape, seed))
        return FinetunedLayer(weight * 2, bias + 1, 0.0, 0.0)

    made = calibrate(dense, pruned, batches, steps=["finetune"], fit=fit, seed=3)
    assert [shape for shape, *_ in asked] == [(8, 18), (4, 36), (4, 36), (6, 8), (4, 6)]
    assert all(t == (w[0], x[1]) and s == 3 for w, x, t, s in asked)
    torch.testing.assert_close(made.head.weight, pruned.head.weight * 2)
    torch.testing.assert_close(made.head.bias, pruned.head.bias + 1)
    torch.testing.assert_close(made.norm.running_mean, pruned.norm.running_mean - 1)


def test_each_step_helps_and_the_zeros_stay():
    dense, pruned, batches = networks(0.6)

    def distance(model):
        return float((outputs(model, batches, "head") - outputs(dense, batches, "head")).square().mean())

    errors = [distance(pruned)]
    for steps in (["bias"], ["bias", "finetune"]):
        made = calibrate(dense, pruned, batches, steps=steps)
        errors.append(distance(made))
        for name, weight in layer_weights(made).items():
            assert torch.equal(weight == 0, layer_weights(pruned)[name] == 0)
    assert errors[0] > 5 * errors[1] and errors[1] > errors[2]


def test_only_layers_with_zeros_are_touched_and_arguments_never():
    dense, pruned, batches = networks()
    pruned = with_weights(dense, {"grouped": layer_weights(pruned)["grouped"]}).train()
    before = [copy.deepcopy(m.state_dict()) for m in (dense, pruned)]
    made = calibrate(dense, pruned, batches, finetune_steps=5)
    for model, state in zip((dense, pruned), before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    changed = [k for k, v in made.state_dict().items() if not torch.equal(v, before[1][k])]
    assert changed == ["grouped.weight", "grouped.bias"]
    assert made.training and made.norm.training and not dense.training


def test_dense_inputs_of_one_layer_are_eq_5():
    """With one pruned layer its inputs are the dense ones, and the shift is eq. (5) on the outputs themselves."""
    dense, pruned, batches = networks()
    pruned = with_weights(dense, {"bare": layer_weights(pruned)["bare"]})
    made = calibrate(dense, pruned, batches, steps=["bias"])
    gap = outputs(dense, batches, "bare").mean(1) - outputs(pruned, batches, "bare").mean(1)
    torch.testing.assert_close(made.bare.bias.detach(), gap)


def test_bad_input(as_user):
    dense, pruned, batches = networks()
    with pytest.raises(ValueError, match="steps may hold"):
        calibrate(dense, pruned, batches, steps=["biases"])
    with pytest.raises(ValueError, match="no zeros"):
        calibrate(dense, dense, batches)
    with pytest.raises(ValueError, match="one-shot"):
        calibrate(dense, pruned, iter(batches))
    with pytest.raises(TypeError, match="iterable of batches"):
        calibrate(dense, pruned, batches[0])
    with pytest.raises(ValueError, match="do not match"):
        calibrate(nn.Sequential(nn.Linear(2, 2)), pruned, batches)
    with pytest.raises(ValueError, match="batches is empty"):
        calibrate(dense, pruned, [])
    dense.unused = nn.Linear(2, 2)
    pruned.unused = nn.Linear(2, 2)
    with torch.no_grad():
        pruned.unused.weight.zero_()
    with pytest.raises(ValueError, match=r"\['unused'\] saw no sample"):
        calibrate(dense, pruned, batches)
