import pytest
import torch

from mlcomp.formats import TwoFour
from mlcomp.formats import two_four_matmul as reference
from mlcomp.kernels.launch import INTERPRETED
from mlcomp.kernels.two_four_matmul import two_four_matmul
from mlcomp.prune import magnitude

# Root mean square of the error over that of the result: one rounding, and a little for the sum.
BOUND = {torch.float16: 1e-3, torch.bfloat16: 5e-3}
DTYPES = [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.skipif(INTERPRETED, reason="needs a GPU"))]


def sparse(weight):
    return TwoFour.from_dense(magnitude(weight, pattern=(2, 4)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 17])
@pytest.mark.parametrize(("out", "inp"), [(67, 1024), (5, 8), (70, 200), (130, 128), (3, 1608)])
def test_equals_the_reference(random, tokens, out, inp, dtype):
    weight = sparse(random(out, inp, dtype=dtype))
    x = random(tokens, inp, dtype=dtype, seed=1)
    y = two_four_matmul(x, weight)
    want = x.double() @ weight.dequantize().double().T
    assert y.dtype == dtype and (y.double() - want).norm() <= BOUND[dtype] * want.norm()
    assert (y.float() - reference(x, weight).float()).norm() <= 2 * BOUND[dtype] * want.norm()


def test_every_pair_of_places_meets_its_columns(device):
    # All six pairs of places, and blocks with one value or none; a row of x picks one column.
    rows = [
        [1, 2, 0, 0],
        [3, 0, 4, 0],
        [5, 0, 0, 6],
        [0, 7, 8, 0],
        [0, 9, 0, 10],
        [0, 0, 11, 12],
        [0, 0, 0, 13],
        [0] * 4,
    ]
    w = torch.tensor([row + rows[-i] for i, row in enumerate(rows)], dtype=torch.float16, device=device)
    y = two_four_matmul(torch.eye(8, device=device).half(), TwoFour.from_dense(w))
    assert torch.equal(y.T, w)


def test_strided_activations_and_no_token(random):
    weight = sparse(random(8, 128, dtype=torch.float16))
    x = random(128, 3, dtype=torch.float16).T
    assert torch.equal(two_four_matmul(x, weight), two_four_matmul(x.contiguous(), weight))
    assert two_four_matmul(x[:0], weight).shape == (0, 8)


def test_bad_input(random, as_user):
    weight = sparse(random(8, 128, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"\(tokens, 128\)"):
        two_four_matmul(random(1, 64, dtype=torch.float16), weight)
    with pytest.raises(TypeError, match=r"float16.*float32"):
        two_four_matmul(random(1, 128), weight)
    with pytest.raises(TypeError, match=r"float16.*float32"):
        two_four_matmul(random(1, 128, dtype=torch.float16), sparse(random(8, 128)))
    with pytest.raises(ValueError, match="multiple of 8, got 12"):
        two_four_matmul(random(1, 12, dtype=torch.float16), sparse(random(8, 12, dtype=torch.float16)))
