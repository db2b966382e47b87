import copy
import functools

import pytest
import torch

from mlcomp.layerwise import collect_hessians, compress
from mlcomp.obs import Level, exact_obs, level_losses, stitch
from tests.budget.database_case import batches, build, net


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


def test_bad_input(made, as_user):
    model, _, database = made
    with pytest.raises(ValueError, match="one level for each of 3 layers"):
        stitch(model, database, [0])
    with pytest.raises(ValueError, match="levels 0 to 6, got 7"):
        stitch(model, database, [7, 0, 0])
    with pytest.raises(ValueError, match=r"no layer.*'9'"):
        stitch(model, database, {"9": 0})
