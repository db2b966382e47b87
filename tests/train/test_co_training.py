import pytest
import torch

from mlcomp.train import co_training
from tests.train.test_self_training import nearest_mean


def data(seed=0, unlabelled=50):
    """Three clouds of four coordinates, the first two of which are a view and the others the second."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[0.0, 0.0, 2.0, 0.0], [2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 2.0]])
    y = torch.arange(3).repeat(2), torch.randint(3, (unlabelled,), generator=g)
    x, u = (centres[c] + torch.randn(len(c), 4, generator=g) for c in y)
    return (x[:, :2], x[:, 2:]), y[0], (u[:, :2], u[:, 2:])


def literal(fits, views, y, unlabelled, k, rounds, pool, order):
    """The loop, sample by sample."""
    given, kept, waiting = {}, [], list(order)
    now, waiting = waiting[:pool], waiting[pool:] if pool else []
    for _ in range(rounds):
        if not now:
            break
        chosen = {}
        for fit, x, u in zip(fits, views, unlabelled, strict=True):
            rows = sorted(given)
            labels = torch.tensor([*y.tolist(), *[given[i] for i in rows]])
            p = fit(torch.cat([x, u[rows]]), labels)(u).tolist()
            for c in range(3):
                mine = [i for i in now if p[i].index(max(p[i])) == c]
                for i in sorted(mine, key=lambda i, p=p, c=c: -p[i][c])[:k]:
                    if i not in chosen or p[i][c] > chosen[i][0]:
                        chosen[i] = (p[i][c], c)
        given |= {i: c for i, (_, c) in chosen.items()}
        now = [i for i in now if i not in chosen]
        fill = len(chosen)
        now, waiting = now + waiting[:fill], waiting[fill:]
        kept.append([given.get(i, -1) for i in range(len(unlabelled[0]))])
    return kept


@pytest.mark.parametrize("pool", [None, 12])
def test_the_labels_are_those_of_the_literal_loop(pool):
    met = False
    for seed in range(3):
        views, y, u = data(seed)
        got = co_training((nearest_mean, nearest_mean), views, y, u, best_per_class=2, rounds=5, pool=pool, seed=seed)
        order = (
            range(50) if pool is None else torch.randperm(50, generator=torch.Generator().manual_seed(seed)).tolist()
        )
        want = literal((nearest_mean, nearest_mean), views, y, u, 2, 5, pool, order)
        assert got.history.tolist() == want and torch.equal(got.labels, got.history[-1])
        some = got.labels >= 0
        for v in range(2):
            fitted = nearest_mean(torch.cat([views[v], u[v][some]]), torch.cat([y, got.labels[some]]))
            assert torch.equal(got.predicts[v](u[v]), fitted(u[v]))
        first, second = (nearest_mean(views[v], y)(u[v]) for v in range(2))
        met |= bool((first.argmax(1) != second.argmax(1)).any())
    assert met  # views that disagree were among the cases


def fixed(p):
    """A classifier that gives these probabilities, whatever it learns from."""
    return lambda x, y: lambda inputs: p[inputs[:, 0].long()]


def test_where_both_choose_the_more_confident_has_its_way():
    number = torch.arange(4.0)[:, None]
    first = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5], [0.5, 0.5]])
    second = torch.tensor([[0.2, 0.8], [0.3, 0.7], [0.5, 0.5], [0.4, 0.6]])
    call = {"views": (number[:2], number[:2]), "labels": torch.tensor([0, 1]), "unlabelled": (number, number)}
    got = co_training((fixed(first), fixed(second)), best_per_class=4, rounds=1, **call)
    assert got.labels.tolist() == [0, 1, 0, 1]
    got = co_training((fixed(second), fixed(first)), best_per_class=4, rounds=1, **call)
    assert got.labels.tolist() == [0, 1, 0, 1]
    got = co_training((fixed(first), fixed(second)), best_per_class=1, rounds=1, **call)
    assert got.labels.tolist() == [0, -1, 0, -1]  # the second view's 0.8 for class 1 loses; its class 0 is sample 2


def test_the_combined_classifier_multiplies():
    number = torch.arange(3.0)[:, None]
    p = torch.tensor([[0.9, 0.1], [0.0, 1.0], [0.5, 0.5]])
    q = torch.tensor([[0.4, 0.6], [1.0, 0.0], [0.1, 0.9]])
    call = {"views": (number[:2], number[:2]), "labels": torch.tensor([0, 1]), "unlabelled": (number, number)}
    got = co_training((fixed(p), fixed(q)), best_per_class=1, rounds=1, **call).predict(number, number)
    torch.testing.assert_close(got, torch.tensor([[36 / 42, 6 / 42], [0.5, 0.5], [0.1, 0.9]]))


def test_it_ends_when_all_have_labels():
    views, y, u = data()
    got = co_training((nearest_mean, nearest_mean), views, y, u, best_per_class=10, rounds=30)
    assert (got.labels >= 0).all() and len(got.history) < 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fits": (nearest_mean,)}, "must be pairs"),
        ({"views": torch.zeros(2, 6, 2)}, "must be pairs"),
        ({"unlabelled": (torch.zeros(4, 2), torch.zeros(5, 2))}, "differ in length: 4 and 5"),
        ({"unlabelled": (torch.zeros(4, 2), torch.zeros(4, 3))}, "view 2 must be alike"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "labels must be"),
        ({"best_per_class": 0}, "best_per_class"),
        ({"rounds": True}, "rounds"),
        ({"pool": 0}, "pool"),
    ],
)
def test_bad_input_is_refused(change, message, as_user):
    views, y, u = data()
    call = {"fits": (nearest_mean, nearest_mean), "views": views, "labels": y, "unlabelled": u}
    with pytest.raises(ValueError, match=message):
        co_training(**{**call, "best_per_class": 2, "rounds": 2, **change})
