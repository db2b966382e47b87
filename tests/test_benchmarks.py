import csv
import importlib
import os
import pkgutil
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import benchmarks.kernels
from benchmarks import record
from benchmarks.__main__ import main
from benchmarks.granularity import break_even
from benchmarks.granularity import compare as compare_granularities
from benchmarks.measure import Case, Limits, Timer
from benchmarks.record import RESULTS, append, origin, run_parts

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


@pytest.mark.slow
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
    assert rows[0]["seed"] == "0" and rows[0]["python"] == platform.python_version()
    # The table keeps three decimals of the share: half a unit of the last one.
    limit, median = float(rows[0]["limit_us"]), float(rows[0]["median_us"])
    assert limit > 0 and float(rows[0]["share"]) == pytest.approx(limit / median, rel=1e-3, abs=5e-4)


def test_an_unknown_operation_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "nothing"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "unknown operation nothing" in capsys.readouterr().err


def test_origin_names_commit_machine_versions_and_seed(monkeypatch):
    monkeypatch.setenv("MLCOMP_COMMIT", "1234567")
    about = origin(seed=3)
    assert (about["commit"], about["seed"], about["torch"]) == ("1234567", 3, torch.__version__)
    assert about["machine"] and about["threads"] == torch.get_num_threads() and "device" not in about
    assert origin(seed=None)["seed"] == "none" and origin(seed=(0, 1))["seed"] == "0 1"
    beside_gpus = origin(seed=0, device=torch.device("cpu"))
    assert beside_gpus["device"].startswith("CPU ") and beside_gpus["triton"] and "machine" not in beside_gpus


def test_rows_of_other_columns_are_not_appended(tmp_path):
    path = tmp_path / "rows.csv"
    append([{"a": 1, "b": 2}], path)
    append([{"a": 3, "b": 4}], path)
    with pytest.raises(ValueError, match="has the columns a, b; the rows have a, c"):
        append([{"a": 1, "c": 2}], path)
    assert path.read_text() == "a,b\n1,2\n3,4\n"


def test_an_experiment_runs_the_parts_and_seeds_that_are_not_there(tmp_path):
    table, ran = tmp_path / "table.csv", []

    def part(name, seed):
        ran.append((name, seed))
        yield {"method": name, "value": seed}
        yield {"method": name, "value": 10 * seed}

    parts = {name: lambda seed, name=name: part(name, seed) for name in ("one", "two")}
    seeds = {"one": (0, 1), "two": (5,)}
    run_parts(parts, seeds, table, about=None, argv=["--part", "one", "--seeds", "1"])
    run_parts(parts, seeds, table, about=None, argv=[])
    assert ran == [("one", 1), ("one", 0), ("two", 5)]
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["part"], row["value"], row["seed"]) for row in rows] == [
        ("one", "1", "1"),
        ("one", "10", "1"),
        ("one", "0", "0"),
        ("one", "0", "0"),
        ("two", "5", "5"),
        ("two", "50", "5"),
    ]
    assert list(rows[0])[:4] == ["part", "method", "value", "seconds"]


def test_a_killed_first_row_leaves_a_table_to_go_on_with_and_a_cut_row_is_named(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    path.touch()  # an older version, killed before its header
    append([{"a": 1, "b": 2}], path)
    assert path.read_text() == "a,b\n1,2\n"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "fsync", lambda handle: _stop())
        append([{"a": 3, "b": 4}], path)
    assert path.read_text() == "a,b\n1,2\n" and [p.name for p in tmp_path.iterdir()] == ["rows.csv"]
    path.write_text("a,b\n1,2\n3,")
    with pytest.raises(ValueError, match=r"rows\.csv is damaged, its last row is not whole: delete that row"):
        append([{"a": 3, "b": 4}], path)


def _stop():
    raise KeyboardInterrupt


@pytest.mark.slow
def test_two_runs_that_append_to_one_table_lose_no_row(tmp_path):
    code = "import sys; from pathlib import Path; from benchmarks.record import append\n"
    code += "for i in range(40): append([{'who': sys.argv[1], 'n': i}], Path(sys.argv[2]))"
    runs = [subprocess.Popen([sys.executable, "-c", code, who, str(tmp_path / "rows.csv")]) for who in "xy"]
    assert [run.wait(120) for run in runs] == [0, 0]
    with (tmp_path / "rows.csv").open(newline="") as file:
        found = [(row["who"], int(row["n"])) for row in csv.DictReader(file)]
    assert sorted(found) == [(who, n) for who in "xy" for n in range(40)]


@pytest.mark.parametrize("name", ["exact_obs", "granularity", "kmeans", "ldlq", "ptq"])
def test_committed_columns_are_those_that_the_next_run_appends(name):
    """The origin's columns stand together at the front, in the order in which they are written."""
    path = RESULTS.with_name(f"{name}.csv")
    header = path.read_text(encoding="utf-8").partition("\n")[0].split(",")
    assert header[: len(origin(seed=0))] == list(origin(seed=0))


def test_the_break_even_of_granularities():
    s = [0.5, 0.75, 0.875]
    assert break_even(s, [2.0, 1.5, 1.2]) is None
    assert break_even(s, [0.9, 0.5, 0.2]) == 0.5
    # Time in proportion to the weights left, 2.4 of them at half: 1 where 1/4.8 are left.
    assert break_even(s, [2.4, 1.2, 0.6]) == pytest.approx(1 - 1 / 4.8)
    assert break_even(s, [0.9, 1.2, 0.6]) == pytest.approx(1 - 1 / 4.8)  # from where on it *stays* below


@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_case_of_granularities():
    rows = list(compare_granularities((32, 48), 3, 0.75, rounds=1))
    assert [row["version"] for row in rows] == ["dense", "masked dense", "CSR", "blocks", "filters", "channels"]
    assert rows[0]["ratio"] == 1 and all(row["cpu_us"] > 0 for row in rows)


def test_a_commit_is_dirty_where_more_has_changed_than_the_tables_that_a_run_appends_to(tmp_path, monkeypatch):
    def git(*command):
        told = ["-c", "user.name=n", "-c", "user.email=e", *command]
        return subprocess.run(["git", *told], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    files = [
        tmp_path / path for path in ("benchmarks/record.py", "mlcomp/data/tables/a.csv", "benchmarks/results/b.csv")
    ]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("one")
    monkeypatch.setattr(record, "__file__", str(files[0]))
    monkeypatch.delenv("MLCOMP_COMMIT", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert record._when()["commit"] == "unknown"  # no repository
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    clean = git("rev-parse", "--short=7", "HEAD")
    for file in files[1:]:
        file.write_text("two")
    assert record._when()["commit"] == clean
    files[0].write_text("two")
    assert record._when()["commit"] == f"{clean}-dirty"
