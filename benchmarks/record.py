"""The CSV of results: one row a measurement, with what it was measured on."""

import argparse
import csv
import datetime
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
RESULTS = Path(__file__).parent / "results" / "kernels.csv"


def machine(device: torch.device) -> dict[str, str]:
    """Return date, commit, device and versions of a benchmark that runs on GPUs, too."""
    try:
        from importlib.metadata import version

        triton = version("triton")
    except ImportError:
        triton = "none"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {_processor()}"
    return _when() | {"device": name, "torch": torch.__version__, "triton": triton}


def origin() -> dict[str, object]:
    """Return date, commit, machine and versions of a benchmark that runs on the CPU."""
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    machine = f"{_model()}, {os.cpu_count()} cores"
    return _when() | {"machine": machine, "threads": torch.get_num_threads()} | versions


def common_options(parser: argparse.ArgumentParser, results: Path, argv: list[str] | None) -> argparse.Namespace:
    """Add --threads and --no-record, parse, and set torch's threads."""
    parser.add_argument("--threads", type=int, help="threads to use; default: as torch finds")
    parser.add_argument("--no-record", action="store_true", help=f"print only, do not append to {results.name}")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def timed(function: Callable[[], T]) -> tuple[T, float, float]:
    """Return what the function returns, its wall seconds and its CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def append(rows: list[dict[str, object]], path: Path) -> None:
    """Append rows to the CSV, with the header where it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def _when() -> dict[str, str]:
    """Return date and commit. MLCOMP_COMMIT names the commit where there is no git."""
    commit = os.environ.get("MLCOMP_COMMIT")
    if commit is None:
        here = Path(__file__).parent
        git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
        commit = git.stdout.strip() or "unknown"
    return {"date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"), "commit": commit}


def _processor() -> str:
    return f"{_model()}, {torch.get_num_threads()} threads"


def _model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
