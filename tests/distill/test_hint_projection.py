import pytest
import torch
from torch import nn

from mlcomp.distill import hint_projection


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_projections():
    linear = hint_projection(drawn(5, 3), drawn(5, 7))
    assert isinstance(linear, nn.Linear) and linear(drawn(5, 3)).shape == (5, 7)
    tokens = hint_projection(drawn(5, 2, 3), drawn(5, 2, 7))
    assert tokens(drawn(5, 2, 3)).shape == (5, 2, 7)
    images = drawn(5, 3, 4, 6)
    conv = hint_projection(images, drawn(5, 7, 4, 6))
    # The same linear map at each pixel.
    each = images.permute(0, 2, 3, 1) @ conv.weight.detach()[:, :, 0, 0].T + conv.bias.detach()
    torch.testing.assert_close(conv(images).detach(), each.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)


def test_projections_are_drawn_by_the_seed_alone():
    state = torch.get_rng_state()
    first, again, other = (hint_projection(drawn(2, 3), drawn(2, 4), seed=s) for s in (0, 0, 1))
    assert torch.equal(first.weight, again.weight) and not torch.equal(first.weight, other.weight)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("features", "hint"),
    [
        ((2, 3), (2, 3, 4)),
        ((2, 3, 4, 4), (2, 3, 4, 5)),
        ((2, 5, 3), (2, 4, 3)),
        ((3, 3), (2, 3)),
        ((2,), (2,)),
        ((0, 3), (0, 3)),
    ],
)
def test_shapes_that_no_projection_matches_are_refused(features, hint, as_user):
    with pytest.raises(ValueError, match="features"):
        hint_projection(torch.zeros(features), torch.zeros(hint))
