import pytest
import torch
from torch import nn

from mlcomp.layerwise import collect_hessians, trace_layers
from mlcomp.layerwise.hessian_sum import HessianSum
from mlcomp.layerwise.inputs import first_calls
from mlcomp.modes import evaluating
from mlcomp.obs import layer_hessian


def test_hessian_is_the_same_in_one_batch_or_many():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    x = torch.randn(40, 5, dtype=torch.float64)
    found = collect_hessians(model, x.split(7), dtype=torch.float64)
    torch.testing.assert_close(found["0"], layer_hessian(x.T))
    torch.testing.assert_close(found["2"], layer_hessian(model[:2](x).detach().T))


def test_grouped_convolution_has_one_hessian_a_group():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, padding=1))
    x = torch.randn(6, 4, 5, 5)
    found = collect_hessians(model, [x])["0"]
    assert found.shape == (4, 9, 9)
    single = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1))
    for group in range(4):
        alone = collect_hessians(single, [x[:, group : group + 1]])["0"]
        torch.testing.assert_close(found[group], alone, rtol=1e-5, atol=1e-4)


def test_samples_are_the_columns_of_one_group():
    # Stride 2 on 5×5 without padding: the kernel visits 2·2 places of each image.
    for groups in (1, 2, 4):
        layer = nn.Conv2d(4, 8, 3, groups=groups, stride=2)
        total = HessianSum("layer", layer, torch.float32)
        for images in (6, 1, 3):
            total.add(layer, torch.randn(images, 4, 5, 5))
        assert total.samples == 10 * 4 and total.hessian.shape == (groups, 36 // groups, 36 // groups)
    linear = nn.Linear(3, 2)
    total = HessianSum("layer", linear, torch.float32)
    total.add(linear, torch.randn(2, 5, 3))
    total.add(linear, torch.randn(2, 2, 3), torch.tensor([[1, 0], [1, 1]]))
    assert total.samples == 10 + 3


class Attention(nn.Module):
    """Query and key read one tensor, the output another; a keyword call, a mask."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, ids, attention_mask=None):
        score = self.query(ids) * self.key(input=ids)
        return self.out(score)


def test_padded_positions_are_left_out():
    model = Attention()
    ids, mask = torch.randn(3, 5, 4), torch.tensor([[1] * 5, [1, 1, 0, 0, 0], [0, 0, 0, 0, 1]])
    batch = {"ids": ids, "attention_mask": mask}
    by_key = collect_hessians(model, [batch], valid="attention_mask")
    by_function = collect_hessians(model, [batch], valid=lambda b: b["attention_mask"] == 1)
    torch.testing.assert_close(by_key["key"], layer_hessian(ids[mask.bool()].T))
    torch.testing.assert_close(by_function["key"], by_key["key"], rtol=0, atol=0)
    everything = collect_hessians(model, [batch])
    torch.testing.assert_close(everything["key"], layer_hessian(ids.reshape(-1, 4).T))


def test_trace_joins_the_layers_that_read_one_tensor():
    model = nn.Sequential(nn.Linear(4, 4), Attention())
    trace = trace_layers(model, [torch.randn(2, 4)], ["1.out", "1.key", "1.query", "0"])
    assert trace.stages == (("0",), ("1.query", "1.key"), ("1.out",))
    assert set(trace.calls.values()) == {1}


class Writes(nn.Module):
    """The second layer reads the same tensor object after it was changed in place."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        x = x.clone()
        y = self.a(x)
        x.add_(y)
        return self.b(x)


def test_a_tensor_changed_in_place_is_another_one():
    with torch.no_grad():
        assert trace_layers(Writes(), [torch.randn(2, 3)], ["a", "b"]).stages == (("a",), ("b",))


def test_shared_module_sees_the_inputs_of_all_calls():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    x = torch.randn(9, 3)
    both = torch.cat([x, model[:2](x).detach()]).T
    torch.testing.assert_close(collect_hessians(model, [x])["0"], layer_hessian(both))
    assert trace_layers(model, [x], ["0"]).calls == {"0": 2}


class CalledAgain(nn.Module):
    """Both layers read x, but ``a`` also reads what ``b`` made of it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.a(self.b(x) + self.a(x))


def test_a_layer_that_is_called_again_shares_its_stage_with_no_other():
    with torch.no_grad():
        trace = trace_layers(CalledAgain(), [torch.randn(2, 3)], ["a", "b"])
    assert trace.stages == (("b",), ("a",)) and trace.calls == {"a": 2, "b": 1}


def test_model_keeps_its_modes_statistics_and_hooks():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(18, 2))
    model.train()
    model[1].eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    collect_hessians(model, [torch.randn(4, 1, 5, 5)])
    assert model.training and not model[1].training and model[2].training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_modes_and_hooks_come_back_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2)).train()
    with pytest.raises(RuntimeError):
        collect_hessians(model, [torch.randn(3, 5)])
    assert model.training and not model[0]._forward_pre_hooks
    with pytest.raises(KeyboardInterrupt), evaluating(model):
        raise KeyboardInterrupt
    assert model.training


def test_bad_input():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="layer '1': its input holds 3 NaN"):
        collect_hessians(model, [torch.ones(3, 2)])
    with pytest.raises(ValueError, match="batches is empty"):
        collect_hessians(model, [])
    with pytest.raises(TypeError, match="got one Tensor"):
        collect_hessians(model, torch.ones(3, 2))
    with pytest.raises(TypeError, match="a batch is a tensor"):
        collect_hessians(model, [3])


def test_first_calls_stop_at_the_module_and_skip_batches_that_miss_it():
    class Router(nn.Module):
        def __init__(self):
            super().__init__()
            self.expert, self.after = nn.Linear(2, 2), nn.Linear(2, 2)
            self.reached = 0

        def forward(self, x):
            if x.sum() > 0:
                x = self.expert(input=self.expert(x))
            self.reached += 1
            return x

    model = Router()
    batches = [torch.ones(1, 2), -torch.ones(1, 2), 3 * torch.ones(1, 2)]
    calls = list(first_calls(model, "expert", batches))
    assert [float(args[0].sum()) for args, kwargs in calls] == [2, 6] and model.reached == 1
    assert all(kwargs == {} for _, kwargs in calls)
    assert not model.expert._forward_pre_hooks
