"""Stamp, run, verify and convert the notebooks.

    python tools/notebooks.py from-py lectures/2_…/03_exact_obs.py   # py:percent → .ipynb, stamped and formatted
    python tools/notebooks.py to-py   lectures/2_…/03_exact_obs.ipynb
    python tools/notebooks.py run     [--force | --changed-code-only] [NOTEBOOK …]
    python tools/notebooks.py verify  [NOTEBOOK …]
    python tools/notebooks.py stamp   [NOTEBOOK …]
    python tools/notebooks.py define                 # link first uses of terms that nothing explains to the glossary

Without names every lecture notebook is meant. `run` executes what is stale (its own code, or a module that it
imports, directly or through others, changed since its outputs were stored) in a fresh kernel, in an empty temporary
folder.
"""

import argparse
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from jupytext.combine import combine_inputs_with_outputs
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools import lint  # noqa: E402  (the folder is put on the path above)
from tools.definitions import first_uses, linked  # noqa: E402
from tools.staleness import digest, library_hash  # noqa: E402
from tools.stamp import FOLDED, HEADER_KEYS, is_set_up, is_stamped, stamp, unstamped  # noqa: E402

LECTURES = ROOT / "lectures"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}

ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

# What a stored output must not hold: it would differ on the reader's machine, or is noise.
NOISE = {
    "an absolute path": re.compile(r"(?<![\w.:/])(/(home|Users|root|tmp|work|opt|usr|mnt)/\S|[A-Z]:\\\w)"),
    "a traceback": re.compile(r"Traceback \(most recent call last\)"),
    "a warning": re.compile(r"\b\w*Warning: "),
    "an object's address": re.compile(r"\b0x[0-9a-f]{8,}"),
    "a progress bar": re.compile(r"\d+%\|"),
}


def lecture_notebooks() -> list[Path]:
    return sorted(p for p in LECTURES.glob("**/*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def write(nb: nbformat.NotebookNode, path: Path) -> None:
    """Write with metadata that says nothing about the machine, and ids that follow from the cells."""
    keep = nb.metadata.get("mlcomp", {})
    nb.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}, "mlcomp": keep})
    seen = set()
    for cell in nb.cells:
        tidy(cell)
        salt = 0
        while (name := digest(f"{cell.cell_type}{cell.source}{salt}")[:8]) in seen:
            salt += 1
        seen.add(name)
        cell.id = name
    nb.nbformat_minor = 5
    nbformat.validate(nb)
    path.write_text(nbformat.writes(nb) + "\n", encoding="utf-8")


def tidy(cell: nbformat.NotebookNode) -> None:
    """Keep a cell's tags, and derive from them and its outputs what Jupyter, Colab and the book read."""
    tags = list(cell.metadata.get("tags", []))
    cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
    if cell.cell_type != "code":
        return
    if FOLDED & set(tags):
        cell.metadata["jupyter"] = {"source_hidden": True}
        cell.metadata["cellView"] = "form"
    words = [
        m["alt"] for o in cell.outputs for m in o.get("metadata", {}).values() if isinstance(m, dict) and "alt" in m
    ]
    if words:
        cell.metadata["mystnb"] = {"image": {"alt": words[0]}}
    elif "hide-input" in tags and lint.ASSERTS.search(cell.source) and not cell.outputs:
        cell.metadata["mystnb"] = {"code_prompt_show": "Show the checks", "code_prompt_hide": "Hide the checks"}


def code_of(nb: nbformat.NotebookNode) -> str:
    """Return the notebook's code, without the set-up cell: another address or version changes no result."""
    return "\n".join(c.source for c in nb.cells if c.cell_type == "code" and not is_set_up(c))


def code_hash(nb: nbformat.NotebookNode) -> str:
    return digest(code_of(nb))


# --- run --------------------------------------------------------------------------------------------------------


def is_stale(nb: nbformat.NotebookNode, *, code_only: bool = False) -> bool:
    ran = nb.metadata.get("mlcomp", {}).get("ran", {})
    return ran.get("code") != code_hash(nb) or (not code_only and ran.get("library") != library_hash(code_of(nb)))


def run(path: Path, timeout: int = 300) -> str | None:
    """Execute ``path`` in a fresh kernel and store its outputs; return what went wrong, if anything."""
    nb = read(path)
    if any("nbgrader" in cell.metadata for cell in nb.cells):
        return "an exercise, whose marks this would drop: execute it with `jupyter execute --inplace` and nbstripout"
    library = library_hash(code_of(nb))
    nb.metadata["kernelspec"] = KERNEL
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            nb,
            timeout=timeout,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": folder}},
            extra_arguments=["--log-level=40"],
        )
        try:
            # This tree's library, from wherever the command was called.
            client.execute(env={**os.environ, "PYTHONPATH": str(ROOT)})
        except Exception as error:
            message = ANSI_COLOUR.sub("", str(error))
            return f"{type(error).__name__}: {message[-1500:]}"
    seconds = math.ceil((time.perf_counter() - start) / 15) * 15  # coarse: a run on another day changes no file
    nb.metadata.setdefault("mlcomp", {})["ran"] = {"code": code_hash(nb), "library": library, "seconds": seconds}
    stamp(nb, path)
    write(nb, path)
    return None


# --- verify -----------------------------------------------------------------------------------------------------


def output_text(output: nbformat.NotebookNode) -> str:
    data = output.get("data", {})
    parts = [output.get("text", ""), *(v for k, v in data.items() if k.startswith("text/") and isinstance(v, str))]
    return "\n".join(parts)


def is_checked(cell: nbformat.NotebookNode) -> bool:
    return "nbval-check-output" in cell.metadata.get("tags", [])


def problems(nb: nbformat.NotebookNode, path: Path) -> list[str]:
    """Return everything that is wrong with a lecture notebook as it is stored."""
    found = []
    code = [c for c in nb.cells if c.cell_type == "code" and c.source.strip()]
    if not is_stamped(nb, path):
        found.append("its header, set-up or footer is not the stamped one (run `stamp`)")
    if [c.execution_count for c in code] != list(range(1, len(code) + 1)):
        found.append("its cells were not all run, in order, in a fresh kernel (run `run`)")
    if is_stale(nb, code_only=True):
        found.append("its code changed after its outputs were stored (run `run`)")
    elif is_stale(nb):
        found.append("a module that it imports changed after its outputs were stored (run `run`)")
    if not any(lint.ASSERTS.search(c.source) for c in code):
        found.append("no cell asserts a claim of the text")
    if not any(is_checked(c) for c in code):
        found.append("no cell has the tag nbval-check-output")
    for n, cell in enumerate(code, 1):
        if is_checked(cell) and not cell.outputs:
            found.append(f"code cell {n} has the tag nbval-check-output and no output")
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"code cell {n} ended in an error")
            if output.get("name") == "stderr":
                found.append(f"code cell {n} wrote to stderr: {output_text(output)[:120]!r}")
            for what, pattern in NOISE.items():
                if hit := pattern.search(output_text(output)):
                    found.append(f"code cell {n} shows {what}: {hit.group()!r}")
    return found + lint.pattern(nb, path)


# --- convert ----------------------------------------------------------------------------------------------------


def from_py(path: Path) -> Path:
    """Make or update the notebook beside a py:percent file; outputs of unchanged cells are kept until `run`."""
    target = path.with_suffix(".ipynb")
    nb = jupytext.reads(path.read_text(), fmt="py:percent")
    if nb.cells and all(line.startswith("#") or not line for line in nb.cells[0].source.splitlines()):
        nb.cells = nb.cells[nb.cells[0].cell_type == "code" :]  # a comment to authors above the first cell
    info = {k: v for k, v in nb.metadata.get("mlcomp", {}).items() if k in HEADER_KEYS}
    if target.exists():
        old = read(target)
        nb = combine_inputs_with_outputs(nb, old)
        nb.cells = [*(c for c in old.cells[:2] if c.cell_type == "code"), *nb.cells]  # the set-up cell, as it ran
        info["ran"] = old.metadata.get("mlcomp", {}).get("ran", {})
    nb.metadata["mlcomp"] = nbformat.from_dict(info)
    stamp(nb, target)
    write(nb, target)
    ruff("format", target)
    write(read(target), target)
    return target


def to_py(path: Path) -> Path:
    """Write a notebook as py:percent beside it, without the stamped cells."""
    nb = read(path)
    nb.cells = unstamped(nb)
    nb.metadata["mlcomp"] = {k: v for k, v in nb.metadata["mlcomp"].items() if k in HEADER_KEYS}
    keep = {"notebook_metadata_filter": "kernelspec,mlcomp,-jupytext", "cell_metadata_filter": "tags"}
    nb.metadata["jupytext"] = keep
    target = path.with_suffix(".py")
    target.write_text(jupytext.writes(nb, fmt="py:percent"))
    return target


def define() -> int:
    """Link what the contract test of definitions would find."""
    todo = [use for use in first_uses() if not use.explained]
    for path in dict.fromkeys(use.notebook for use in todo):
        nb = read(path)
        here = [use for use in todo if use.notebook == path]
        linked(nb, here)
        stamp(nb, path)
        write(nb, path)
        print(f"{path.name}: {', '.join(use.slug for use in here)}")
    return 0


def ruff(command: str, path: Path) -> None:
    subprocess.run([sys.executable, "-m", "ruff", command, "--quiet", str(path)], check=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("stamp", "run", "verify", "define", "from-py", "to-py"):
        sub = commands.add_parser(name)
        sub.add_argument("paths", nargs="+" if "py" in name else "*", type=Path)
        if name == "run":
            sub.add_argument("--force", action="store_true", help="run what is fresh, too")
            sub.add_argument("--changed-code-only", action="store_true", help="ignore changes in mlcomp")
            sub.add_argument("--timeout", type=int, default=300, help="seconds that one cell may take")
    args = parser.parse_args(argv)
    if args.command == "define":
        return define()
    failed = 0
    for path in args.paths or lecture_notebooks():
        if args.command == "stamp":
            nb = read(path)
            if not is_stamped(nb, path):
                stamp(nb, path)
                write(nb, path)
                print(f"stamped {path}")
        elif args.command == "run":
            if not args.force and not is_stale(read(path), code_only=args.changed_code_only):
                print(f"   fresh  {path}")
                continue
            start = time.perf_counter()
            error = run(path, args.timeout)
            print(f"{time.perf_counter() - start:6.1f} s  {path}{'  FAILED' if error else ''}", flush=True)
            if error:
                failed += 1
                print(error, file=sys.stderr)
        elif args.command == "verify":
            for problem in problems(read(path), path):
                failed += 1
                print(f"{path}: {problem}", file=sys.stderr)
        else:
            print((from_py if args.command == "from-py" else to_py)(path))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
