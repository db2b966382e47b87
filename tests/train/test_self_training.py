import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.semi_supervised import SelfTrainingClassifier

from mlcomp.train import self_training


def nearest_mean(x, y):
    """Fit the means of the classes; probabilities fall with the distance from them."""
    means = torch.stack([x[y == c].mean(0) for c in range(3)])
    return lambda inputs: (-torch.cdist(inputs, means).square()).softmax(1)


def logistic(x, y):
    model = LogisticRegression(max_iter=500).fit(x.numpy(), y.numpy())
    return lambda inputs: torch.from_numpy(model.predict_proba(inputs.numpy().reshape(-1, x.shape[1])))


def data(seed=0, labelled=2, unlabelled=60):
    """Three overlapping clouds in the plane."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    y = torch.arange(3).repeat(labelled), torch.randint(3, (unlabelled,), generator=g)
    x = [centres[c] + torch.randn(len(c), 2, generator=g) for c in y]
    return x[0], y[0], x[1]


def literal(fit, x, y, u, rounds, rule, k, revise):
    """The loop, sample by sample."""
    given, kept = {}, []
    for number in range(1, rounds + 1):
        inputs, labels = [*x], [*y.tolist()]
        for i in sorted(given):
            inputs.append(u[i])
            labels.append(given[i])
        p = fit(torch.stack(inputs), torch.tensor(labels))(u).tolist()
        free = [i for i in range(len(u)) if revise or i not in given]
        best = {i: p[i].index(max(p[i])) for i in free}
        ranked = sorted(free, key=lambda i: -p[i][best[i]])
        size = k * number if revise else k
        if rule == "threshold":
            chosen = [i for i in free if p[i][best[i]] > k]
        elif rule == "best":
            chosen = ranked[:size]
        else:
            chosen = [i for c in range(3) for i in [j for j in ranked if best[j] == c][:size]]
        new = {i: best[i] for i in chosen} if revise else {**given, **{i: best[i] for i in chosen}}
        if new == given:
            break
        given = new
        kept.append([given.get(i, -1) for i in range(len(u))])
    return kept


@pytest.mark.parametrize("revise", [False, True])
@pytest.mark.parametrize(("rule", "k"), [("threshold", 0.8), ("best", 7), ("best_per_class", 3)])
def test_the_labels_are_those_of_the_literal_loop(rule, k, revise):
    for seed in range(3):
        x, y, u = data(seed)
        got = self_training(nearest_mean, x, y, u, rounds=6, revise=revise, **{rule: k})
        assert got.history.tolist() == literal(nearest_mean, x, y, u, 6, rule, k, revise)
        assert torch.equal(got.labels, got.history[-1])
        some = got.labels >= 0
        last = nearest_mean(torch.cat([x, u[some]]), torch.cat([y, got.labels[some]]))
        assert torch.equal(got.predict(u), last(u))


@pytest.mark.parametrize("rule", [{"threshold": 0.7}, {"threshold": 0.45}, {"best": 9}])
def test_final_labels_are_those_of_scikit_learn(rule):
    x, y, u = data(3)
    got = self_training(logistic, x, y, u, rounds=5, **rule)
    option = (
        {"threshold": rule["threshold"]} if "threshold" in rule else {"criterion": "k_best", "k_best": rule["best"]}
    )
    theirs = SelfTrainingClassifier(LogisticRegression(max_iter=500), max_iter=5, **option)
    theirs.fit(torch.cat([x, u]).numpy(), torch.cat([y, torch.full((len(u),), -1)]).numpy())
    assert got.labels.tolist() == theirs.transduction_[len(x) :].tolist()
    when = (got.history >= 0).int()
    first = torch.where(when.any(0), when.argmax(0) + 1, -1)  # −1 is scikit-learn's word for never
    assert first.tolist() == theirs.labeled_iter_[len(x) :].tolist()
    # The same samples in another order: the solver's rounding.
    torch.testing.assert_close(got.predict(u), torch.from_numpy(theirs.predict_proba(u.numpy())), atol=1e-4, rtol=0)


def test_it_ends_where_nothing_changes():
    x, y, u = data()
    unsure = self_training(nearest_mean, x, y, u, rounds=4, threshold=1.0)
    assert unsure.history.shape == (0, 60) and (unsure.labels == -1).all()
    assert torch.equal(unsure.predict(u), nearest_mean(x, y)(u))
    all_at_once = self_training(nearest_mean, x, y, u, rounds=9, best=60)
    assert len(all_at_once.history) == 1 and (all_at_once.labels >= 0).all()


def test_a_revised_label_may_change_and_a_final_one_does_not():
    changes = []
    for seed in range(5):
        x, y, u = data(seed)
        for revise in (False, True):
            h = self_training(nearest_mean, x, y, u, rounds=6, best_per_class=4, revise=revise).history
            changes.append((revise, bool(((h[1:] != h[:-1]) & (h[:-1] >= 0)).any())))
    assert (True, True) in changes and (False, True) not in changes


def spoiled(value):
    return lambda x, y: lambda inputs: torch.full((len(inputs), 3), value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "rounds must be"),
        ({"best": 2}, "exactly one"),
        ({"labels": torch.tensor([0, 1])}, r"labels must be \(6,\)"),
        ({"labels": torch.tensor([0, 1, 2, -1, 1, 2])}, "labels must lie"),
        ({"labels": torch.tensor([0, 1, 2, 3, 1, 2]), "fit": spoiled(1 / 3)}, "the classes predicted"),
        ({"unlabelled": torch.zeros(4, 3)}, "alike but for their number"),
        ({"unlabelled": torch.zeros(0, 2)}, "at least one sample"),
        ({"inputs": torch.full((6, 2), float("nan"))}, "NaN"),
        ({"fit": spoiled(0.5)}, "add up to 1"),
        ({"fit": spoiled(float("nan"))}, "NaN"),
        ({"fit": lambda x, y: lambda inputs: torch.ones(len(inputs))}, r"probabilities must be \(60, classes\)"),
    ],
)
def test_bad_input_is_refused(change, message, as_user):
    x, y, u = data()
    call = {"fit": nearest_mean, "inputs": x, "labels": y, "unlabelled": u, "rounds": 3, "best_per_class": 2}
    with pytest.raises(ValueError, match=message):
        self_training(**{**call, **change})
