"""The CSV of results: one row a measurement, with what it was measured on."""

import argparse
import csv
import datetime
import fcntl
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import torch

from mlcomp.resume import replacing

T = TypeVar("T")
RESULTS = Path(__file__).parent / "results" / "kernels.csv"


def origin(*, seed: int | Sequence[int] | None, device: torch.device | None = None) -> dict[str, object]:
    """Return what every committed number says about itself: date, commit, machine, versions and seed.

    Args:
        seed: of what was drawn; several, if they were run in turn; None where nothing is drawn.
        device: given where GPUs and CPUs stand in one table: then its name is the machine, in the column ``device``,
            and Triton is one of the versions.
    """
    if device is None:
        where = {"machine": f"{_model()}, {os.cpu_count()} cores", "threads": torch.get_num_threads()}
    else:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {_processor()}"
        where = {"device": name}
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    if device is not None:
        versions["triton"] = _triton()
    seeds = "none" if seed is None else seed if isinstance(seed, int) else " ".join(map(str, seed))
    return _when() | where | versions | {"seed": seeds}


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
    """Append rows to the CSV, with the header where it is new or empty; killed meanwhile, the file is as before.

    Several processes may append to the files of one folder: they wait for each other.

    Raises:
        ValueError: the file has other columns, in which the values would stand wrong, or its last row is cut short.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(rows[0])
    with _alone(path.parent):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if text and (there := text.partition("\n")[0].split(",")) != names:
            raise ValueError(f"{path.name} has the columns {', '.join(there)}; the rows have {', '.join(names)}")
        if text and not text.endswith("\n"):
            raise ValueError(f"{path} is damaged, its last row is not whole: delete that row")
        with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
            file.write(text)
            writer = csv.DictWriter(file, names, lineterminator="\n")
            if not text:
                writer.writeheader()
            writer.writerows(rows)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the operating system frees it if the process dies."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _when() -> dict[str, str]:
    """Return date and commit. MLCOMP_COMMIT names the commit where there is no git."""
    commit = os.environ.get("MLCOMP_COMMIT")
    if commit is None:
        here = Path(__file__).parent
        command = ["git", "describe", "--always", "--dirty", "--exclude=*"]  # a hash, also where there are tags
        git = subprocess.run(command, cwd=here, capture_output=True, text=True)
        commit = git.stdout.strip() or "unknown"
    return {"date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"), "commit": commit}


def _triton() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"


def _processor() -> str:
    return f"{_model()}, {torch.get_num_threads()} threads"


def _model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
