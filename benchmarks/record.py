"""The CSV of results: one row a measurement, with what it was measured on."""

import csv
import datetime
import os
import platform
import subprocess
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results" / "kernels.csv"
FIELDS = [
    "date", "commit", "device", "torch", "triton", "operation", "shape", "dtype", "version", "mode", "median_us",
    "q20_us", "q80_us", "limit_us", "bound", "share", "ratio", "copy_gb_s", "rate_t_s",
]  # fmt: skip


def machine(device: torch.device) -> dict[str, str]:
    """Return date, commit, device and versions. MLCOMP_COMMIT names the commit where there is no git."""
    here = Path(__file__).parent
    commit = os.environ.get("MLCOMP_COMMIT")
    if commit is None:
        git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
        commit = git.stdout.strip() or "unknown"
    try:
        from importlib.metadata import version

        triton = version("triton")
    except ImportError:
        triton = "none"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {_processor()}"
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    return {"date": date, "commit": commit, "device": name, "torch": torch.__version__, "triton": triton}


def append(rows: list[dict[str, object]], path: Path) -> None:
    """Append rows to the CSV, with the header where it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {torch.get_num_threads()} threads"
    return f"{platform.machine()}, {torch.get_num_threads()} threads"
