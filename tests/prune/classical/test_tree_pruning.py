import itertools

import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from mlcomp.prune.classical import choose_alpha, cost_complexity_path, tree_leaves


def arrays(tree):
    t = tree.tree_
    names = ("children_left", "children_right", "impurity", "weighted_n_node_samples")
    return [torch.as_tensor(getattr(t, name).copy()) for name in names]


@pytest.fixture(scope="module")
def cancer():
    x, y = load_breast_cancer(return_X_y=True)
    train, held_out, labels, truth = train_test_split(x, y, test_size=0.3, random_state=0)
    return DecisionTreeClassifier(random_state=0).fit(train, labels), train, labels, held_out, truth


def subtrees(left, right, t=0):
    """Yield the leaves of every pruned subtree of the branch at t."""
    yield (t,)
    if left[t] >= 0:
        for a, b in itertools.product(subtrees(left, right, left[t]), subtrees(left, right, right[t])):
            yield a + b


def test_path_equals_scikit_learns(cancer):
    tree, train, labels, *_ = cancer
    path = cost_complexity_path(*arrays(tree))
    theirs = tree.cost_complexity_pruning_path(train, labels)
    torch.testing.assert_close(path.alphas, torch.as_tensor(theirs.ccp_alphas), rtol=0, atol=1e-15)
    torch.testing.assert_close(path.risks, torch.as_tensor(theirs.impurities), rtol=1e-12, atol=0)
    assert path.leaves[0] == tree.get_n_leaves() and path.leaves[-1] == 1


def test_pruned_trees_predict_what_scikit_learns_do(cancer):
    tree, train, labels, held_out, _ = cancer
    t = tree.tree_
    left, right, impurity, samples = arrays(tree)
    path = cost_complexity_path(left, right, impurity, samples)
    feature, threshold = torch.as_tensor(t.feature.copy()), torch.as_tensor(t.threshold.copy())
    for alpha in path.alphas.tolist():
        end = tree_leaves(left, right, feature, threshold, path.splits(alpha), torch.as_tensor(held_out))
        ours = t.value[end.numpy(), 0].argmax(1)
        # A hair above alpha, since scikit-learn's last digit may be below the price at which the link breaks.
        theirs = DecisionTreeClassifier(random_state=0, ccp_alpha=alpha + 1e-13).fit(train, labels)
        assert (ours == theirs.predict(held_out)).all()
        assert theirs.get_n_leaves() == int(path.leaves[path.alphas == alpha])


@pytest.mark.parametrize("seed", range(6))
def test_no_subtree_is_better_at_any_price_and_no_equally_good_one_is_smaller(seed):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(24, 3, generator=g), torch.randn(24, generator=g).round()  # rounded, so that there are ties
    tree = DecisionTreeRegressor(random_state=0, max_leaf_nodes=7).fit(x.numpy(), y.numpy())
    left, right, impurity, samples = arrays(tree)
    path = cost_complexity_path(left, right, impurity, samples)
    risk = (impurity * samples / samples[0]).tolist()
    every = [(sum(risk[t] for t in leaves), len(leaves)) for leaves in subtrees(left.tolist(), right.tolist())]
    middle = (path.alphas[:-1] + path.alphas[1:]) / 2
    for alpha in [*path.alphas.tolist(), *middle.tolist(), 2 * float(path.alphas[-1])]:
        splits = path.splits(alpha)
        step = int((path.alphas <= alpha).sum()) - 1
        least = min(r + alpha * n for r, n in every)
        # Rounding of sums of a few numbers of order 1.
        assert float(path.risks[step]) + alpha * int(path.leaves[step]) == pytest.approx(least, abs=1e-12)
        assert int(path.leaves[step]) == min(n for r, n in every if r + alpha * n <= least + 1e-12)
        assert int(splits.sum()) == int(path.leaves[step]) - 1  # a binary tree
    assert (path.alphas.diff() > 0).all()


def test_ties_that_differ_by_rounding_are_one_step():
    x, y = load_digits(return_X_y=True)
    tree = DecisionTreeClassifier(random_state=0).fit(x, y)
    alphas = cost_complexity_path(*arrays(tree)).alphas
    theirs = tree.cost_complexity_pruning_path(x, y).ccp_alphas
    assert len(alphas) < len(theirs)
    assert alphas.diff().min() > 1e-12
    assert all((alphas - a).abs().min() < 1e-11 for a in theirs.tolist())


def test_a_root_alone_and_links_that_save_nothing():
    lone = cost_complexity_path(torch.tensor([-1]), torch.tensor([-1]), torch.tensor([0.5]), torch.tensor([3.0]))
    assert lone.alphas.tolist() == [0] and lone.leaves.tolist() == [1] and not lone.splits(0.0).any()
    left, right = torch.tensor([1, -1, -1]), torch.tensor([2, -1, -1])
    useless = cost_complexity_path(left, right, torch.full((3,), 0.5), torch.tensor([4.0, 2.0, 2.0]))
    assert useless.leaves.tolist() == [1] and useless.risks.tolist() == [0.5]


def test_the_rule_of_one_standard_error():
    # Means .3, .2, .21, .5; the standard error at the least is .05/√2·… = std(.15, .25)/√2 = .05.
    errors = torch.tensor([[0.3, 0.15, 0.21, 0.5], [0.3, 0.25, 0.21, 0.5]])
    assert choose_alpha(errors) == 2
    assert choose_alpha(errors, standard_errors=0.0) == 1
    assert choose_alpha(errors, standard_errors=10.0) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"left": torch.tensor([1, -1, 0])}, "tree"),
        ({"left": torch.tensor([1, 2, -1])}, "tree"),
        ({"left": torch.tensor([5, -1, -1])}, "tree"),
        ({"left": torch.tensor([1.0, -1, -1])}, "whole number"),
        ({"impurity": torch.tensor([0.5, -0.1, 0])}, "impurity"),
        ({"samples": torch.zeros(3)}, "samples"),
        ({"tolerance": 1.0}, "tolerance"),
    ],
)
def test_bad_input_is_a_clear_error(as_user, change, message):
    good = {"left": torch.tensor([1, -1, -1]), "right": torch.tensor([2, -1, -1])}
    good |= {"impurity": torch.tensor([0.5, 0.1, 0.0]), "samples": torch.tensor([4.0, 2.0, 2.0])}
    with pytest.raises(ValueError, match=message):
        cost_complexity_path(**good | change)
    with pytest.raises(ValueError, match="alpha"):
        cost_complexity_path(**good).splits(-1.0)
    with pytest.raises(ValueError, match="two folds"):
        choose_alpha(torch.ones(1, 3))
    with pytest.raises(ValueError, match="features"):
        feature = torch.tensor([7, -2, -2])
        tree_leaves(good["left"], good["right"], feature, torch.zeros(3), good["left"] > 0, torch.ones(2, 3))
