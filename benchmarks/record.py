"""The CSV of results: one row a measurement, with what it was measured on."""

import argparse
import csv
import datetime
import fcntl
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import torch

from mlcomp.resume import replacing

T = TypeVar("T")
RESULTS = Path(__file__).parent / "results" / "kernels.csv"
# What a run appends to while it is under way is no change of what is measured.
TABLES = (":(exclude,top)mlcomp/data/tables", ":(exclude,top)benchmarks/results")


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


def show_and_keep(rows: Iterable[dict], form: str, source: dict[str, object], path: Path | None) -> None:
    """Print each row by ``form`` as it comes, None as nothing; append all after ``source``, if a path is given."""
    found = []
    for row in rows:
        print(form.format(*("" if value is None else value for value in row.values())), flush=True)
        found.append(source | row)
    if path is not None:
        append(found, path)


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


def run_parts(
    parts: Mapping[str, Callable[[int], Iterable[dict[str, object]]]],
    seeds: Mapping[str, Sequence[int]],
    results: Path,
    *,
    about: str | None,
    argv: list[str] | None = None,
) -> None:
    """Run those parts and seeds of an experiment that are asked for (--part, --seeds) and not in its table yet.

    Args:
        parts: name → ``part(seed)``, which yields its rows, all with the same columns.
        seeds: of each part, if none are asked for.
        results: the CSV, to which each part of a seed is appended when it ends: its name, the row, the seconds of the
            whole part, and where it was run.
        about: what --help says.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--seeds", nargs="+", type=int, help="default: all of each part")
    asked = parser.parse_args(argv)
    have = set()
    if results.exists():
        with results.open(newline="", encoding="utf-8") as file:
            have = {(row["part"], row["seed"]) for row in csv.DictReader(file)}
    for part in asked.part:
        for seed in asked.seeds or seeds[part]:
            if (part, str(seed)) in have:
                continue
            rows, began = [], time.perf_counter()
            for row in parts[part](seed):
                rows.append({"part": part} | row)
                print(seed, rows[-1], flush=True)
            seconds = {"seconds": round(time.perf_counter() - began, 1)}
            append([row | seconds | origin(seed=seed) for row in rows], results)


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
        commit = _git("describe", "--always", "--exclude=*")  # a hash, also where there are tags
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", *TABLES)
        commit = f"{commit}-dirty" if commit and changed else commit or "unknown"
    return {"date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"), "commit": commit}


def _git(*command: str) -> str:
    run = subprocess.run(["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True)
    return run.stdout.strip()


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
