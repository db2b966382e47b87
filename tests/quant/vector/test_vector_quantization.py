import torch

from mlcomp.quant import kmeans, vector_quantization


def test_is_k_means_on_the_vectors_of_all_rows():
    weight = torch.randn(10, 24, generator=torch.Generator().manual_seed(0))
    q = vector_quantization(weight, dim=3, entries=7, generator=torch.Generator().manual_seed(5))
    fit = kmeans(weight.reshape(-1, 3), 7, generator=torch.Generator().manual_seed(5))
    assert torch.equal(q.dequantize(), fit.decode().reshape(10, 24))
    nearest = torch.cdist(weight.reshape(-1, 3), q.codebooks[0]).argmin(1)
    assert torch.equal(q.codes[:, 0].long(), nearest)


def test_correlated_inputs_cost_a_scalar_quantizer_more():
    g = torch.Generator().manual_seed(0)
    pairs = torch.randn(2000, 1, generator=g) + 0.2 * torch.randn(2000, 2, generator=g)
    weight = pairs.reshape(100, 40)
    vectors = vector_quantization(weight, dim=2, entries=16, generator=g).dequantize()
    scalars = vector_quantization(weight, dim=1, entries=4, generator=g).dequantize()  # 2 bits a weight, both
    assert (weight - vectors).square().sum() < 0.5 * (weight - scalars).square().sum()
