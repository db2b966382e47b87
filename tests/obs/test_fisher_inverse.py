import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mlcomp.obs.fisher_inverse import empirical_fisher_gradients, fisher_inverse
from mlcomp.obs.network_hessian import flatten_network
from tests.examples import examples


@examples(25)
@given(seed=st.integers(0, 10_000), samples=st.integers(1, 30), n=st.integers(1, 12), damping=st.floats(1e-3, 10))
def test_recursion_equals_the_direct_inverse(seed, samples, n, damping):
    x = torch.randn(samples, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    fisher = damping * torch.eye(n, dtype=torch.float64) + x.T @ x / samples
    torch.testing.assert_close(fisher_inverse(x, damping=damping), torch.linalg.inv(fisher), rtol=1e-8, atol=1e-8)


def test_gradients_of_samples_average_to_the_gradient_of_the_mean_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    flat = flatten_network(model, torch.randn(10, 4), torch.randint(2, (10,)), nn.functional.cross_entropy)
    gradients = empirical_fisher_gradients(flat, flat.theta)
    torch.testing.assert_close(gradients.mean(0), torch.func.grad(flat.loss)(flat.theta))


@pytest.mark.parametrize(
    ("vectors", "damping", "message"),
    [
        (torch.ones(3), 1.0, "matrix"),
        (torch.ones(0, 3), 1.0, "matrix"),
        (torch.full((2, 2), torch.nan), 1.0, "NaN"),
        (torch.ones(2, 2), 0.0, "damping"),
        (torch.ones(2, 2), -1.0, "damping"),
    ],
)
def test_bad_input_is_a_clear_error(as_user, vectors, damping, message):
    with pytest.raises(ValueError, match=message):
        fisher_inverse(vectors, damping=damping)
