import csv
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import benchmarks.kernels
from benchmarks.measure import Case, Limits, Timer
from benchmarks.record import RESULTS

OPERATIONS = sorted(module.name for module in pkgutil.iter_modules(benchmarks.kernels.__path__))


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_cases_that_agree_on_a_cpu(name):
    cases = list(importlib.import_module(f"benchmarks.kernels.{name}").cases(torch.device("cpu")))
    assert cases
    for case in cases:
        case.check()
        assert case.operation == name and case.nbytes > 0 and case.work > 0 and "kernel" not in case.versions


def test_the_limit_is_the_larger_time():
    limits = Limits(bandwidth=100, rate={"bf16": 1000})
    case = Case("x", "", "", {}, lambda: None, nbytes=50, work=100, unit="bf16")
    assert limits.seconds(case) == (0.5, "bytes")
    case = Case("x", "", "", {}, lambda: None, nbytes=5, work=100, unit="bf16")
    assert limits.seconds(case) == (0.1, "bf16")


def test_quantiles_are_in_order():
    timing = Timer(torch.device("cpu"), 0.01)(lambda: torch.ones(1000).sum())
    assert 0 < timing.low <= timing.median <= timing.high


def test_the_runner_appends_rows_that_say_where_they_come_from(tmp_path):
    path = tmp_path / "new" / "results.csv"
    command = [sys.executable, "-m", "benchmarks", "additive_decode", "--device", "cpu", "--seconds", "0.01"]
    root = Path(__file__).parents[1]
    for _ in range(2):
        done = subprocess.run([*command, "--output", str(path)], cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    header = RESULTS.read_text(encoding="utf-8").partition("\n")[0].split(",")
    assert len(rows) == 2 and list(rows[0]) == header  # so that the committed file can be appended to
    assert rows[0]["device"].startswith("CPU") and rows[0]["commit"] and rows[0]["torch"] == torch.__version__
    # The table keeps three decimals of the share: half a unit of the last one.
    limit, median = float(rows[0]["limit_us"]), float(rows[0]["median_us"])
    assert limit > 0 and float(rows[0]["share"]) == pytest.approx(limit / median, rel=1e-3, abs=5e-4)


def test_an_unknown_operation_is_an_error():
    done = subprocess.run([sys.executable, "-m", "benchmarks", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2 and "unknown operation nothing" in done.stderr
