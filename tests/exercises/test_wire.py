import json

import numpy as np
import pytest
import torch

from mlcomp.grading import wire


def through(value):
    frame = wire.pack({"value": value})
    text, _ = wire.HEADER.unpack_from(frame)
    body = frame[wire.HEADER.size :]
    return wire.unpack(body[:text], body[text:])["value"]


@pytest.mark.parametrize("value", [None, True, 3, -2.5, "ü", [1, (2, "x")], {"a": [None]}, float("inf"), [], ()])
def test_plain_values_come_back(value):
    assert through(value) == value and type(through(value)) is type(value)


@pytest.mark.parametrize("dtype", wire.TENSOR_DTYPES.values())
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)])
def test_tensors_come_back(dtype, shape):
    value = (10 * torch.rand(shape)).to(dtype)
    back = through(value)
    assert back.dtype == dtype and back.shape == value.shape and torch.equal(back, value)


def test_views_parameters_and_arrays_come_back():
    matrix = torch.arange(12.0).reshape(3, 4)
    assert torch.equal(through(matrix.T), matrix.T)
    assert torch.equal(through(torch.nn.Parameter(matrix)), matrix)
    assert through([matrix[0], matrix[1]])[1].tolist() == matrix[1].tolist()
    back = through(np.arange(6, dtype=np.int32).reshape(2, 3)[:, ::-1])
    assert back.dtype == np.int32 and back.tolist() == [[2, 1, 0], [5, 4, 3]]
    assert through(np.float32(0.5)) == 0.5


def test_other_types_are_refused():
    for value in (object(), {1: 2}, torch.zeros(2, dtype=torch.complex64), np.array(["a"]), lambda: 0):
        with pytest.raises(wire.WireError):
            wire.pack({"value": value})
    deep = []
    for _ in range(20):
        deep = [deep]
    with pytest.raises(wire.WireError, match="nested"):
        wire.pack({"value": deep})


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "tensor", "dtype": "float32", "shape": [100], "start": 0},
        {"kind": "tensor", "dtype": "float32", "shape": [-1], "start": 0},
        {"kind": "tensor", "dtype": "float32", "shape": [2**70], "start": 0},
        {"kind": "tensor", "dtype": "float32", "shape": [1.5], "start": 0},
        {"kind": "tensor", "dtype": "float32", "shape": [1], "start": -1},
        {"kind": "tensor", "dtype": "object", "shape": [1], "start": 0},
        {"kind": "ndarray", "dtype": "O", "shape": [1], "start": 0},
        {"kind": "pickle", "dtype": "O", "shape": [1], "start": 0},
        {"kind": "list"},
        {"no": "kind"},
        [3],
    ],
)
def test_forged_frames_are_refused(value):
    text = json.dumps({"kind": "dict", "items": {"value": value}}).encode()
    with pytest.raises(wire.WireError):
        wire.unpack(text, b"1234")
