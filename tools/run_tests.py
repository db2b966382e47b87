"""Everything that CI runs, step by step: `make test`. With --fast, the subset for a developer: `make check`.

Every step runs even after a red one, so that one run shows all that is wrong. Steps are timed, the table comes last,
and a red step fails the run.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
BUILD = ROOT / "_build" / "test"  # the book, built anew for the checks
HTML = BUILD / "_build" / "html"
PYTEST = [PYTHON, "-m", "pytest", "-o", "console_output_style=count"]
# Two workers with one thread each finish small-matrix tests sooner than one worker with two threads.
SPREAD = ["-n", "2", "--dist", "loadfile"]
# Plugins that our own tests do not use: their imports cost every process two seconds.
LEAN = ["-p", "no:nbval", "-p", "no:anyio"]
NBVAL = ["--nbval-lax", "--nbval-current-env", "--nbval-sanitize-with", "tests/notebooks/sanitize.cfg"]
STRIP = "--verify --keep-output --keep-count --keep-id".split()
EXTRA_KEYS = "metadata.language_info.version cell.metadata.execution"


@dataclass(frozen=True)
class Step:
    name: str
    command: list[str]
    examples: str = ""  # hypothesis profile, where the caller has named none


@dataclass(frozen=True)
class Outcome:
    name: str
    code: int
    seconds: float
    counts: dict[str, int]


def notebooks(*folders: str) -> list[str]:
    found = [p for folder in folders for p in sorted((ROOT / folder).glob("**/*.ipynb"))]
    return [str(p.relative_to(ROOT)) for p in found if ".ipynb_checkpoints" not in p.parts]


def lint() -> list[Step]:
    return [
        Step("ruff check", [PYTHON, "-m", "ruff", "check", "."]),
        Step("ruff format", [PYTHON, "-m", "ruff", "format", "--check", "."]),
        Step("types", [PYTHON, "-m", "mypy"]),
    ]


def fast_steps() -> list[Step]:
    skip = ["-m", "not slow and not browser and not sandbox"]
    fast = Step("fast tests", [*PYTEST, *LEAN, *SPREAD, *skip, "tests"], "quick")
    return [*lint(), Step("notebooks as stored", [PYTHON, "tools/notebooks.py", "verify"]), fast]


def all_steps() -> list[Step]:
    steps = lint()
    stored = notebooks("lectures", "solutions", "exercises")
    if stored:
        strip = [PYTHON, "-m", "nbstripout", *STRIP, "--extra-keys", EXTRA_KEYS]
        steps.append(Step("notebook metadata", [*strip, *stored]))
    if notebooks("lectures"):
        steps.append(Step("notebooks as stored", [PYTHON, "tools/notebooks.py", "verify"]))
    steps.append(Step("tests", [*PYTEST, *LEAN, *SPREAD, "-m", "not browser and not sandbox", "tests"]))
    # The sandboxed graders share the machine's processes and time limits: one after the other.
    steps.append(Step("sandbox tests", [*PYTEST, "-m", "sandbox", "tests"]))
    if run := notebooks("lectures", "solutions"):
        steps.append(Step("notebooks run", [*PYTEST, *SPREAD, *NBVAL, "--nbval-cell-timeout", "300", *run]))
    if (ROOT / "mlcomp" / "grading").is_dir():
        steps.append(Step("exercises in sync", [PYTHON, "-m", "mlcomp.grading", "generate", "--check"]))
    steps.append(Step("book", [PYTHON, "tools/build_book.py", "--out", str(BUILD)]))
    steps.append(Step("pages", [PYTHON, "tools/check_pages.py", str(HTML)]))
    # Almost all of these tests stand in one file, so they are dealt out one by one.
    steps.append(Step("book in a browser", [*PYTEST, *LEAN, "-n", "2", "--dist", "load", "-m", "browser", "tests"]))
    return steps


def run(step: Step) -> Outcome:
    """Run one step, showing its output as it comes, and read pytest's counts off it."""
    print(f"\n=== {step.name}: {' '.join(map(str, step.command))[:200]}", flush=True)
    env = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1", "MLCOMP_BOOK": str(HTML)}
    if step.examples:
        env.setdefault("MLCOMP_EXAMPLES", step.examples)
    if "-n" in step.command:
        env |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MLCOMP_TEST_THREADS": "1"}
    start = time.perf_counter()
    counts: dict[str, int] = {}
    process = subprocess.Popen(
        step.command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace"
    )
    for line in process.stdout:
        print(line, end="", flush=True)
        if re.search(r"\bin [\d.]+s\b", line):
            counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|errors?|skipped)", line)}
    return Outcome(step.name, process.wait(), time.perf_counter() - start, counts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="lint and the quick tests only")
    parser.add_argument("--only", help="run the steps whose name holds this text")
    options = parser.parse_args()
    steps = fast_steps() if options.fast else all_steps()
    outcomes = [run(step) for step in steps if not options.only or options.only in step.name]
    print(f"\n{'step':<22}{'seconds':>8}   result")
    for o in outcomes:
        detail = ", ".join(f"{n} {what}" for what, n in o.counts.items())
        print(
            f"{o.name:<22}{o.seconds:8.1f}   {'ok' if o.code == 0 else 'FAILED'}{f'  ({detail})' if detail else ''}"
        )
    seconds = sum(o.seconds for o in outcomes)
    print(f"{'together':<22}{seconds:8.1f}\n")
    red = [o for o in outcomes if o.code]
    if red:
        print("red: " + ", ".join(o.name for o in red))
    # Steps that are not pytest count as one test each; a red pytest step that counted no failure counts as one.
    passed = sum(o.counts.get("passed", 0) if o.counts else o.code == 0 for o in outcomes)
    failed = sum(max(1, sum(o.counts.get(what, 0) for what in ("failed", "error", "errors"))) for o in red)
    skipped = sum(o.counts.get("skipped", 0) for o in outcomes)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
