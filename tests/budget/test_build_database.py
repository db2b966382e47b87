import functools

import pytest
import torch
from torch import nn

from mlcomp.data import make_layer
from mlcomp.layerwise import collect_hessians
from mlcomp.metrics import hessian_error
from mlcomp.obs import Level, exact_obs, obq
from mlcomp.prune import magnitude
from tests.budget.database_case import LEVELS, batches, build, net


def test_each_entry_is_what_the_method_gives_alone(made):
    model, hessians, database = made
    weight = model[5].weight.detach()
    dense, low, high, pattern, bits, joint, _ = database.layers["5"]
    assert torch.equal(dense.weight[0], weight) and dense.error == 0
    for entry, options in ((low, {"sparsity": 0.3}), (high, {"sparsity": 0.7}), (pattern, {"pattern": (2, 4)})):
        alone = exact_obs(weight, hessians["5"], damp=0.01, **options)
        torch.testing.assert_close(entry.weight[0], alone)
        assert entry.relative_error == pytest.approx(hessian_error(weight, alone, hessians["5"]), rel=1e-5)
    alone = obq(weight, hessians["5"], bits=4, damp=0.01)
    assert torch.equal(bits.weight[0], alone.dequantize())
    assert joint.nonzeros <= pattern.nonzeros == 5 * 12
    assert ((pattern.weight == 0) <= (joint.weight == 0)).all()


def test_errors_are_those_of_the_layers_output(made):
    model, _, database = made
    x = torch.cat(batches())
    with torch.no_grad():
        inputs = model[:2](x)
        reference = torch.conv2d(inputs, model[2].weight, stride=3, groups=3)
        for entry in database.layers["2"]:
            weight = entry.weight.reshape(model[2].weight.shape)
            delta = torch.conv2d(inputs, weight, stride=3, groups=3) - reference
            assert entry.error == pytest.approx(float(delta.square().sum()), rel=1e-3, abs=1e-6)
            truth = float(delta.square().sum() / reference.square().sum())
            assert entry.relative_error == pytest.approx(truth, rel=1e-3, abs=1e-9)


def test_joint_levels_keep_every_zero_on_any_layer():
    for seed in range(2):
        weight, inputs, _ = make_layer(8, 20, 100, seed=seed)
        model = nn.Sequential(nn.Linear(20, 8, bias=False))
        model[0].weight.data = weight
        levels = [Level(sparsity=s) for s in (0.2, 0.6)] + [
            Level(sparsity=s, bits=b) for s in (0.2, 0.6) for b in (2, 8)
        ]
        entries = build(model, {"0": 2 * inputs @ inputs.T}, levels).layers["0"]
        pruned = {entry.level.sparsity: entry for entry in entries[:2]}
        for entry in entries[2:]:
            base = pruned[entry.level.sparsity]
            assert (entry.weight[base.weight == 0] == 0).all()
            assert entry.error > base.error  # what is left was quantized


def test_a_quantizer_that_moves_zeros_is_refused(made):
    model, hessians, _ = made
    moves = functools.partial(obq, order="activation", damp=0.01)
    with pytest.raises(ValueError, match=r"layer '.': level 2:4 \+ 4 bit: the quantizer moved weights"):
        build(model, hessians, [Level(pattern=(2, 4), bits=4)], quantize=moves)


def test_grouped_layers_are_compressed_group_by_group(made):
    _, _, database = made
    entry = database.layers["2"][2]
    assert entry.weight.shape == (3, 2, 18)
    assert (entry.weight == 0).flatten(1).sum(1).tolist() == [25] * 3  # 0.7 · 36 = 25.2 in each


def test_resumed_database_equals_a_fresh_one(tmp_path):
    model = net()
    hessians = collect_hessians(model, batches())
    first = build(model, hessians, LEVELS[:4], resume=tmp_path)
    stamps = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    (tmp_path / "2.safetensors").unlink()
    again = build(model, hessians, LEVELS[:4], resume=tmp_path)
    assert again.errors() == first.errors()
    for name in first.layers:
        assert all(
            torch.equal(a.weight, b.weight) for a, b in zip(first.layers[name], again.layers[name], strict=True)
        )
    now = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert now["0.safetensors"] == stamps["0.safetensors"] and now["2.safetensors"] != stamps["2.safetensors"]


def _refuse(weight, hessian, *, width, sparsity):
    if weight.shape[1] == width:
        raise ValueError("no")
    return magnitude(weight, sparsity=sparsity)


def test_an_interrupted_build_keeps_finished_layers_and_other_options_are_refused(made, tmp_path):
    model, hessians, _ = made
    run = functools.partial(
        build, model, {k: hessians[k] for k in ("5", "0")}, [Level(sparsity=0.5)], resume=tmp_path
    )
    with pytest.raises(ValueError, match="layer '0': no"):
        run(prune=functools.partial(_refuse, width=9))
    assert (tmp_path / "5.safetensors").exists() and not (tmp_path / "0.safetensors").exists()
    with pytest.raises(ValueError, match="begun with another options"):
        run(prune=functools.partial(_refuse, width=8))


SHIFT = 0.0


def _shifted(weight, hessian, *, sparsity):
    return magnitude(weight, sparsity=sparsity) * (1 + SHIFT)


def test_a_changed_global_of_the_pruner_is_refused_and_a_damaged_layer_made_again(made, tmp_path, monkeypatch):
    model, hessians, _ = made
    run = functools.partial(build, model, hessians, [Level(sparsity=0.5)], prune=_shifted, resume=tmp_path)
    first = run()
    piece = tmp_path / "5.safetensors"
    piece.write_bytes(piece.read_bytes()[:100])
    (tmp_path / "0.safetensors").write_bytes((tmp_path / "2.safetensors").read_bytes())
    again = run()
    assert all(torch.equal(again.layers[n][0].weight, first.layers[n][0].weight) for n in first.layers)
    monkeypatch.setitem(globals(), "SHIFT", 0.5)
    with pytest.raises(ValueError, match="begun with another options"):
        run()


def test_bad_input(made, as_user):
    model, hessians, _ = made
    with pytest.raises(ValueError, match="all different"):
        build(model, hessians, [Level(), Level()])
    with pytest.raises(ValueError, match="at least one"):
        build(model, hessians, [])
    with pytest.raises(ValueError, match="no layer 'x'"):
        build(model, {"x": hessians["0"]}, LEVELS)
    with pytest.raises(ValueError, match="layer '5': H"):
        build(model, {"5": hessians["0"]}, LEVELS)
