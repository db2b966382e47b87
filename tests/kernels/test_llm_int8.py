import math

import pytest
import torch

from mlcomp.formats import absmax_int8
from mlcomp.kernels.launch import INTERPRETED
from mlcomp.kernels.llm_int8 import llm_int8
from mlcomp.quant import llm_int8 as reference
from mlcomp.quant import outlier_columns

# Root mean square of the error over that of the result: the rounding of the result, and of decoded columns.
BOUND = {torch.float16: 1e-3, torch.bfloat16: 5e-3}
DTYPES = [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.skipif(INTERPRETED, reason="needs a GPU"))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 19])
@pytest.mark.parametrize(("out", "inp", "outliers"), [(67, 512, 0), (70, 300, 1), (5, 40, 40), (130, 256, 64)])
@pytest.mark.parametrize("stored", [True, False])
def test_equals_the_reference(random, tokens, out, inp, outliers, dtype, stored):
    x, w = random(tokens, inp, dtype=dtype).clamp(-4, 4), random(out, inp, dtype=dtype, seed=1)
    chosen = torch.randperm(inp)[:outliers].to(x.device)
    x[0, chosen] = 20.0
    assert len(outlier_columns(x)) == outliers
    weight = absmax_int8(w, -1) if stored else w
    y, want = llm_int8(x, weight), reference(x.float(), weight if stored else w.float())
    assert y.dtype == dtype and y.shape == want.shape
    assert (y.float() - want).norm() <= BOUND[dtype] * want.norm()


def test_the_threshold_decides(random):
    x, w = 3 * random(4, 128, dtype=torch.float16), absmax_int8(random(8, 128), -1)
    for threshold in (0.001, 4.0, math.inf):
        want = reference(x.float(), w, threshold=threshold)
        assert (llm_int8(x, w, threshold=threshold).float() - want).norm() <= 1e-3 * want.norm()


def test_bad_input(random, as_user):
    w = absmax_int8(random(8, 128), -1)
    with pytest.raises(ValueError, match="128"):
        llm_int8(random(1, 64, dtype=torch.float16), w)
    with pytest.raises(TypeError, match=r"float16.*float32"):
        llm_int8(random(1, 128), w)
    with pytest.raises(ValueError, match="threshold"):
        llm_int8(random(1, 128, dtype=torch.float16), w, threshold=0)
