import pytest
import torch

from mlcomp.kernels import interpret_without_gpu

# Here, because Triton must not be imported before this is decided: test modules import kernels when collected.
INTERPRETED = interpret_without_gpu()


@pytest.fixture
def device():
    """Return where kernels run: the GPU, or the CPU in Triton's interpreter."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture
def random(device):
    """Return a function that draws normal numbers (shape, dtype, seed) on the kernels' device."""

    def draw(*shape, dtype=torch.float32, seed=0):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device=device, dtype=dtype)

    return draw


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Make torch.empty return garbage, so that an output a kernel leaves unwritten is seen."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        x = empty(*args, **kwargs)
        return x.fill_(float("nan") if x.is_floating_point() else 77)

    monkeypatch.setattr(torch, "empty", poisoned)
