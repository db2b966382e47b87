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


def gptq():
    from mlcomp.kernels.gptq import gptq

    for dtype in (torch.float32, torch.float64):
        gptq(torch.ones(16, 128), torch.eye(128), bits=4, group_size=128, dtype=dtype)


def sparsegpt():
    from mlcomp.kernels.sparsegpt import sparsegpt

    # The last has a block that is not whole.
    for inp, target in ((128, {"sparsity": 0.5}), (128, {"pattern": (2, 4)}), (80, {"sparsity": 0.5})):
        for dtype in (torch.float32, torch.float64):
            with suppress(ValueError):  # nothing is launched, so the result holds garbage
                sparsegpt(torch.ones(16, inp), torch.eye(inp), dtype=dtype, **target)


def quantized_sparsegpt():
    from mlcomp.kernels.quantized_sparsegpt import quantized_sparsegpt

    for target in ({"sparsity": 0.5}, {"pattern": (2, 4)}):
        quantized_sparsegpt(torch.ones(16, 128), torch.eye(128), bits=4, **target)


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


def _signs(rows, columns):
    from mlcomp.formats.xnor_matmul import PackedSigns

    return PackedSigns(torch.empty(rows, columns // 8, dtype=torch.uint8), columns)


def xnor_matmul():
    from mlcomp.kernels.xnor_matmul import xnor_matmul

    for rows in (1, 8):
        xnor_matmul(_signs(rows, 4096), _signs(14336, 4096))


def onebit_matmul():
    from mlcomp.kernels.onebit_matmul import onebit_matmul

    x, rows = torch.zeros(1, 4096, dtype=BF16), torch.zeros(14336)
    onebit_matmul(x, _signs(14336, 4096), rows, torch.zeros(4096))


def soft_target_loss():
    from mlcomp.kernels.soft_target_loss import soft_target_loss

    logits = [torch.empty(64, 128256, dtype=BF16) for _ in range(2)]
    for direction in ("forward", "reverse"):
        soft_target_loss(*logits, temperature=2.0, direction=direction)


def nf4_matmul():
    from mlcomp.kernels.nf4_matmul import nf4_matmul
    from mlcomp.quant.scalar.nf4_matmul import PackedNF4

    out, inp = 14336, 4096
    blocks = out * inp // 64
    weight = PackedNF4(
        torch.empty(out, inp // 2, dtype=torch.uint8), torch.empty(blocks, dtype=torch.uint8),
        torch.empty(blocks // 256), 0.1, 64, 256, "nf4", "dynamic",
    )  # fmt: skip
    for tokens in (1, 16):
        nf4_matmul(torch.empty(tokens, inp, dtype=BF16), weight)


def two_four_matmul():
    from mlcomp.formats import TwoFour
    from mlcomp.kernels.two_four_matmul import two_four_matmul

    out, inp = 14336, 4096
    weight = object.__new__(TwoFour)  # the places are not written, so a check of them would fail
    object.__setattr__(weight, "values", torch.empty(out, inp // 2, dtype=BF16))
    object.__setattr__(weight, "metadata", torch.empty(out * inp // 8, dtype=torch.uint8))
    for tokens in (1, 16):
        two_four_matmul(torch.empty(tokens, inp, dtype=BF16), weight)


def sparse_gated_mlp():
    from mlcomp.kernels.sparse_gated_mlp import sparse_gated_mlp

    inp, hidden = 4096, 14336
    gate, up, down = (torch.zeros(hidden, inp, dtype=BF16) for _ in range(3))
    sparse_gated_mlp(torch.zeros(1, inp, dtype=BF16), gate, up, down.T, 0.1)


def llm_int8():
    from mlcomp.formats.absmax_int8 import AbsmaxInt8
    from mlcomp.kernels.llm_int8 import llm_int8

    weight = AbsmaxInt8(torch.empty(14336, 4096, dtype=torch.int8), torch.empty(14336, 1))
    for tokens in (1, 4096):
        llm_int8(torch.zeros(tokens, 4096, dtype=BF16), weight)
