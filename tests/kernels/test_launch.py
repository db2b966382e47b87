import os
import subprocess
import sys

import pytest
import torch

from mlcomp.kernels import interpret_without_gpu
from mlcomp.kernels.launch import check_devices


def fresh(code, **env):
    """Run code in a fresh Python; return its output, errors included."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | env
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_package_imports_without_triton_and_a_kernel_says_what_is_missing():
    code = """
import sys
sys.modules["triton"] = None  # as if it were not installed
import mlcomp.kernels
print("package fine")
import mlcomp.kernels.absmax_int8
"""
    out = fresh(code)
    assert "package fine" in out and "ImportError: the kernels need Triton" in out and "pip install" in out


def test_importing_the_package_imports_no_triton_and_changes_no_setting():
    code = "import os, sys, mlcomp.kernels; print('triton' in sys.modules, os.environ.get('TRITON_INTERPRET'))"
    assert fresh(code).strip() == "False None"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_too_late_for_the_interpreter_is_an_error():
    code = "import triton; from mlcomp.kernels import interpret_without_gpu as f; f()"
    assert "RuntimeError: Triton has been imported already" in fresh(code)
    assert interpret_without_gpu() is True  # here it was in time


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_cpu_tensors_without_the_interpreter_are_an_error():
    code = """
import torch
from mlcomp.kernels.absmax_int8 import absmax_int8
absmax_int8(torch.ones(2, 3), -1)
"""
    assert "ValueError: the kernel runs on a GPU" in fresh(code)


def test_checks(device, as_user):
    x = torch.ones(2, device=device)
    check_devices(x=x, y=x)
    with pytest.raises(ValueError, match="on one device"):
        check_devices(x=x, y=torch.ones(2, device="meta"))
    with pytest.raises(TypeError, match=r"y must be a torch\.Tensor, got int"):
        check_devices(x=x, y=1)
