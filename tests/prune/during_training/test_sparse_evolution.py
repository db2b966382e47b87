import math

import pytest
import torch

from mlcomp.layerwise import layer_weights
from mlcomp.prune import sparse_evolution
from tests.prune.during_training.sparse_nets import OPTIONS, masks, network, problem, states_equal


def test_set_moves_after_each_epoch_but_the_last_and_keeps_the_counts():
    x, y = problem()
    start = network()
    made = sparse_evolution(start, x, y, fraction=0.3, seed=2, **OPTIONS)
    assert list(made.moved) == [4, 8, 12, 16]
    for name, mask in masks(start).items():
        assert int(made.masks[name].sum()) == int(mask.sum())
        assert not bool(layer_weights(made.model)[name][~made.masks[name]].any())
    assert made.moved[4] == {n: round(0.3 * int(masks(start)[n].sum())) for n in ("0", "2")}
    again = sparse_evolution(start, x, y, fraction=0.3, seed=2, **OPTIONS)
    assert states_equal(made.model, again.model) and made.history == again.history
    other = sparse_evolution(start, x, y, fraction=0.3, seed=3, **OPTIONS)
    assert not torch.equal(other.masks["0"], made.masks["0"])


@pytest.mark.slow
def test_set_drops_the_smallest_and_new_ones_are_drawn_evenly():
    """One epoch of a rate so small that the weights stand still: what went is known, where it went is random."""
    x, y = problem()
    start = network()
    weight = start[0].weight.detach()
    alive = weight != 0
    k = round(0.3 * int(alive.sum()))
    stays = alive & (weight.abs() > weight[alive].abs().sort().values[k - 1])
    hits = torch.zeros_like(weight)
    options = OPTIONS | {"epochs": 2, "batch_size": 64, "lr": 1e-9}
    for seed in range(40):
        made = sparse_evolution(start, x, y, fraction=0.3, seed=seed, **options)
        mask = made.masks["0"]
        assert bool(mask[stays].all())
        hits += (mask & ~stays).float()
    expected = 40 * k / int((~stays).sum())
    # Binomial counts: five standard deviations around the mean.
    spread = 5 * math.sqrt(expected * (1 - expected / 40))
    assert (hits[~stays] - expected).abs().max() < spread and not hits[stays].any()
