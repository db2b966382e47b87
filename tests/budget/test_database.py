import itertools

import pytest
import torch

from mlcomp.cost import model_cost
from mlcomp.formats import packed_nbytes, sparse_nbytes
from mlcomp.obs import Level, choose_levels, density_levels, load_database, stitch
from mlcomp.resume import save_piece
from tests.budget.database_case import LEVELS, batches


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


def test_save_and_load(made, tmp_path):
    _, _, database = made
    database.save(tmp_path / "levels.safetensors")
    loaded = load_database(tmp_path / "levels.safetensors")
    assert list(loaded.layers) == list(database.layers) and loaded.errors() == database.errors()
    for part in ("5", "0"):
        for saved, fresh in zip(loaded.layers[part], database.layers[part], strict=True):
            assert torch.equal(saved.weight, fresh.weight) and saved.level == fresh.level
            assert saved.nbytes == fresh.nbytes and saved.nonzeros == fresh.nonzeros


@pytest.mark.parametrize("kind", ["flipped weight", "half", "empty", "no database"])
def test_a_damaged_database_is_named_with_the_way_out(made, tmp_path, kind):
    path = tmp_path / "levels.safetensors"
    made[2].save(path)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    if kind == "no database":
        save_piece(path, {"w": torch.ones(2)}, [])
    else:
        path.write_bytes({"flipped weight": data, "half": data[: len(data) // 2], "empty": b""}[kind])
    with pytest.raises(ValueError, match=r"levels\.safetensors is damaged.*make it again"):
        load_database(path)
    assert [p.name for p in tmp_path.iterdir()] == ["levels.safetensors"]
    with pytest.raises(FileNotFoundError):
        load_database(tmp_path / "none")


def test_density_levels():
    levels = density_levels(delta=0.1, last=0.99)
    assert levels[0] == Level() and len(levels) == 44  # 0.9^43 = 0.0108 is the last density above 1 %
    densities = [1 - level.sparsity for level in levels[1:]]
    assert densities[0] == pytest.approx(0.9) and densities[-1] == pytest.approx(0.9**43)
    names = ["dense", "30.0 %", "70.0 %", "2:4", "4 bit", "2:4 + 4 bit", "50.0 % + 3 bit"]
    assert [level.name for level in LEVELS] == names


def test_bad_input(made, as_user):
    _, _, database = made
    with pytest.raises(ValueError, match="a sparsity or a pattern"):
        Level(sparsity=0.5, pattern=(2, 4))
    for bad in ({"sparsity": 1.5}, {"pattern": (5, 4)}, {"bits": 9}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Level(**bad)
    with pytest.raises(ValueError, match="delta must lie"):
        density_levels(delta=1)
    with pytest.raises(ValueError, match="kind must be"):
        database.costs("seconds")
    with pytest.raises(ValueError, match=r"missing: \['0', '2', '5'\]"):
        database.costs("flops")
    with pytest.raises(ValueError, match="kind must be"):
        database.errors("absolute")
