"""Values between the grader and a student's process: plain numbers, containers and arrays, never pickle.

A frame is 8 bytes of lengths, a JSON text and a binary part; arrays lie in the binary part and the JSON holds their
kind, dtype, shape and place. Decoding builds only the types named here, so a reply can be wrong but cannot act.
"""

import json
import math
import struct
from typing import Any

import numpy as np
import torch

HEADER = struct.Struct(">II")
MAX_FRAME = 64 * 2**20
MAX_TEXT = 8 * 2**20  # its JSON: as Python objects it takes many times its size
MAX_DEPTH = 8
MAX_ITEMS = 100_000

TENSOR_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool),
    )
}
ARRAY_DTYPES = {"float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"}


class WireError(Exception):
    """A value cannot be sent, or what came is not a value."""


def pack(message: dict[str, Any]) -> bytes:
    """Return the frame of a message, whose values are anything that :func:`unpack` can give back."""
    blobs: list[bytes] = []
    text = json.dumps(_encode(message, blobs, 0)).encode()
    binary = b"".join(blobs)
    if len(text) > MAX_TEXT or len(text) + len(binary) > MAX_FRAME:
        raise WireError(
            f"the value takes {len(text) + len(binary)} bytes; {MAX_FRAME} is the limit, {MAX_TEXT} without arrays"
        )
    return HEADER.pack(len(text), len(binary)) + text + binary


def unpack(text: bytes, binary: bytes) -> dict[str, Any]:
    """Return the message of a frame's two parts; raise WireError whatever is wrong with them."""
    try:
        message = _decode(json.loads(text), binary, [0], 0)
    except WireError:
        raise
    except Exception as error:
        raise WireError(f"not a message: {error}") from error
    if not isinstance(message, dict):
        raise WireError(f"a message is a dict, got {type(message).__name__}")
    return message


def _encode(value: Any, blobs: list[bytes], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise WireError(f"containers are nested more than {MAX_DEPTH} deep")
    if isinstance(value, torch.Tensor):
        return _encode_tensor(value, blobs)
    if isinstance(value, np.ndarray):
        if value.dtype.name not in ARRAY_DTYPES:
            raise WireError(f"an array of dtype {value.dtype} cannot be graded")
        return _array("ndarray", value.dtype.name, value.shape, np.ascontiguousarray(value).tobytes(), blobs)
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {"kind": kind, "items": [_encode(v, blobs, depth + 1) for v in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"kind": "dict", "items": {key: _encode(v, blobs, depth + 1) for key, v in value.items()}}
    raise WireError(f"a value of type {type(value).__name__} cannot be graded; return tensors, numbers or lists")


def _encode_tensor(value: torch.Tensor, blobs: list[bytes]) -> dict[str, Any]:
    name = str(value.dtype).removeprefix("torch.")
    if name not in TENSOR_DTYPES or value.layout != torch.strided:
        raise WireError(f"a tensor of dtype {value.dtype} and layout {value.layout} cannot be graded")
    flat = value.detach().resolve_conj().cpu().contiguous().reshape(-1)
    return _array("tensor", name, tuple(value.shape), flat.view(torch.uint8).numpy().tobytes(), blobs)


def _array(kind: str, dtype: str, shape: tuple[int, ...], data: bytes, blobs: list[bytes]) -> dict[str, Any]:
    start = sum(len(blob) for blob in blobs)
    blobs.append(data)
    return {"kind": kind, "dtype": dtype, "shape": list(shape), "start": start}


def _decode(value: Any, binary: bytes, count: list[int], depth: int) -> Any:
    count[0] += 1
    if depth > MAX_DEPTH or count[0] > MAX_ITEMS:
        raise WireError(f"more than {MAX_ITEMS} items, or nested more than {MAX_DEPTH} deep")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    kind = value["kind"]
    if kind in ("list", "tuple"):
        items = [_decode(v, binary, count, depth + 1) for v in value["items"]]
        return tuple(items) if kind == "tuple" else items
    if kind == "dict":
        return {key: _decode(v, binary, count, depth + 1) for key, v in value["items"].items()}
    return _decode_array(kind, value, binary)


def _decode_array(kind: str, value: dict[str, Any], binary: bytes) -> torch.Tensor | np.ndarray:
    shape, start, name = value["shape"], value["start"], value["dtype"]
    if not all(type(n) is int and n >= 0 for n in (*shape, start)) or len(shape) > MAX_DEPTH:
        raise WireError("an array's shape and place must be whole numbers")
    if kind == "ndarray":
        if name not in ARRAY_DTYPES:
            raise WireError(f"no array dtype {name!r}")
        itemsize = np.dtype(name).itemsize
    elif kind == "tensor":
        if name not in TENSOR_DTYPES:
            raise WireError(f"no tensor dtype {name!r}")
        itemsize = TENSOR_DTYPES[name].itemsize
    else:
        raise WireError(f"no such kind of value: {kind!r}")
    data = binary[start : start + itemsize * math.prod(shape)]
    if len(data) != itemsize * math.prod(shape):
        raise WireError("an array reaches outside its frame")
    if kind == "ndarray":
        return np.frombuffer(bytearray(data), dtype=name).reshape(shape)
    if not data:
        return torch.empty(shape, dtype=TENSOR_DTYPES[name])
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(TENSOR_DTYPES[name]).reshape(shape)
