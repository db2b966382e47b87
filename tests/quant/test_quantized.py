import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcomp.formats import pack, unpack
from mlcomp.quant import Quantized, rtn


def packed_parts(q: Quantized) -> dict[str, torch.Tensor]:
    """What would really be stored."""
    parts = {"codes": pack(q.codes, q.bits), "step": q.step}
    if not q.symmetric:
        parts["zero"] = pack(q.zero.long(), q.bits)
    if q.group is not None and q.step.shape[1] > 1:
        parts["group"] = pack(q.group, (q.step.shape[1] - 1).bit_length())
    return parts


@given(
    st.integers(1, 8), st.integers(1, 5), st.sampled_from([None, 1, 3, 4, 12]), st.booleans(), st.integers(0, 2**31)
)
def test_nbytes_is_the_size_of_the_packed_parts(bits, out, group_size, symmetric, seed):
    weight = torch.randn(out, 12, generator=torch.Generator().manual_seed(seed))
    q = rtn(weight, bits=bits, group_size=group_size, symmetric=symmetric)
    parts = packed_parts(q)
    assert q.nbytes == sum(part.nbytes for part in parts.values())
    assert q.bits_per_weight == q.nbytes * 8 / weight.numel()
    # The parts are enough to decode.
    zero = q.zero
    if not symmetric:
        zero = unpack(parts["zero"], bits, tuple(q.zero.shape)).float()
    again = Quantized(unpack(parts["codes"], bits, (out, 12)), parts["step"], zero, bits, symmetric)
    assert torch.equal(again.dequantize(), q.dequantize())


@pytest.mark.parametrize("groups", [1, 2, 3, 5])
def test_explicit_groups_decode_and_are_paid_for(groups):
    g = torch.Generator().manual_seed(0)
    index = torch.randint(0, groups, (10,), generator=g)
    q = Quantized(
        torch.randint(0, 8, (4, 10), generator=g).to(torch.uint8),
        torch.rand(4, groups, generator=g),
        torch.randint(0, 8, (4, groups), generator=g).float(),
        3,
        False,
        index,
    )
    assert q.nbytes == sum(part.nbytes for part in packed_parts(q).values())
    decoded = q.dequantize()
    for i in range(4):
        for j in range(10):
            k = index[j]
            assert decoded[i, j] == (q.codes[i, j].float() - q.zero[i, k]) * q.step[i, k]


def test_one_grid_for_the_tensor_broadcasts():
    q = rtn(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), bits=4, per_tensor=True)
    assert q.step.shape == (1, 1)
    assert torch.equal(q.dequantize(), (q.codes.float() - q.zero) * q.step)


def test_size_by_hand():
    # 128 weights in 4 bits, symmetric, groups of 32: 64 bytes of codes, 4 float32 steps.
    q = rtn(torch.ones(1, 128), bits=4, group_size=32, symmetric=True)
    assert q.nbytes == 64 + 16 and q.bits_per_weight == 5
    # Asymmetric: four zero codes of 4 bits more.
    assert rtn(torch.ones(1, 128), bits=4, group_size=32).nbytes == 82
