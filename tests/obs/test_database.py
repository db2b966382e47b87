import copy
import functools
import itertools

import pytest
import torch
from torch import nn

from mlcomp.cost import model_cost
from mlcomp.data import make_layer
from mlcomp.formats import packed_nbytes, sparse_nbytes
from mlcomp.layerwise import collect_hessians, compress
from mlcomp.metrics import hessian_error
from mlcomp.obs import exact_obs, obq
from mlcomp.obs.budget import choose_levels
from mlcomp.obs.build_database import build_database
from mlcomp.obs.database import Level, density_levels, load_database
from mlcomp.obs.stitch import level_losses, stitch
from mlcomp.prune import magnitude

LEVELS = (
    Level(),
    Level(sparsity=0.3),
    Level(sparsity=0.7),
    Level(pattern=(2, 4)),
    Level(bits=4),
    Level(pattern=(2, 4), bits=4),
    Level(sparsity=0.5, bits=3),
)
build = functools.partial(build_database, progress=False)


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=3, stride=3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


def batches():
    return list(torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(1)).split(50))


@pytest.fixture(scope="module")
def made():
    model = net()
    hessians = collect_hessians(model, batches())
    return model, hessians, build(model, hessians, LEVELS)


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


def test_sizes_and_costs(made):
    model, _, database = made
    positions = model_cost(model, batches()[0][:1]).positions
    flops = dict(zip(database.layers, database.costs("flops", positions), strict=True))
    assert flops["0"][0] == 2 * 64 * 54 and flops["2"][0] == 2 * 4 * 6 * 18 and flops["5"][0] == 2 * 5 * 24
    for i in range(len(LEVELS)):
        stitched = stitch(model, database, [i] * 3)
        assert model_cost(stitched, batches()[0][:1]).flops == sum(row[i] for row in flops.values())
    bops = database.costs("bops", positions)
    assert bops[0][0] == 32 * flops["0"][0] and bops[0][4] == 4 * flops["0"][4]
    dense, sparse, _, _, bits, joint, _ = database.layers["5"]
    assert dense.nbytes == 120 * 4
    assert sparse.nbytes == sparse_nbytes((1, 120), sparse.nonzeros, format="bitmask", value_bits=32)
    grid_bytes = 5 * 4 + packed_nbytes(5, 4)  # a float32 step and a zero code for each of 5 rows
    values = min(60, packed_nbytes(bits.nonzeros, 4) + 15)
    assert 0 <= values + grid_bytes - bits.nbytes <= 1  # codes and zero codes share their last byte
    assert joint.nbytes < bits.nbytes


def test_the_program_meets_its_budget_and_beats_every_uniform_level(made):
    model, _, database = made
    positions = model_cost(model, batches()[0][:1]).positions
    errors, costs = database.errors(), database.costs("flops", positions)
    for level in range(len(LEVELS)):
        budget = sum(row[level] for row in costs)
        choice = choose_levels(errors, costs, budget)
        assert choice.cost <= budget and choice.error <= sum(row[level] for row in errors) * (1 + 1e-12)
        truth = min(
            sum(row[l] for row, l in zip(errors, pick, strict=True))
            for pick in itertools.product(range(len(LEVELS)), repeat=3)
            if sum(row[l] for row, l in zip(costs, pick, strict=True)) <= budget
        )
        assert choice.error == pytest.approx(truth, rel=1e-12)
        assert model_cost(stitch(model, database, choice.levels), batches()[0][:1]).flops == choice.cost


def test_stitch_by_name_and_the_model_stays(made):
    model, _, database = made
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = stitch(model, database, {"5": 2})
    assert torch.equal(result[0].weight, model[0].weight) and (result[5].weight == 0).sum() == 84
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    half = copy.deepcopy(model).bfloat16()
    assert stitch(half, database, {"5": 2})[5].weight.dtype == torch.bfloat16


def test_stitch_equals_parallel_compression():
    model, x = net(), batches()
    database = build(model, collect_hessians(model, x), [Level(sparsity=0.6)])
    half = functools.partial(exact_obs, sparsity=0.6, damp=0.01)
    truth, report = compress(model, x, half, sequential=False, progress=False)
    ours = stitch(model, database, [0, 0, 0])
    for index in (0, 2, 5):
        torch.testing.assert_close(ours[index].weight, truth[index].weight)
    assert database.errors()[2][0] == pytest.approx(report["5"].error, rel=1e-5)


def test_losses_of_levels(made):
    model, _, database = made
    x = torch.cat(batches())
    with torch.no_grad():
        target = model(x)

        def loss(net):
            return float((net(x) - target).square().mean())

        rows = level_losses(model, database, loss, progress=False)
        assert [row[0] for row in rows] == [0, 0, 0]
        for (name, _), row in zip(database.layers.items(), rows, strict=True):
            assert row[2] == pytest.approx(loss(stitch(model, database, {name: 2})), rel=1e-6)


def test_save_load_and_resume(made, tmp_path):
    model, hessians, database = made
    database.save(tmp_path / "levels.safetensors")
    loaded = load_database(tmp_path / "levels.safetensors")
    assert list(loaded.layers) == list(database.layers) and loaded.errors() == database.errors()
    levels = [Level(sparsity=0.5)]
    run = functools.partial(build, model, {k: hessians[k] for k in ("5", "0")}, levels, resume=tmp_path / "r")
    with pytest.raises(ValueError, match="layer '0': no"):
        run(prune=functools.partial(_refuse, width=9))
    assert (tmp_path / "r" / "5.safetensors").exists() and not (tmp_path / "r" / "0.safetensors").exists()
    with pytest.raises(ValueError, match="begun with another options"):
        run(prune=functools.partial(_refuse, width=8))
    for part in ("5", "0"):
        for saved, fresh in zip(loaded.layers[part], database.layers[part], strict=True):
            assert torch.equal(saved.weight, fresh.weight) and saved.level == fresh.level
            assert saved.nbytes == fresh.nbytes and saved.nonzeros == fresh.nonzeros


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


def test_density_levels():
    levels = density_levels(delta=0.1, last=0.99)
    assert levels[0] == Level() and len(levels) == 44  # 0.9^43 = 0.0108 is the last density above 1 %
    densities = [1 - level.sparsity for level in levels[1:]]
    assert densities[0] == pytest.approx(0.9) and densities[-1] == pytest.approx(0.9**43)
    names = ["dense", "30.0 %", "70.0 %", "2:4", "4 bit", "2:4 + 4 bit", "50.0 % + 3 bit"]
    assert [level.name for level in LEVELS] == names


def test_bad_input(made, as_user):
    model, hessians, database = made
    with pytest.raises(ValueError, match="a sparsity or a pattern"):
        Level(sparsity=0.5, pattern=(2, 4))
    for bad in ({"sparsity": 1.5}, {"pattern": (5, 4)}, {"bits": 9}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Level(**bad)
    with pytest.raises(ValueError, match="delta must lie"):
        density_levels(delta=1)
    with pytest.raises(ValueError, match="all different"):
        build(model, hessians, [Level(), Level()])
    with pytest.raises(ValueError, match="no layer 'x'"):
        build(model, {"x": hessians["0"]}, LEVELS)
    with pytest.raises(ValueError, match="layer '5': H"):
        build(model, {"5": hessians["0"]}, LEVELS)
    with pytest.raises(ValueError, match="kind must be"):
        database.costs("seconds")
    with pytest.raises(ValueError, match=r"missing: \['0', '2', '5'\]"):
        database.costs("flops")
    with pytest.raises(ValueError, match="kind must be"):
        database.errors("absolute")
    with pytest.raises(ValueError, match="one level for each of 3 layers"):
        stitch(model, database, [0])
    with pytest.raises(ValueError, match="levels 0 to 6, got 7"):
        stitch(model, database, [7, 0, 0])
    with pytest.raises(ValueError, match=r"no layer.*'9'"):
        stitch(model, database, {"9": 0})
