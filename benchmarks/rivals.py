"""What users would otherwise take: other libraries' versions of an operation, where they are installed.

Each is asked for by the benchmark of its operation. One that is not installed is left out; one that does not work
here is left out with a line that says why. Their 4-bit formats differ from ours, as each entry says, so a result is
only asked to be as near to the product in bf16 as its format allows. Liger-Kernel has none of these operations.
"""

import importlib.util
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Version = Callable[[Tensor], Tensor]


def w4a16(weight: Tensor, group_size: int) -> Iterator[tuple[str, Version]]:
    """Yield (name, x → x Wᵀ) for products with a 4-bit weight made from ``weight`` (out, inp), bf16 on a GPU."""
    return _that_work(
        weight, group_size, {"torchao": _torchao, "gemlite": _gemlite, "bitsandbytes": _bitsandbytes_nf4}
    )


def int8(weight: Tensor) -> Iterator[tuple[str, Version]]:
    """Yield (name, x → x Wᵀ) for products in int8, quantizing x included."""
    return _that_work(weight, None, {"bitsandbytes": _bitsandbytes_int8})


def two_four(weight: Tensor) -> Iterator[tuple[str, Version]]:
    """Yield (name, x → x Wᵀ) for products with a 2:4 sparse weight on the sparse tensor cores."""
    return _that_work(weight, None, {"torch": _semi_structured})


def _that_work(weight: Tensor, group_size: int | None, makers: dict) -> Iterator[tuple[str, Version]]:
    for name, make in makers.items():
        if importlib.util.find_spec(name) is None:
            continue
        try:
            version = make(weight, group_size)
            x = torch.randn(16, weight.shape[1], device=weight.device, dtype=weight.dtype)
            error = (version(x) - x @ weight.T).norm() / (x @ weight.T).norm()
            # 4 bits of a Gaussian weight cost about a tenth of the norm; a wrong product costs more than all of it.
            if not error < 0.2:
                raise ValueError(f"relative error {float(error):.2f}")
        except Exception as problem:
            print(f"left out: {name} ({type(problem).__name__}: {problem})"[:300], flush=True)
            continue
        yield name, version


def _torchao(weight: Tensor, group_size: int) -> Version:
    """Groups with bf16 steps and zero points, in tinygemm's layout."""
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    layer = _linear(weight)
    quantize_(layer, Int4WeightOnlyConfig(group_size=group_size, int4_packing_format="tile_packed_to_4d"))
    return layer


def _gemlite(weight: Tensor, group_size: int) -> Version:
    """Affine groups as ours, steps in bf16; its kernels are tuned for each shape in the first calls."""
    from gemlite import DType, GemLiteLinear

    out, inp = weight.shape
    groups = weight.float().reshape(-1, group_size)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    step = (high - low) / 15
    zero = torch.round(-low / step)
    codes = (torch.round(groups / step) + zero).clamp(0, 15).to(torch.uint8).reshape(out, inp)
    layer = GemLiteLinear(
        4, group_size=group_size, in_features=inp, out_features=out, input_dtype=DType.BF16, output_dtype=DType.BF16
    )
    layer.pack(codes, step.to(weight.dtype).reshape(out, -1), zero.to(weight.dtype).reshape(out, -1), bias=None)
    return layer


def _bitsandbytes_nf4(weight: Tensor, group_size: int) -> Version:
    """NF4 in blocks with float32 scales: a table of 16 values, not an affine grid."""
    import bitsandbytes

    codes, state = bitsandbytes.functional.quantize_4bit(weight, blocksize=group_size, quant_type="nf4")
    return lambda x: bitsandbytes.matmul_4bit(x, codes.t(), quant_state=state)


def _bitsandbytes_int8(weight: Tensor, _: None) -> Version:
    """LLM.int8() without outlier columns: row scales on both sides."""
    import bitsandbytes

    layer = bitsandbytes.nn.Linear8bitLt(weight.shape[1], weight.shape[0], bias=False, has_fp16_weights=False)
    layer.weight = bitsandbytes.nn.Int8Params(weight.half().cpu(), requires_grad=False, has_fp16_weights=False)
    layer = layer.to(weight.device)
    return lambda x: layer(x.half()).to(x.dtype)


def _semi_structured(weight: Tensor, _: None) -> Version:
    """PyTorch's own 2:4 format, by cuSPARSELt; it pads the rows of x to what the tensor cores take."""
    return _linear(torch.sparse.to_sparse_semi_structured(weight))


def _linear(weight: Tensor) -> torch.nn.Linear:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device, dtype=weight.dtype)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return layer
