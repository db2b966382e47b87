"""Every kernel compiles for sm_90 without a GPU, and the machine code is what was meant."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CASES = re.findall(r"^def ([a-z]\w*)\(\):", (HERE / "compile_cases.py").read_text(), flags=re.MULTILINE)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def facts():
    """Compile everything once, in a process without the interpreter: {case: {kernel: facts}}."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    names = [f"compile_cases:{case}" for case in CASES]
    run = subprocess.run(
        [sys.executable, HERE / "compile_sm90.py", *names], env=env, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


def count(kernel, prefix):
    return sum(n for name, n in kernel["sass"].items() if name.startswith(prefix))


@pytest.mark.parametrize("case", CASES)
def test_compiles_without_spills(facts, case):
    assert facts[case], "no kernel was launched"
    for name, kernel in facts[case].items():
        # Local memory is where spilled registers and indexed arrays go.
        assert kernel["stack"] == kernel["local"] == 0, name
        assert count(kernel, "LDL") == count(kernel, "STL") == 0, name
        # A multiprocessor has 65536 registers and 227 KB of shared memory.
        assert kernel["registers"] * kernel["warps"] * 32 <= 65536 and kernel["shared"] <= 227 * 1024, name


def test_absmax_int8_moves_16_bytes_at_a_time_and_never_divides_by_value(facts):
    (kernel,) = facts["absmax_int8"].values()
    assert count(kernel, "LDG.E.128") == 4 and count(kernel, "STG.E.128") == 2  # 32 values of each thread
    assert count(kernel, "MUFU.RCP") <= 4  # one reciprocal a row, and its slow path
    # Two blocks of 16 warps on a multiprocessor, so that one loads while the other computes.
    assert kernel["registers"] <= 64
