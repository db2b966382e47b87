import itertools

import pytest
import torch

from mlcomp.quant import kmeans, residual_quantization, vector_quantization

WEIGHT = torch.randn(20, 24, generator=torch.Generator().manual_seed(0))


def fit(stages, sweeps=0, **options):
    options = {"dim": 4, "entries": 4} | options
    return residual_quantization(
        WEIGHT, stages=stages, sweeps=sweeps, generator=torch.Generator().manual_seed(3), **options
    )


def error(q):
    return float((WEIGHT - q.dequantize()).double().square().sum())


def test_one_stage_is_one_codebook():
    alone = vector_quantization(WEIGHT, dim=4, entries=4, generator=torch.Generator().manual_seed(3))
    assert torch.equal(fit(1).codes, alone.codes) and torch.equal(fit(1).codebooks, alone.codebooks)


def test_stages_quantize_what_is_left():
    q, g = fit(3), torch.Generator().manual_seed(3)
    rest = WEIGHT.reshape(-1, 4)
    for b in range(3):
        stage = kmeans(rest, 4, generator=g)
        assert torch.equal(stage.index, q.codes[:, b]) and torch.equal(stage.codebook, q.codebooks[b])
        rest = rest - stage.decode()
    assert torch.allclose(rest, (WEIGHT - q.dequantize()).reshape(-1, 4), atol=1e-6)


def test_stages_and_sweeps_never_raise_the_error():
    by_stage = [error(fit(stages)) for stages in (1, 2, 3, 4)]
    assert all(b < a for a, b in itertools.pairwise(by_stage))
    by_sweep = [error(fit(3, sweeps)) for sweeps in (0, 1, 2, 5, 20)]
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(by_sweep))
    assert by_sweep[-1] < 0.97 * by_sweep[0]  # measured: 0.90


def test_after_many_sweeps_each_code_is_the_best_given_the_others():
    q = fit(2, sweeps=200)
    first, second = q.codebooks
    x = WEIGHT.reshape(-1, 4)
    rest = x - first[q.codes[:, 0].long()]
    best = torch.cdist(rest, second).amin(1)
    assert torch.allclose((rest - second[q.codes[:, 1].long()]).norm(dim=1), best, atol=1e-5)
    assert error(q) >= float(torch.cdist(x, (first[:, None] + second).reshape(-1, 4)).amin(1).square().sum()) * 0.9999


def test_bad_input(as_user):
    for stages in (0, 1.5, None, True):
        with pytest.raises(ValueError, match="stages must"):
            fit(stages)
    for sweeps in (-1, 0.5, True):
        with pytest.raises(ValueError, match="sweeps must"):
            fit(2, sweeps)
