import pytest
import torch

from mlcomp.sources import Density, Gaussian, Laplace, Samples, as_source


def test_each_argument_means_its_source():
    assert isinstance(as_source("gaussian"), Gaussian) and isinstance(as_source("laplace"), Laplace)
    density = Density(torch.ones_like, (0.0, 1.0))
    assert as_source(density) is density
    samples = as_source(torch.tensor([[3.0, 1.0], [2.0, 2.0]]).bfloat16())
    assert isinstance(samples, Samples) and samples.x.tolist() == [1, 2, 2, 3] and samples.x.dtype == torch.float64
    assert as_source(torch.ones(3)).quantile(torch.tensor([0.5]).double()).tolist() == [1]  # constant is allowed here


def test_bad_input(as_user):
    with pytest.raises(ValueError, match="'normal'"):
        as_source("normal")
    with pytest.raises(ValueError, match="no sample"):
        as_source(torch.zeros(0))
    with pytest.raises(ValueError, match="NaN or infinite"):
        as_source(torch.tensor([float("inf")]))
    for source in (3, [1.0, 2.0], torch.arange(5)):
        with pytest.raises(TypeError, match=r"samples, got|floating point"):
            as_source(source)
