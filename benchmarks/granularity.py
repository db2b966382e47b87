"""Products with a sparse matrix: what each granularity is worth in time, beside the dense product.

Run: python -m benchmarks.granularity [--shapes 1536x576 …] [--vectors 1 256] [--threads N] [--no-record]

Versions: "masked dense", the weight times a mask and then the dense product, as pruning libraries run it; "CSR",
single weights removed (torch.sparse); "blocks", 16×16 removed whole (torch's BSR; its CPU kernels take square blocks
only, so that a row of a kernel or a kernel gets nothing but CSR); "filters" and "channels", rows or columns removed,
a smaller dense product (for channels with the gathering of the inputs). All versions take turns within each round, so
that what else the machine does falls on all of them; times are the process's CPU seconds, the median of the rounds.
"ratio" is to the dense product of the same round, again the median. The break-even is where it passes 1.
"""

import argparse
import math
import time
import warnings
from pathlib import Path

import torch

from benchmarks.measure import close
from benchmarks.record import append, common_options, origin
from mlcomp.prune import group_magnitude, magnitude

RESULTS = Path(__file__).parent / "results" / "granularity.csv"
SPARSITIES = (0.5, 0.75, 0.9, 0.95, 0.98)
BLOCK = 16
ROUNDS = 15
SECONDS = 2e-3  # of each measurement: enough calls to fill them


def block_magnitude(weight, sparsity):
    """Zero the blocks of least energy: blocks are the kernels of a weight (rows, columns, 16, 16)."""
    out, inp = weight.shape
    blocks = weight.reshape(out // BLOCK, BLOCK, inp // BLOCK, BLOCK).transpose(1, 2)
    return group_magnitude(blocks, granularity="kernel", sparsity=sparsity).transpose(1, 2).reshape(out, inp)


def versions(weight, x, sparsity):
    """Return name → (product, the matrix that it multiplies)."""
    element = magnitude(weight, sparsity=sparsity)
    block = block_magnitude(weight, sparsity)
    filters = group_magnitude(weight, granularity="filter", sparsity=sparsity)
    channels = group_magnitude(weight, granularity="channel", sparsity=sparsity)
    mask = (element != 0).to(weight.dtype)
    rows, columns = filters.any(1).nonzero().flatten(), channels.any(0).nonzero().flatten()
    csr, bsr = element.to_sparse_csr(), block.to_sparse_bsr((BLOCK, BLOCK))
    fewer_rows, fewer_columns = filters[rows], channels[:, columns].contiguous()
    return {
        "dense": (lambda: weight @ x, weight),
        "masked dense": (lambda: (weight * mask) @ x, element),
        "CSR": (lambda: csr @ x, element),
        "blocks": (lambda: bsr @ x, block),
        "filters": (lambda: fewer_rows @ x, filters[rows]),
        "channels": (lambda: fewer_columns @ x[columns], channels),
    }


def seconds(function):
    """Return the CPU seconds of a call, over as many calls as fill the time of a measurement."""
    calls, begin = 0, time.process_time()
    while (spent := time.process_time() - begin) < SECONDS:
        function()
        calls += 1
    return spent / calls


def compare(shape, vectors, sparsity, rounds=ROUNDS):
    """Yield one record for each version."""
    g = torch.Generator().manual_seed(0)
    weight, x = torch.randn(shape, generator=g), torch.randn(shape[1], vectors, generator=g)
    made = versions(weight, x, sparsity)
    for function, matrix in made.values():
        close(function(), matrix @ x, 1e-5)  # float32 sums in another order
    times = {name: [] for name in made}
    for _ in range(rounds):
        for name, (function, _) in made.items():
            times[name].append(seconds(function))
    every = {name: torch.tensor(found, dtype=torch.float64) for name, found in times.items()}
    for name, found in every.items():
        yield {
            "shape": f"{shape[0]}x{shape[1]}",
            "vectors": vectors,
            "sparsity": sparsity,
            "version": name,
            "cpu_us": round(1e6 * float(found.median()), 2),
            "ratio": round(float((found / every["dense"]).median()), 3),
        }


def break_even(sparsities, ratios):
    """Return the sparsity from which on the ratio stays below 1: the first, if all do; None if the last does not.

    Between two measured points log(ratio) is taken as linear in log(1 − sparsity), as it is where time goes with the
    weights that are left.
    """
    above = [k for k, ratio in enumerate(ratios) if ratio >= 1]
    last = above[-1] if above else -1
    if last == len(ratios) - 1:
        return None
    if last < 0:
        return sparsities[0]
    (s0, r0), (s1, r1) = ((sparsities[k], math.log(ratios[k])) for k in (last, last + 1))
    left = math.log(1 - s0) + (math.log(1 - s1) - math.log(1 - s0)) * r0 / (r0 - r1)
    return 1 - math.exp(left)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["384x384", "1536x576", "4096x4096"])
    parser.add_argument("--vectors", nargs="+", type=int, default=[1, 256])
    parser.add_argument("--sparsities", nargs="+", type=float, default=list(SPARSITIES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = common_options(parser, RESULTS, argv)
    warnings.filterwarnings("ignore", message="Sparse")  # both layouts are called beta
    source = origin(seed=0)
    print(source)
    print(f"{'shape':12}{'vectors':>8}{'zeros':>8}  {'version':14}{'CPU µs':>11}{'ratio':>8}")
    for text in options.shapes:
        shape = tuple(int(n) for n in text.split("x"))
        for vectors in options.vectors:
            rows = []
            for sparsity in options.sparsities:
                for row in compare(shape, vectors, sparsity, options.rounds):
                    print("{:12}{:>8}{:>8}  {:14}{:>11}{:>8}".format(*row.values()), flush=True)
                    rows.append(source | row)
            for name in dict.fromkeys(row["version"] for row in rows if row["version"] != "dense"):
                ratios = [row["ratio"] for row in rows if row["version"] == name]
                found = break_even(options.sparsities, ratios)
                where = "none" if found is None else f"{'≤ ' * (found == options.sparsities[0])}{found:.3f}"
                print(f"{text}, {vectors} vectors, {name}: break-even {where}")
            if not options.no_record:
                append(rows, RESULTS)


if __name__ == "__main__":
    main()
