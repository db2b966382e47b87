"""Compressing SmolLM2 layer by layer: wall seconds and peak memory of :func:`mlcomp.layerwise.compress`.

Run: python -m benchmarks.compress [--blocks N] [--cases NAME …] [--threads N] [--no-record]

Each case runs in a process of its own, whose peak memory is the largest resident set that the operating system saw:
Python and its libraries ("before_mb", with the dense model loaded) are in it. Four bits in groups of 64; 16 sequences
of 256 tokens for calibration. "method_s" are the seconds inside of the methods alone.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.record import common_options, origin, show_and_keep
from mlcomp.data import python_reference, token_batches
from mlcomp.layerwise import compress
from mlcomp.models import smollm2
from mlcomp.obs import gptq
from mlcomp.prune import wanda
from mlcomp.quant import rtn

RESULTS = Path(__file__).parent / "results" / "compress.csv"
GROUPS = {"bits": 4, "group_size": 64}
CASES = {
    "rtn": (partial(rtn, **GROUPS), {}),
    "rtn, errors measured": (partial(rtn, **GROUPS), {"errors": True, "sequential": False}),
    "wanda, half": (partial(wanda, sparsity=0.5), {}),
    "gptq": (partial(gptq, **GROUPS), {}),
    "gptq, in place": (partial(gptq, **GROUPS), {"inplace": True}),
    "gptq, dense inputs": (partial(gptq, **GROUPS), {"sequential": False}),
}


def peak_mb():
    """Return the largest resident set of this process so far, in MB; Linux counts kilobytes, macOS bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def measure(case, blocks):
    """Compress by one case in this process; return its figures."""
    method, options = CASES[case]
    model, tokenizer = smollm2()
    batches = token_batches(tokenizer, python_reference("calibration"), length=256, count=16, batch_size=1)
    if blocks is not None:
        model.model.layers = model.model.layers[:blocks]
    names = [name for name, module in model.named_modules() if ".layers." in name and hasattr(module, "weight")]
    names = [name for name in names if isinstance(model.get_submodule(name), torch.nn.Linear)]
    before, start = peak_mb(), time.perf_counter()
    _, report = compress(model, batches, method, layers=names, progress=False, **options)
    seconds = time.perf_counter() - start
    return {
        "case": case,
        "blocks": len(model.model.layers),
        "wall_s": round(seconds, 2),
        "method_s": round(sum(row.seconds for row in report.rows), 2),
        "before_mb": round(before),
        "peak_mb": round(peak_mb()),
        "layers": sum(row.status == "compressed" for row in report.rows),
    }


def apart(case, blocks, threads):
    """Return the figures of one case, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.compress", "--one", case, "--threads", str(threads)]
    command += [] if blocks is None else ["--blocks", str(blocks)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    return json.loads(done.stdout.splitlines()[-1])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, help="the first so many decoder layers only; nothing is recorded")
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help=", ".join(CASES)
    )
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)
    options = common_options(parser, RESULTS, argv)
    if options.one:
        print(json.dumps(measure(options.one, options.blocks)))
        return
    source = origin(seed=None)
    print(source)
    print(f"{'case':24}{'blocks':>8}{'wall s':>9}{'method s':>10}{'before MB':>11}{'peak MB':>9}{'layers':>8}")
    rows = (apart(case, options.blocks, torch.get_num_threads()) for case in options.cases)
    kept = not options.no_record and options.blocks is None
    show_and_keep(rows, "{:24}{:>8}{:>9}{:>10}{:>11}{:>9}{:>8}", source, RESULTS if kept else None)


if __name__ == "__main__":
    main()
