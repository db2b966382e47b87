"""One language model through other libraries' compression and through ours: python -m benchmarks.beside_others

    python -m benchmarks.beside_others                     # all runs that are not in the table, one after the other
    python -m benchmarks.beside_others hqq mlcomp_rtn      # these, measured again where they are there
    python -m benchmarks.beside_others --blocks 2          # the first two blocks only, to try it; not recorded

Needs an environment of its own, since other libraries pin versions of torch and transformers:

    python -m venv rivals && rivals/bin/pip install -e ".[rivals]"

SmolLM2-135M, 16 stretches of 256 tokens of the Python reference for calibration, 8 of 512 tokens of its other part
for the perplexity. Each run is a process of its own, on two threads. Rows go to
``mlcomp/data/tables/beside_others.csv``; where the method is the same, codes are compared with ours, and the
agreement goes to ``beside_others_codes.csv``. Half an hour or so on two cores that have nothing else to do: a run
during which other programs were busy is measured again by the next call. Stopped, the next call goes on with the run
that is not there.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.beside_others import subject
from benchmarks.beside_others.codes import PAIRS
from benchmarks.beside_others.runs import RUNS
from benchmarks.record import append, origin
from mlcomp.assets import cache_dir
from mlcomp.data.committed_table import TABLES, read_table

RESULTS = TABLES / "beside_others.csv"
CODES = TABLES / "beside_others_codes.csv"
SEED = 42  # auto-round's own; the others draw nothing
QUIET = 0.2  # cores that other programs may have kept busy while a run was timed


def child(module: str, name: str, model: Path, files: Path, threads: int) -> object:
    """Run a module in a process of its own; return the JSON of its last line.

    Raises:
        RuntimeError: it failed; the message has the end of what it wrote.
    """
    command = [sys.executable, "-m", f"benchmarks.beside_others.{module}", name]
    command += ["--subject", str(model), "--files", str(files), "--threads", str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{name} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def finished(path: Path, quiet: float = float("inf")) -> set[tuple[str, str]]:
    """Return the (run, version) that a table has, timed while others used no more than ``quiet`` cores."""
    if not path.exists():
        return set()
    return {(row["run"], row["version"]) for row in read_table(path) if float(row.get("others", 0)) <= quiet}


def main(argv: list[str] | None = None) -> None:
    """Run what is asked for, or what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help=", ".join(RUNS))
    parser.add_argument("--blocks", type=int, help="the first so many blocks only; nothing is recorded")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(argv)
    if unknown := sorted(set(options.runs) - set(RUNS)):
        parser.error(f"unknown run {', '.join(unknown)}; there are {', '.join(RUNS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the run under way, too
    torch.set_num_threads(options.threads)  # for what the rows say of themselves
    model = subject.prepare(options.blocks)
    folder = cache_dir() / "beside_others" / f"files-{options.blocks or 'all'}"
    record = options.blocks is None
    failed = []
    for name in options.runs or [name for name, run in RUNS.items() if not run.optional]:
        version = RUNS[name].version()
        if version is None:
            print(f"left out: {name}, {RUNS[name].library} is not installed", flush=True)
            continue
        key, again = (name, version), bool(options.runs) or not record
        todo = again or key not in finished(RESULTS, QUIET)
        compared = name in PAIRS and (again or key not in finished(CODES))
        files = folder / name
        try:
            if todo or compared:  # a comparison needs the files, too
                row = measure(name, version, model, files, options.threads)
            if todo and record:
                append([row], RESULTS)
            if compared:
                rows = compare(name, version, model, files, options.threads)
                if record:
                    append(rows, CODES)
        except RuntimeError as problem:  # the others can still be measured
            print(problem, flush=True)
            failed.append(name)
        shutil.rmtree(files, ignore_errors=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def measure(name: str, version: str, model: Path, files: Path, threads: int) -> dict[str, object]:
    """Return the row of one run, and leave the files that it wrote."""
    shutil.rmtree(files, ignore_errors=True)
    run = RUNS[name]
    found = child("one", name, model, files, threads)
    print(f"{name:32}{found['seconds']:8.1f} s{found['peak_mb']:7} MB{found['file_mb']:8.1f} MB", end="")
    print(f"{found['perplexity']:10.3f}  left {found['left'][:60]}", flush=True)
    about = {"run": name, "library": run.library, "version": version, "method": run.method, "setting": run.setting}
    return about | found | origin(seed=SEED)


def compare(name: str, version: str, model: Path, files: Path, threads: int) -> list[dict[str, object]]:
    """Return the rows of one comparison of codes."""
    blocks = child("codes", name, model, files, threads)
    same = [block["same"] for block in blocks]
    print(f"  the same in {min(same):.4%} to {max(same):.4%} of the weights of a block", flush=True)
    return [{"run": name, "version": version} | block | origin(seed=SEED) for block in blocks]


if __name__ == "__main__":
    main()
