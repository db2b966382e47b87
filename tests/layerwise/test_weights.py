import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from mlcomp.models import convnet
from mlcomp.prune import global_magnitude, keep_zeros, layer_weights, network_sparsity, with_weights
from mlcomp.train import train


def small(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))


def problem():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(60, 6, generator=g)
    return x, (x @ torch.randn(6, 3, generator=g)).argmax(1)


def test_layers_in_order_and_copies_with_new_weights():
    model = convnet()
    weights = layer_weights(model)
    assert next(iter(weights)) == "stem.conv" and list(weights)[-1] == "head" and len(weights) == 12
    before = copy.deepcopy(model.state_dict())
    pruned = with_weights(model, global_magnitude(weights, sparsity=0.75))
    total = sum(w.numel() for w in weights.values())
    assert network_sparsity(pruned) == int(0.75 * total + 0.5) / total
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    changed = [k for k, v in pruned.state_dict().items() if not torch.equal(v, before[k])]
    assert set(changed) <= {f"{name}.weight" for name in weights}
    assert list(layer_weights(model, ["head", "stem.conv"])) == ["stem.conv", "head"]
    assert network_sparsity(with_weights(model, {"head": torch.zeros(10, 128)}), ["head"]) == 1


def test_shared_weights_are_listed_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert list(layer_weights(model)) == ["0"]


@pytest.mark.slow
def test_training_with_zeros_equals_torchs_own_masks():
    """torch.nn.utils.prune multiplies by the mask in the forward pass; both must give the same network."""
    x, y = problem()
    options = {"epochs": 5, "lr": 1e-2, "batch_size": 16, "weight_decay": 0.1, "progress": False}
    pruned = with_weights(small(), global_magnitude(layer_weights(small()), sparsity=0.6))
    reference = copy.deepcopy(pruned)
    for layer in (reference[0], reference[3]):
        torch_prune.custom_from_mask(layer, "weight", layer.weight != 0)
    train(reference, x, y, **options)
    for layer in (reference[0], reference[3]):
        torch_prune.remove(layer, "weight")
    start = pruned[0].weight.detach().clone()
    train(pruned, x, y, after_step=keep_zeros(pruned), **options)
    assert not torch.equal(pruned[0].weight, start)
    for index in (0, 3):
        # Equal up to the order in which float32 sums are taken.
        torch.testing.assert_close(pruned[index].weight, reference[index].weight, atol=1e-6, rtol=1e-5)
        assert torch.equal(pruned[index].weight == 0, reference[index].weight == 0)


def test_only_the_named_layers_are_kept_at_zero():
    x, y = problem()
    model = with_weights(small(), {"0": torch.zeros(12, 6), "3": torch.zeros(3, 12)})
    train(model, x, y, epochs=2, lr=1e-2, after_step=keep_zeros(model, ["0"]), progress=False)
    assert not model[0].weight.any() and model[3].weight.any()


def test_bad_input(as_user):
    model = small()
    for call in (layer_weights, network_sparsity, keep_zeros):
        with pytest.raises(ValueError, match="no layer '9'"):
            call(model, ["9"])
        with pytest.raises(ValueError, match="BatchNorm1d"):
            call(model, ["1"])
    with pytest.raises(ValueError, match="no layers"):
        layer_weights(nn.ReLU())
    with pytest.raises(ValueError, match=r"layer '0' has weight \(12, 6\), got \(6, 12\)"):
        with_weights(model, {"0": torch.zeros(6, 12)})
    with pytest.raises(ValueError, match=r"weights\['0'\] holds"):
        with_weights(model, {"0": torch.full((12, 6), float("inf"))})
