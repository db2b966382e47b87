"""python -m experiments.every_method [--list] [--only NAME …] [--leave-out NAME …] [--out CSV]."""

import argparse
from pathlib import Path

import torch

from experiments.every_method import methods  # noqa: F401  (registers)
from experiments.every_method.registry import ENTRIES, describe
from experiments.every_method.run import RESULTS, run_all
from mlcomp.compare.subject import minilm_subject


def main() -> None:
    """Run what the results file lacks, or list what there is."""
    parser = argparse.ArgumentParser(prog="python -m experiments.every_method")
    parser.add_argument("--list", action="store_true", help="show the registered methods and settings")
    parser.add_argument("--only", nargs="+", choices=sorted(ENTRIES), metavar="NAME")
    parser.add_argument("--leave-out", nargs="+", default=(), choices=sorted(ENTRIES), metavar="NAME")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    chosen = [e for e in ENTRIES.values() if e.name in (options.only or ENTRIES) and e.name not in options.leave_out]
    if options.list:
        for entry in chosen:
            print(f"{entry.name} ({entry.kind}, {entry.syllabus}): " + "; ".join(map(describe, entry.settings)))
        return
    torch.set_num_threads(1)  # so that processor seconds compare
    count = run_all(chosen, minilm_subject, options.out)
    print(f"{count} new row(s) in {options.out.name}")


if __name__ == "__main__":
    main()
