"""The page *Many layers at once*: tables of the committed file, numbers that add up, an example that runs."""

import os
import re
import subprocess
import sys

import pytest

from benchmarks.scaling_out import BLOCKS, PAGE, SHAPES, WORKERS, makespan, newest, tables, write
from benchmarks.workers import CASES, Scale, measure

TEXT = PAGE.read_text(encoding="utf-8")


def test_the_page_holds_the_newest_measurements(tmp_path):
    rows = newest()
    assert list(rows) == list(CASES)
    for name, table in tables(rows).items():
        assert f"<!-- {name}: begin -->\n{table}<!-- {name}: end -->" in TEXT
    copy = tmp_path / "page.md"
    copy.write_text(TEXT, encoding="utf-8")
    write(copy)
    assert copy.read_text(encoding="utf-8") == TEXT


def test_the_numbers_in_the_text_add_up():
    weights = BLOCKS * sum(out * inp for out, inp in SHAPES.values())
    assert round(weights / 1e9, 1) == 68.5 and "68.5 billion weights" in TEXT
    # The same from the model's description: 64 heads of 128, 8 for keys and values, three matrices in the MLP.
    assert weights == 80 * (2 * 8192 * 64 * 128 + 2 * 8192 * 8 * 128 + 3 * 8192 * 28672)
    assert BLOCKS * len(SHAPES) == 560 and WORKERS - len(SHAPES) == 57
    own = 4 * (3 * 8192**2 + 28672**2) / 1e9  # of q, k and v; of o; of gate and up; of down
    assert f"{own:.1f} GB" == "4.1 GB" and "H of a block 4.1 GB" in TEXT
    assert round(weights * 3 / 8 / 1e9) == 26 and round(2 * weights / 1e9) == 137
    tokens = 128 * 2048
    assert tokens == 262_144 and round(tokens * 8192 * 2 / 1e9, 1) == 4.3
    assert f"{2 * weights * tokens:.1e}" == "3.6e+16"
    sums = 2 * tokens * (3 * 8192**2 + 28672**2) * BLOCKS
    assert f"{sums:.1e}" == "4.3e+16"
    serial = 2 * 2 * weights * tokens + sums
    assert round(serial / 1e18, 1) == 0.1 and 1 < serial / 1e12 / 86400 < 1.5 and 1.5 < serial / 1e15 / 60 < 2.5


def test_the_longest_first():
    assert (
        makespan([3.0, 2.0, 2.0], 2) == 4.0 and makespan([3.0, 2.0, 2.0], 9) == 3.0 and makespan([1.0] * 5, 1) == 5.0
    )


def test_a_case_is_measured_and_weighed():
    row = measure("rtn", {1: map, 2: Scale()}, 1)
    width = CASES["rtn"][1]
    assert 4 * width**2 / 1e6 <= row["sent_mb"] < 4 * width**2 / 1e6 + 0.005  # W; rounding sees no H
    assert row["work_cpu_s"] > 0 and row["ship_cpu_s"] > 0 and row["ratio_1"] > 0


@pytest.mark.slow
def test_the_example_runs_as_it_stands(tmp_path):
    script = tmp_path / "layers.py"
    script.write_text(re.findall(r"```python\n(.*?)```", TEXT, re.S)[0], encoding="utf-8")
    there = {**os.environ, "PYTHONPATH": str(PAGE.parents[1])}
    done = subprocess.run([sys.executable, script.name], cwd=tmp_path, env=there, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "compressed 92.1% of 213 568 weights" in done.stdout and len(list((tmp_path / "half").iterdir())) == 17
