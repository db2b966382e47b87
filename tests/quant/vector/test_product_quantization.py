import itertools

import pytest
import torch

from mlcomp.quant import product_quantization, vector_quantization

WEIGHT = torch.randn(16, 24, generator=torch.Generator().manual_seed(0))


def fit(parts, dim=6, entries=4, seed=3):
    return product_quantization(
        WEIGHT, dim=dim, entries=entries, parts=parts, generator=torch.Generator().manual_seed(seed)
    )


def test_one_part_is_one_codebook():
    alone = vector_quantization(WEIGHT, dim=6, entries=4, generator=torch.Generator().manual_seed(3))
    assert torch.equal(fit(1).codes, alone.codes) and torch.equal(fit(1).codebooks, alone.codebooks)


@pytest.mark.parametrize("parts", [2, 3])
def test_nearest_of_all_products(parts):
    q = fit(parts)
    every = torch.stack([torch.cat(list(entries)) for entries in itertools.product(*q.codebooks)])
    assert every.shape == (4**parts, 6)
    best = torch.cdist(WEIGHT.reshape(-1, 6).double(), every.double()).amin(1)
    got = (WEIGHT - q.dequantize()).reshape(-1, 6).double().norm(dim=1)
    assert torch.allclose(got, best, atol=1e-6)


def test_parts_of_one_input_are_scalar_quantizers_of_their_own():
    scale = torch.tensor([1.0, 10.0]).repeat(12)
    q = product_quantization(WEIGHT * scale, dim=2, entries=4, parts=2, generator=torch.Generator().manual_seed(0))
    assert q.codebooks.shape == (2, 4, 1)
    assert q.codebooks[1].abs().max() > 5 * q.codebooks[0].abs().max()


def test_bad_input(as_user):
    for parts in (4, 0, 2.0, True, 7):
        with pytest.raises(ValueError, match="parts must"):
            fit(parts) if parts is not True else fit(True)
