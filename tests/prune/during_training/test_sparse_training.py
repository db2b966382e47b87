import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mlcomp.layerwise import with_weights
from mlcomp.prune import erdos_renyi, layer_weights, rigl, sparse_evolution
from mlcomp.train import train


def network(seed=0, sparsity=0.6):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    pruned = erdos_renyi(layer_weights(model), sparsity=sparsity)
    return with_weights(model, {**pruned, "4": model[4].weight.detach()})  # the output layer is dense


def problem(n=64):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 8, generator=g)
    return x, (x @ torch.randn(8, 3, generator=g)).argmax(1)


OPTIONS = {"epochs": 5, "lr": 1e-2, "batch_size": 16, "progress": False}  # 20 steps


def masks(model):
    return {name: weight != 0 for name, weight in layer_weights(model).items()}


def states_equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_rigl_equals_algorithm_1_written_out(optimizer):
    """Updates instead of steps at 3, 6, 9, 12 of 20 (end 0.75), by sorting, layer by layer, on plain Python lists."""
    x, y = problem()
    literal, alpha = network(), 0.4
    kept = [m.clone() for m in list(masks(literal).values())[:2]]
    weights = [literal[0].weight, literal[2].weight]

    def before(step, optimizer):
        with torch.no_grad():
            if step % 3 == 0 and step < 15:
                share = alpha / 2 * (1 + math.cos(math.pi * step / 15))
                for w, mask in zip(weights, kept, strict=True):
                    flat, m, g = w.view(-1), mask.view(-1), w.grad.view(-1).abs().tolist()
                    alive = [i for i in range(len(flat)) if m[i]]
                    k = round(share * len(alive))
                    dropped = sorted(alive, key=lambda i, flat=flat: abs(float(flat[i])))[:k]
                    for i in dropped:
                        m[i] = False
                    missing = [i for i in range(len(flat)) if not m[i]]
                    grown = sorted(missing, key=lambda i, g=g: -g[i])[:k]
                    for i in {*dropped, *grown}:
                        flat[i] = 0
                        for moment in optimizer.state[w].values():
                            if moment.shape == w.shape:
                                moment.view(-1)[i] = 0
                    for i in grown:
                        m[i] = True
                return False
            for w, mask in zip(weights, kept, strict=True):
                w.grad.mul_(mask)
            return True

    train(literal, x, y, before_step=before, optimizer=optimizer, **OPTIONS)
    made = rigl(network(), x, y, every=3, fraction=alpha, optimizer=optimizer, **OPTIONS)
    assert list(made.moved) == [3, 6, 9, 12] and made.moved[3]["0"] > made.moved[12]["0"] > 0
    assert "4" not in made.moved[3]  # a layer without zeros stays dense
    assert states_equal(made.model, literal)
    assert not any(torch.equal(a, b) for a, b in zip(kept, list(masks(network()).values())[:2], strict=True))


def test_rigl_grows_where_the_gradient_is_largest_and_drops_what_is_smallest():
    x, y = problem()
    start = network()
    seen = rigl(start, x, y, every=1, fraction=0.5, end=0.1, **OPTIONS | {"epochs": 1, "batch_size": 64, "lr": 1e-9})
    assert not seen.moved  # the only step of this training is the last: nothing to move for
    made = rigl(start, x, y, every=1, fraction=0.5, end=0.9, **OPTIONS | {"epochs": 2, "batch_size": 64, "lr": 1e-9})
    assert list(made.moved) == [1]
    gradient = torch.autograd.grad(F.cross_entropy(start(x), y), start[0].weight)[0].abs()
    weight, k = start[0].weight.detach(), made.moved[1]["0"]
    alive = weight != 0
    stays = alive & (weight.abs() > weight[alive].abs().sort().values[k - 1])
    new = made.masks["0"] & ~stays
    threshold = gradient[~stays].sort(descending=True).values[k - 1]
    assert bool((gradient[new] >= threshold).all()) and int(new.sum()) == k


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


@pytest.mark.parametrize("method", [rigl, sparse_evolution])
def test_killed_and_resumed_run_equals_an_unbroken_one(tmp_path, method):
    x, y = problem()
    whole = method(network(), x, y, every=3, **OPTIONS)
    calls = 0

    def loss(outputs, labels):
        nonlocal calls
        calls += 1
        if calls == 11:
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, labels)

    options = OPTIONS | {"loss": loss, "checkpoint": tmp_path / "c.pt"}
    with pytest.raises(KeyboardInterrupt):
        method(network(), x, y, every=3, **options)
    resumed = method(network(), x, y, every=3, **options)
    assert states_equal(whole.model, resumed.model) and whole.history == resumed.history
    assert set(resumed.model.state_dict()) == set(network().state_dict())


def test_model_stays_and_bad_options_are_refused():
    x, y = problem()
    start = network()
    before = copy.deepcopy(start.state_dict())
    rigl(start, x, y, every=3, **OPTIONS)
    assert all(torch.equal(v, before[k]) for k, v in start.state_dict().items())
    for method, options, match in [
        (rigl, {"fraction": 1.5}, "fraction"),
        (rigl, {"end": -0.1}, "end"),
        (rigl, {"every": 0}, "every"),
        (rigl, {"after_step": print}, "after_step is taken"),
        (sparse_evolution, {"fraction": float("nan")}, "fraction"),
        (sparse_evolution, {"every": 0}, "every"),
        (sparse_evolution, {"before_step": print}, "before_step is taken"),
    ]:
        with pytest.raises(ValueError, match=match):
            method(start, x, y, **OPTIONS | options)
