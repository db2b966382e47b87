import pytest
import torch
from torch import nn

from mlcomp.checks import removals
from mlcomp.data.synthetic import make_layer
from mlcomp.layerwise import layer_hessian
from mlcomp.obs.network_hessian import flatten_network
from mlcomp.obs.obd import network_obd, obd, obd_saliency

CROSS_ENTROPY = nn.functional.cross_entropy


@pytest.fixture(scope="module")
def layer():
    weight, x, _ = make_layer(8, 16, 100, seed=0)
    return weight, x, layer_hessian(x)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    return model, torch.randn(40, 6), torch.randint(3, (40,))


def test_saliency_is_the_squared_output_error_of_removing_one_weight(layer):
    weight, x, hessian = layer
    saliency = obd_saliency(weight, hessian)
    for i, j in ((0, 0), (3, 7), (7, 15)):
        without = weight.clone()
        without[i, j] = 0
        error = ((weight - without).double() @ x.double()).square().sum()
        assert float(saliency[i, j]) == pytest.approx(float(error), rel=1e-5)  # H was summed in float32


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 1.0])
def test_removes_exactly_the_least_salient_and_moves_nothing(layer, sparsity):
    weight, _, hessian = layer
    saliency, result = obd_saliency(weight, hessian), obd(weight, hessian, sparsity=sparsity)
    gone = result == 0
    assert int(gone.sum()) == removals(sparsity, weight.numel())
    assert torch.equal(result[~gone], weight[~gone])
    if 0 < sparsity < 1:
        assert saliency[gone].max() <= saliency[~gone].min()


def test_patterns_ties_dead_inputs_and_dtypes(layer):
    weight, _, hessian = layer
    assert ((obd(weight, hessian, pattern=(2, 4)) == 0).view(8, 4, 4).sum(-1) == 2).all()
    assert int((obd(torch.ones(8, 16), torch.eye(16), sparsity=0.5) == 0).sum()) == 64
    dead = hessian.clone()
    dead[5], dead[:, 5] = 0, 0
    assert (obd(weight, dead, sparsity=1 / 16)[:, 5] == 0).all()
    assert obd(weight.bfloat16(), hessian, sparsity=0.5).dtype == torch.bfloat16
    ragged = obd(weight[:, :14], hessian[:14, :14], pattern=(2, 4))
    assert (ragged[:, 12:] == 0).sum() == 8


def test_network_saliency_of_a_small_weight_is_the_true_loss_change_at_a_minimum():
    # At a minimum and for small moves the expansion is exact to second order: shrink the weights of a squared loss.
    torch.manual_seed(0)
    x = torch.randn(50, 6, dtype=torch.float64)
    model = nn.Linear(6, 2).double()
    targets = model(x).detach()  # zero residual, so this is a minimum

    def loss(z, t):
        return (z - t).square().mean()

    result = network_obd(model, x, targets, loss, sparsity=0.25, curvature="exact")
    flat = flatten_network(model, x, targets, loss)
    saliency = torch.cat([s.flatten() for s in result.saliency.values()])
    for i in range(12):
        theta = flat.theta.clone()
        theta[i] = 0
        assert float(flat.loss(theta)) == pytest.approx(float(saliency[i]), rel=1e-9)
    assert sum(int((~k).sum()) for k in result.keep.values()) == 3
    assert result.predicted == pytest.approx(float(saliency[:12].sort().values[:3].sum()))


@pytest.mark.parametrize("curvature", ["exact", "gauss-newton"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 1.0])
def test_network_counts_names_and_the_callers_model(network, curvature, sparsity):
    model, x, y = network
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = network_obd(model, x, y, CROSS_ENTROPY, sparsity=sparsity, curvature=curvature)
    zeros = sum(int((p == 0).sum()) for k, p in result.model.named_parameters() if k.endswith("weight"))
    assert zeros == removals(sparsity, 45)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for name, p in result.model.named_parameters():
        assert torch.equal(p.detach(), before[name] * result.keep[name])


def test_network_curvatures_are_half_the_diagonal_times_the_square(network):
    model, x, y = network
    flat = flatten_network(model, x, y, CROSS_ENTROPY)
    for curvature in ("exact", "gauss-newton"):
        result = network_obd(model, x, y, CROSS_ENTROPY, sparsity=0.5, curvature=curvature)
        saliency = torch.cat([s.flatten() for s in result.saliency.values()])
        h = torch.autograd.functional.hessian(flat.loss, flat.theta).diagonal()
        same = torch.allclose(saliency, flat.theta.square() * h / 2)
        assert same == (curvature == "exact")


def test_bad_input_is_a_clear_error(as_user, layer, network):
    weight, _, hessian = layer
    for bad, message in (
        ({"sparsity": 2.0}, "sparsity"),
        ({}, "exactly one"),
        ({"pattern": (5, 4)}, "pattern"),
    ):
        with pytest.raises(ValueError, match=message):
            obd(weight, hessian, **bad)
    with pytest.raises(ValueError, match="NaN"):
        obd(weight * torch.nan, hessian, sparsity=0.5)
    with pytest.raises(ValueError, match="16 inputs"):
        obd(weight, hessian[:8, :8], sparsity=0.5)
    model, x, y = network
    with pytest.raises(ValueError, match="curvature"):
        network_obd(model, x, y, CROSS_ENTROPY, sparsity=0.5, curvature="diagonal")
    with pytest.raises(ValueError, match="sparsity"):
        network_obd(model, x, y, CROSS_ENTROPY, sparsity=-0.5)
