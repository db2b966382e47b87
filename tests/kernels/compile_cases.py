"""What test_compile.py compiles: each public function launches one operation's kernels at one real shape."""

from contextlib import suppress

import torch

BF16 = torch.bfloat16


def absmax_int8():
    from mlcomp.kernels.absmax_int8 import absmax_int8

    absmax_int8(torch.empty(4096, 14336, dtype=BF16), -1)


def _packed_w4():
    from mlcomp.quant.w4a16 import PackedW4

    out, inp, group = 14336, 4096, 128
    words = torch.empty(out, inp // 8, dtype=torch.int32)
    return PackedW4(words, torch.empty(inp // group, out, dtype=torch.int32), inp, 32)


def w4a16_matmul():
    from mlcomp.kernels.w4a16_matmul import w4a16_matmul

    w4a16_matmul(torch.empty(16, 4096, dtype=BF16), _packed_w4())


def int8_matvec():
    _int8(1)


def int8_matmul():
    _int8(4096)


def _int8(tokens):
    from mlcomp.formats.absmax_int8 import AbsmaxInt8
    from mlcomp.kernels.int8_matmul import int8_matmul

    x, w = (AbsmaxInt8(torch.empty(n, 4096, dtype=torch.int8), torch.empty(n, 1)) for n in (tokens, 14336))
    int8_matmul(x, w, dtype=BF16)


def exact_obs():
    from mlcomp.kernels.exact_obs import exact_obs

    for dtype in (torch.float32, torch.float64):
        exact_obs(torch.ones(8, 128), torch.eye(128), sparsity=0.5, scope="row", dtype=dtype)
    exact_obs(torch.ones(8, 576), torch.eye(576), pattern=(2, 4))
    with suppress(ValueError, RuntimeError):  # nothing is launched, so the trace holds garbage
        exact_obs(torch.ones(8, 576), torch.eye(576), sparsity=0.5)


def obq():
    from mlcomp.kernels.obq import obq

    for dtype in (torch.float32, torch.float64):
        obq(torch.ones(8, 128), torch.eye(128), bits=4, dtype=dtype)
    obq(torch.ones(8, 576), torch.eye(576), bits=4)


def hadamard_transform():
    from mlcomp.kernels.hadamard_transform import hadamard_transform

    hadamard_transform(torch.empty(8192, 4096, dtype=BF16))
    hadamard_transform(torch.empty(8192, 4096))
    hadamard_transform(torch.empty(4096, 14336, dtype=BF16))


def kmeans_assign():
    from mlcomp.kernels.kmeans_assign import kmeans_assign

    kmeans_assign(torch.empty(2_000_000, 8, dtype=BF16), torch.zeros(256, 8))


def _additive():
    from mlcomp.formats.additive_codebook import AdditiveCodes

    codes = torch.empty(14336, 512, 2, dtype=torch.uint8)
    return AdditiveCodes(codes, torch.zeros(2, 256, 8, dtype=BF16), torch.empty(14336))


def additive_decode():
    from mlcomp.kernels.additive_decode import additive_decode

    additive_decode(_additive())


def additive_matvec():
    from mlcomp.kernels.additive_matvec import additive_matvec

    additive_matvec(torch.zeros(4096, dtype=BF16), _additive())
