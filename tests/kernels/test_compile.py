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
        # Local memory is where spilled registers and indexed arrays go. A few registers may be put aside while the
        # subroutine of the float64 division or root runs.
        calls = count(kernel, "MUFU.RCP64H") + count(kernel, "MUFU.RSQ64H")
        assert kernel["local"] == 0 and kernel["stack"] <= (32 if calls else 0), name
        assert count(kernel, "LDL") + count(kernel, "STL") <= (16 if calls else 0), name
        # A multiprocessor has 65536 registers and 227 KB of shared memory.
        assert kernel["registers"] * kernel["warps"] * 32 <= 65536 and kernel["shared"] <= 227 * 1024, name


def test_absmax_int8_moves_16_bytes_at_a_time_and_never_divides_by_value(facts):
    (kernel,) = facts["absmax_int8"].values()
    assert count(kernel, "LDG.E.128") == 8 and count(kernel, "STG.E.128") == 4  # 64 values of each thread
    assert count(kernel, "MUFU.RCP") <= 4  # one reciprocal a row, and its slow path


def test_w4a16_matmul_unpacks_in_registers_for_the_tensor_cores(facts):
    (kernel,) = facts["w4a16_matmul"].values()
    assert count(kernel, "HMMA.16816.F32.BF16") + count(kernel, "HGMMA") >= 16
    assert count(kernel, "LDGSTS.E.BYPASS.128") > 0  # words go to shared memory 16 bytes at a time, asynchronously
    assert count(kernel, "HADD2.BF16_V2") > 0  # two codes lose their bias in one instruction
    # No code is converted as an integer: that would be one instruction on slow units for each weight.
    assert count(kernel, "I2F") == 0


@pytest.mark.parametrize("case", ["int8_matvec", "int8_matmul"])
def test_int8_matmul_uses_int8_tensor_cores(facts, case):
    (kernel,) = facts[case].values()
    assert count(kernel, "IGMMA") >= 4
    assert count(kernel, "LDGSTS.E.BYPASS.128") > 0 and count(kernel, "STG.E.128") > 0


def test_hadamard_transform_multiplies_on_tensor_cores(facts):
    for kernel in facts["hadamard_transform"].values():
        assert count(kernel, "HGMMA") + count(kernel, "HMMA") > 0
        assert count(kernel, "LDGSTS.E.BYPASS.128") > 0 and count(kernel, "STG.E.128") > 0


def test_kmeans_assign_compares_twice_for_each_score(facts):
    (kernel,) = facts["kmeans_assign"].values()
    assert count(kernel, "HGMMA") + count(kernel, "HMMA") > 0
    scores = 64 * 256 // (32 * kernel["warps"])
    assert count(kernel, "FMNMX") <= 2.5 * scores  # the maximum and its rank, and the end of the reduction
    assert count(kernel, "FSETP") <= 0.5 * scores


def test_additive_codebooks_read_entries_whole(facts):
    (decode,) = facts["additive_decode"].values()
    assert count(decode, "LDG.E.128") == 8 and count(decode, "STG.E.128") == 4  # an entry is 8 bf16, 16 bytes
    table, look_up, add = facts["additive_matvec"].values()
    assert count(table, "HMMA") > 0
    assert count(look_up, "LDG.E.128") > 0  # 16 codes at a time
    assert count(add, "LDG.E.128") > 0


def test_xnor_matmul_counts_32_signs_at_a_time(facts):
    for kernel in facts["xnor_matmul"].values():
        assert count(kernel, "POPC") == 64  # one a word of each pair of rows; the tile has 64 pairs a lane
        assert count(kernel, "I2F") == count(kernel, "FMUL") == 0


def test_onebit_matmul_takes_three_instructions_a_sign(facts):
    (kernel,) = facts["onebit_matmul"].values()
    signs = 4 * 128 * 32 // 32  # a lane's in one round
    assert signs <= count(kernel, "FADD") <= 1.1 * signs and count(kernel, "LOP3") <= 1.1 * signs
    assert count(kernel, "SHF.L") + count(kernel, "IMAD.SHL") <= signs
    assert count(kernel, "I2F") == 0 and count(kernel, "BAR") == 0  # no conversion, and no shared memory in the loop
    assert count(kernel, "LDG.E.128") >= 33  # a word of signs and 32 planes of numbers, four at a time


def test_soft_target_loss_keeps_everything_in_registers(facts):
    for kernel in facts["soft_target_loss"].values():
        each = 4096 // (32 * kernel["warps"])  # numbers of a lane in a block
        assert count(kernel, "MUFU.EX2") <= 6.5 * each  # four in the first pass, at most two in the second
        assert kernel["shared"] <= 1024  # for the sums over the row only


def test_nf4_matmul_looks_codes_up_in_shared_memory(facts):
    for kernel in facts["nf4_matmul"].values():
        assert count(kernel, "HMMA") + count(kernel, "HGMMA") > 0
        assert count(kernel, "LDS.U16") >= 16
        assert count(kernel, "I2F") <= 4  # in the division that finds the block of a scale; none for the codes


def test_two_four_matmul_selects_in_registers_for_the_tensor_cores(facts):
    for kernel in facts["two_four_matmul"].values():
        assert count(kernel, "HMMA") + count(kernel, "HGMMA") >= 4  # a plane each
        assert count(kernel, "LDGSTS.E.BYPASS.128") > 0 and count(kernel, "I2F") == 0


def test_sparse_gated_mlp_sums_in_float32_without_conversions_of_integers(facts):
    for kernel in facts["sparse_gated_mlp"].values():
        assert count(kernel, "LDG.E.128") > 0 and count(kernel, "FFMA") > 0 and count(kernel, "I2F") == 0


def test_llm_int8_uses_both_kinds_of_tensor_cores(facts):
    for name, kernel in facts["llm_int8"].items():
        if kernel["shared"] > 1024:  # the product; the other kernel quantizes x
            assert count(kernel, "IGMMA") + count(kernel, "IMMA") > 0, name
            assert count(kernel, "HMMA") + count(kernel, "HGMMA") > 0, name


@pytest.mark.parametrize("case", ["gptq", "sparsegpt", "quantized_sparsegpt"])
def test_a_block_of_the_sweep_stays_in_the_registers_of_one_warp(facts, case):
    for name, kernel in facts[case].items():
        assert kernel["warps"] == 1, name  # so that its barriers wait for nobody
        assert kernel["shared"] <= 64, name  # nothing of the tile: the codes or values of a column on their way out
        assert count(kernel, "LDG.E.128") >= 5, name  # four rows of the tile, and one of U
        # A multiply-add moves a weight: the tile of 4 rows has 16 a lane.
        assert count(kernel, "FFMA") + count(kernel, "DFMA") >= 16, name


@pytest.mark.parametrize("case", ["exact_obs", "obq"])
def test_a_row_of_128_inputs_is_one_warp_without_a_barrier_of_several(facts, case):
    single = list(facts[case].values())[:2]
    assert [kernel["warps"] for kernel in single] == [1, 1]
    for kernel in facts[case].values():
        assert count(kernel, "LDG.E.128") > 0  # elimination vectors, 16 bytes a thread
