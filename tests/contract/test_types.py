"""A reader's own script is checked against the library's types, as an editor would."""

import subprocess
import sys

import pytest

SCRIPT = """
import torch
from mlcomp.layerwise import is_layer, weight_matrix
from mlcomp.models import convnet
from mlcomp.prune import global_magnitude
from mlcomp.quant import gptq, quantization_snr, rtn

reveal_type(rtn(torch.randn(2, 4), bits=4))
reveal_type(gptq(torch.randn(2, 4), torch.eye(4), bits=4).dequantize())
reveal_type(global_magnitude([torch.randn(2)], sparsity=0.5))
model = convnet()
reveal_type(model)
for module in model.modules():
    if is_layer(module):
        reveal_type(weight_matrix(module))
quantization_snr(torch.randn(9), bits=2)
rtn(torch.randn(2, 4), bits="4")
weight_matrix(model)
"""


@pytest.mark.slow  # mypy reads torch's types anew for each configuration: about 15 seconds
def test_a_script_sees_the_types(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "--follow-imports", "silent"]
    done = subprocess.run([*command, str(tmp_path / "script.py")], capture_output=True, text=True)
    told = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    assert [line.partition('"')[2].strip('"') for line in told if "Revealed type" in line] == [
        "mlcomp.quant.quantized.Quantized",
        "torch._tensor.Tensor",
        "list[torch._tensor.Tensor]",
        "mlcomp.models.convnet.ConvNet",
        "torch._tensor.Tensor",
    ]
    errors = [line for line in told if line.startswith("error")]
    assert len(errors) == 2, done.stdout  # the two wrong calls, and nothing about the right ones
    assert '"rtn" has incompatible type "str"; expected "int"' in errors[0]
    assert '"weight_matrix" has incompatible type "ConvNet"' in errors[1]
