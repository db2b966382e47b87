import copy
import functools
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from mlcomp.checks import check_sparsity
from mlcomp.layerwise import compress
from mlcomp.metrics import relative_error
from mlcomp.obs import layer_hessian
from mlcomp.prune import magnitude, wanda
from mlcomp.quant import rtn

half = functools.partial(lambda weight, hessian, **options: magnitude(weight, **options), sparsity=0.5)
four_bits = functools.partial(lambda weight, hessian, **options: rtn(weight, **options), bits=4)
run = functools.partial(compress, progress=False)


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def data(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(60, 6, generator=generator)


def snapshot(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, stride=2),
        nn.Conv2d(8, 4, 1),
        nn.Flatten(),
        nn.Linear(4 * 9, 5),
    )


def test_sequential_takes_inputs_from_the_compressed_part():
    model, x = mlp(), data()
    seen = {}

    def spy(weight, hessian):
        seen[len(seen)] = hessian
        return magnitude(weight, sparsity=0.5)

    result, report = run(model, x.split(16), spy)
    truth = copy.deepcopy(model)  # the definition, layer by layer
    for step, index in enumerate((0, 2, 4)):
        inputs = truth[:index](x).detach().T
        torch.testing.assert_close(seen[step], layer_hessian(inputs), rtol=1e-4, atol=1e-4)
        old = truth[index].weight.detach().clone()
        truth[index].weight.data = magnitude(old, sparsity=0.5)
        # float32 sums against float64
        assert report[str(index)].error == pytest.approx(
            relative_error(old, truth[index].weight.detach(), inputs), rel=1e-4
        )
    assert same(snapshot(result), snapshot(truth))


def test_parallel_takes_inputs_from_the_dense_model_in_any_number_of_passes():
    model, x = mlp(), data()
    seen = []

    def spy(weight, hessian):
        seen.append(hessian)
        return magnitude(weight, sparsity=0.5)

    result, report = run(model, iter(x.split(16)), spy, sequential=False)
    for hessian, index in zip(seen, (0, 2, 4), strict=True):
        torch.testing.assert_close(hessian, layer_hessian(model[:index](x).detach().T), rtol=1e-4, atol=1e-4)
    chunked, again = run(model, x.split(16), spy, sequential=False, layers_per_pass=1)
    assert same(snapshot(result), snapshot(chunked))
    assert [row.error for row in report.rows] == [row.error for row in again.rows]


def test_the_model_is_never_changed():
    model = conv_net().train()
    before, flags = snapshot(model), [p.requires_grad for p in model.parameters()]
    result, _ = run(model, [torch.randn(6, 2, 8, 8)], half)
    assert same(before, snapshot(model)) and model.training and result.training
    assert flags == [p.requires_grad for p in result.parameters()]
    assert torch.equal(result[1].running_mean, model[1].running_mean)
    assert not same(before, snapshot(result))
    assert not any(m._forward_pre_hooks for net in (model, result) for m in net.modules())


def test_a_method_that_writes_into_its_arguments_does_no_harm():
    def rude(weight, hessian):
        result = magnitude(weight, sparsity=0.5)
        hessian.zero_()
        weight.fill_(7)
        return result

    x = data()
    polite, rude_result = run(mlp(), [x], half), run(mlp(), [x], rude)
    assert same(snapshot(polite[0]), snapshot(rude_result[0]))
    assert [row.error for row in polite[1].rows] == [row.error for row in rude_result[1].rows]


def test_convolutions_grouped_and_depthwise():
    model = conv_net()
    x = torch.randn(20, 2, 8, 8)
    result, report = run(model, x.split(5), half, held_out=[torch.randn(20, 2, 8, 8)])
    assert [row.status for row in report.rows] == ["compressed"] * 4
    assert report["3"].shape == (8, 1, 3, 3)
    # each depthwise kernel of 9 is pruned alone: 5 of 9 zeros (4.5 rounds up)
    assert (result[3].weight == 0).flatten(1).sum(1).tolist() == [5] * 8
    # The reported error is that of the layer's output without its bias, on inputs from the compressed part.
    with torch.no_grad():
        inputs = result[:3].eval()(x)
        dense, compressed = (torch.conv2d(inputs, m.weight, stride=2, groups=8) for m in (model[3], result[3]))
    truth = float((dense - compressed).square().sum() / dense.square().sum())
    assert report["3"].error == pytest.approx(truth, rel=1e-4)
    assert all(row.held_out_error > 0 for row in report.rows)
    assert "held out" in str(report) and len(str(report).splitlines()) == 7


def test_sizes():
    model = mlp().requires_grad_(False)
    _, report = run(model, [data()], half)
    assert report["2"].nbytes_before == 64 * 4
    assert report["2"].nbytes_after == 32 * 4 + 8  # half the values and a bitmask
    assert report["2"].bits_per_weight == 17
    assert report["2"].sparsity == 0.5
    _, report = run(model, [data()], four_bits)
    assert report["2"].nbytes_after == rtn(model[2].weight, bits=4).nbytes
    assert report.nbytes_before == (48 + 64 + 24) * 4
    assert report.nbytes_after == sum(row.nbytes_after for row in report.rows)


@pytest.mark.parametrize("choice", [["2"], lambda name, module: module.in_features == module.out_features])
def test_chosen_layers_by_name_or_predicate(choice):
    result, report = run(mlp(), [data()], half, layers=choice)
    assert report["2"].status == "compressed" and report["0"].status == "skipped: not chosen"
    assert [row.name for row in report.skipped] == ["0", "4"]
    assert (result[0].weight == 0).sum() == 0


def test_a_mapping_gives_each_layer_its_method():
    _, report = run(mlp(), [data()], {"4": half, "0": four_bits})
    assert report["0"].bits_per_weight > 4 and report["4"].sparsity == 0.5
    assert report["2"].status.startswith("skipped")
    with pytest.raises(ValueError, match="no entry for layer"):
        run(mlp(), [data()], {"4": half}, layers=["0", "4"])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.body(self.embed(ids)))


def test_tied_weights():
    ids = [torch.randint(0, 7, (3, 5))]
    result, report = run(Tied(), ids, half)
    assert report["head"].status == "skipped: its weight is tied to embed.weight"
    assert result.head.weight is result.embed.weight
    result, report = run(Tied(), ids, half, tied="untie")
    assert report["head"].status == "compressed"
    assert (result.embed.weight == 0).sum() == 0 and (result.head.weight == 0).sum() == 14
    with pytest.raises(ValueError, match="'head': its weight is tied"):
        run(Tied(), ids, half, layers=["head"])


def test_a_module_used_twice_is_one_layer():
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    x = data()
    seen = []
    result, report = run(model, x.split(20), lambda w, h: (seen.append(h), magnitude(w, sparsity=0.5))[1])
    torch.testing.assert_close(seen[0], layer_hessian(torch.cat([x, model[:2](x).detach()]).T), rtol=1e-4, atol=1e-4)
    assert result[0] is result[2] and [row.name for row in report.rows] == ["0"] and report["0"].samples == 120


def test_a_grouped_convolution_reports_the_samples_of_one_group():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, stride=2))
    x = torch.randn(6, 4, 5, 5)
    _, report = run(model, x.split(4), lambda w, h: magnitude(w, sparsity=0.5))
    assert report["0"].samples == 6 * 4


def test_bfloat16_and_float64_models():
    for dtype, inside in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        kinds = set()
        spy = lambda w, h, kinds=kinds: (kinds.add(w.dtype), magnitude(w, sparsity=0.5))[1]  # noqa: E731
        result, report = run(mlp().to(dtype), [data().to(dtype)], spy)
        assert kinds == {inside} and result[0].weight.dtype == dtype and report["0"].sparsity == 0.5


def test_the_error_is_that_of_the_weight_the_model_can_hold():
    model = mlp().bfloat16()
    x = data().bfloat16()
    result, report = run(model, [x], lambda w, h: w * 1.001)  # less than a bfloat16 step
    assert report["0"].error == 0 and torch.equal(result[0].weight, model[0].weight)


def test_dead_and_tiny_calibration():
    _, report = run(mlp(), [torch.zeros(2, 6)], half, layers=["0"])
    assert report["0"].error == 0 and report["0"].samples == 2


def test_fallbacks_are_visible():
    def picky(weight, hessian):
        if weight.shape[1] == 8:
            raise ValueError("8 inputs are too many")
        return magnitude(weight, sparsity=0.5)

    with pytest.raises(ValueError, match="layer '2': 8 inputs are too many"):
        run(mlp(), [data()], picky)
    _, report = run(mlp(), [data()], picky, on_error="skip")
    assert [row.name for row in report.skipped] == ["2", "4"]
    assert report["2"].status == "skipped: 8 inputs are too many" and report["2"].error == 0


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda w, h: w[:1], "layer '0': the method returned shape"),
        (lambda w, h: w / 0, "layer '0': the method's result holds"),
        (lambda w, h: None, "layer '0': the method must return"),
    ],
)
def test_bad_results_of_methods(result, message):
    with pytest.raises((ValueError, TypeError), match=message):
        run(mlp(), [data()], result)


def test_bad_input():
    x = data()
    with pytest.raises(ValueError, match="one-shot"):
        run(mlp(), iter([x]), half)
    with pytest.raises(TypeError, match="got one Tensor"):
        run(mlp(), x, half)
    with pytest.raises(ValueError, match="no layer 'nine'"):
        run(mlp(), [x], half, layers=["nine"])
    with pytest.raises(ValueError, match="'1' is ReLU"):
        run(mlp(), [x], half, layers=["1"])
    with pytest.raises(ValueError, match="batches is empty"):
        run(mlp(), [], half)
    with pytest.raises(ValueError, match=r"layer '0': its input holds 1 NaN"):
        run(mlp(), [x.index_fill(0, torch.tensor([0]), 1).masked_fill(x == x[0, 0], float("nan"))], half)
    with pytest.raises(ValueError, match="tied must be"):
        run(mlp(), [x], half, tied="both")
    with pytest.raises(ValueError, match="on_error must be"):
        run(mlp(), [x], half, on_error="ignore")
    with pytest.raises(ValueError, match="layers_per_pass needs"):
        run(mlp(), [x], half, layers_per_pass=2)


def test_a_layer_that_never_fires_is_an_error():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x):
            return self.used(x)

    for sequential in (True, False):
        with pytest.raises(ValueError, match=r"'unused'. saw no sample"):
            run(Partly(), [data()], half, sequential=sequential)


class Counting(list):
    """Batches that count how often they are read."""

    reads = 0

    def __iter__(self):
        self.reads += 1
        return super().__iter__()


def test_resume_does_not_repeat_finished_layers(tmp_path):
    whole, full_report = run(mlp(), [data()], half)
    method = functools.partial(_interrupt_at, limit_file=str(tmp_path / "limit"))
    with pytest.raises(KeyboardInterrupt):
        run(mlp(), [data()], method, resume=tmp_path / "r")
    assert len(list((tmp_path / "r").glob("*.safetensors"))) == 2
    (tmp_path / "limit").write_text("done")
    result, report = run(mlp(), [data()], method, resume=tmp_path / "r")
    assert (tmp_path / "limit").read_text() == "done."  # one more call, for the third layer
    assert same(snapshot(whole), snapshot(result))
    assert [r.error for r in report.rows] == [r.error for r in full_report.rows]


def _interrupt_at(weight, hessian, *, limit_file):
    """Stops at the narrow last layer as Ctrl-C would, until the file exists; then notes each call in it."""
    if os.path.exists(limit_file):
        with open(limit_file, "a") as file:
            file.write(".")
    elif weight.shape[0] == 3:
        raise KeyboardInterrupt
    return magnitude(weight, sparsity=0.5)


def test_resume_refuses_other_settings(tmp_path):
    run(mlp(), [data()], half, resume=tmp_path)
    run(mlp(), [data()], half, resume=tmp_path)
    for changed, call in {
        "model": lambda: run(mlp(5), [data()], half, resume=tmp_path),
        "batches": lambda: run(mlp(), [data(9)], half, resume=tmp_path),
        "method": lambda: run(mlp(), [data()], functools.partial(half, sparsity=0.6), resume=tmp_path),
        "options": lambda: run(mlp(), [data()], half, resume=tmp_path, sequential=False),
        "held_out": lambda: run(mlp(), [data()], half, resume=tmp_path, held_out=[data()]),
    }.items():
        with pytest.raises(ValueError, match=f"begun with another {changed}:"):
            call()
    with pytest.raises(ValueError, match="begun with another method:"):
        run(mlp(), [data()], half, resume=tmp_path, layers=["0"])


KILLED = """
import sys, time, torch
from torch import nn
from mlcomp.layerwise import compress
from mlcomp.prune import magnitude, wanda

def slow(weight, hessian):
    print("layer", flush=True)
    time.sleep(float(sys.argv[2]))
    scale = hessian.diagonal().sqrt()
    return magnitude(weight * scale / scale.mean(), sparsity=0.5)

torch.manual_seed(0)
model = nn.Sequential(*[nn.Linear(6, 6) for _ in range(6)])
batches = list(torch.randn(40, 6, generator=torch.Generator().manual_seed(1)).split(8))
result, report = compress(model, batches, slow, resume=sys.argv[1], progress=False)
torch.save((result.state_dict(), [(r.name, r.error, r.samples) for r in report.rows]), sys.argv[3])
"""


@pytest.mark.slow
def test_resume_after_a_real_kill(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(KILLED)

    def job(folder, pause, target):
        command = [sys.executable, str(script), str(tmp_path / folder), pause, str(tmp_path / target)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    plain = job("plain", "0", "plain.pt")
    killed = job("killed", "0.3", "never.pt")
    for _ in range(4):  # the fourth layer is being compressed, three are finished
        assert killed.stdout.readline() == "layer\n"
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(30) == -signal.SIGKILL and not (tmp_path / "never.pt").exists()
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.safetensors")}
    assert sorted(done) == ["0.safetensors", "1.safetensors", "2.safetensors"]
    time.sleep(0.05)
    (tmp_path / "killed" / "3.safetensors.partial").write_bytes(b"half a file")
    resumed = job("killed", "0", "resumed.pt")
    assert resumed.communicate(timeout=60)[0].count("layer") == 3 and resumed.returncode == 0
    assert plain.communicate(timeout=60)[0].count("layer") == 6 and plain.returncode == 0
    assert all((tmp_path / "killed" / name).stat().st_mtime_ns == stamp for name, stamp in done.items())
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("plain.pt", "resumed.pt"))
    assert same(one[0], two[0]) and one[1] == two[1]


def test_sequential_passes_are_counted_and_cut_short():
    class Branches(nn.Module):  # no block follows another, so the model is run from its beginning for each layer
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))

        def forward(self, x):
            return self.c(1 + self.b(1 + self.a(x)))

    model, batches = Branches(), Counting([data()])
    forwards = []
    model.c.register_forward_hook(lambda *_: forwards.append(1))
    run(model, batches, half)
    assert batches.reads == 5  # the first batch to look for blocks, the trace, then one for each of three layers
    assert len(forwards) == 2  # only the first two run to the end: the passes stop where they have what they need


@pytest.mark.parametrize("sequential", [True, False])
def test_methods_of_the_weight_alone_do_not_run_the_model(sequential):
    model, x = mlp(), data()
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model runs"))
    method = functools.partial(rtn, bits=4)
    for batches in (None, [x]):
        result, report = run(model, batches, method, sequential=sequential)
        assert torch.equal(result[2].weight, rtn(model[2].weight, bits=4).dequantize())
        assert all(row.error is None and row.samples == 0 and row.status == "compressed" for row in report.rows)
        assert "compressed" in str(report) and report._repr_html_()
    with pytest.raises(ValueError, match="batches is None"):
        run(mlp(), None, half)
    with pytest.raises(ValueError, match="batches is None"):
        run(mlp(), None, method, errors=True)


def test_errors_of_methods_of_the_weight_alone_are_measured_where_asked_for():
    model, x, other = mlp(), data(), data(5)
    method = functools.partial(rtn, bits=4)
    result, report = run(model, [x], method, sequential=False, errors=True, held_out=[other])
    for row_error, inputs in ((report["2"].error, x), (report["2"].held_out_error, other)):
        inputs = model[:2](inputs).detach().T
        truth = relative_error(model[2].weight.detach(), result[2].weight.detach(), inputs)
        assert row_error == pytest.approx(truth, rel=1e-4)  # float32 sums against float64
    _, report = run(model, [x], method, held_out=[other])
    assert report["2"].error is None and report["2"].held_out_error > 0


@pytest.mark.parametrize("sequential", [True, False])
def test_norms_are_those_of_the_inputs_and_need_no_product(sequential):
    model, x, seen = mlp(), data(), []

    def method(weight, input_norm):
        seen.append(input_norm)
        return wanda(weight, input_norm, sparsity=0.5)

    result, report = run(model, x.split(16), method, sequential=sequential)
    so_far = result if sequential else model
    torch.testing.assert_close(seen[1], so_far[:2](x).detach().norm(dim=0), rtol=1e-5, atol=1e-5)
    assert all(row.error is None and row.samples == 60 for row in report.rows)
    again, report = run(model, x.split(16), method, sequential=sequential, errors=True)
    assert same(snapshot(result), snapshot(again)) and all(row.error > 0 for row in report.rows)


def test_in_place():
    model = mlp()
    truth, _ = run(model, [data()], half)
    result, _ = run(model, [data()], half, inplace=True)
    assert result is model and same(snapshot(truth), snapshot(model))


def test_check_sparsity_errors_name_the_layer():
    def method(weight, hessian):
        check_sparsity(2.0)

    with pytest.raises(ValueError, match="layer '0': sparsity is the share"):
        run(mlp(), [data()], method)
