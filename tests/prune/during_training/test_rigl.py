import math

import pytest
import torch
from torch.nn import functional as F

from mlcomp.prune import rigl
from mlcomp.train import train
from tests.prune.during_training.sparse_nets import OPTIONS, masks, network, problem, states_equal


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
