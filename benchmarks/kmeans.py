"""k-means for vector quantization against scikit-learn: the same centres to begin with, the same iterations.

Run: python -m benchmarks.kmeans [--points 300000] [--dim 8] [--entries 256] [--steps 10] [--threads N] [--no-record]

Points are Gaussian. "iterations" begins with given centres and makes exactly STEPS iterations in both, after which
the centres must agree. "whole fit" is what a user calls: k-means++ seeding, then iterations until the error falls by
less than 1e-4 (ours) or the centres move by less (scikit-learn's rule), so there the errors are compared, too.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans as ScikitKMeans
from threadpoolctl import threadpool_limits

from benchmarks.record import common_options, origin, show_and_keep, timed
from mlcomp.quant import kmeans

RESULTS = Path(__file__).parent / "results" / "kmeans.csv"
ROUNDS = 3  # the fastest of so many runs counts


def fastest(function):
    """Return the result, and the wall and CPU seconds of the fastest run."""
    runs = [timed(function) for _ in range(ROUNDS)]
    return min(runs, key=lambda run: run[1])


def compare(points, entries, steps):
    """Yield one record for each case and version."""
    start, x = points[:entries].clone(), points.numpy()
    error = {}

    def scikit(**options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a stop after few iterations is what was asked for
            return ScikitKMeans(entries, n_init=1, algorithm="lloyd", **options).fit(x)

    cases = {
        "iterations": (
            lambda: kmeans(points, entries, start=start, max_steps=steps, tolerance=0.0),
            lambda: scikit(init=start.numpy(), max_iter=steps, tol=0.0),
        ),
        "whole fit": (
            lambda: kmeans(points, entries, generator=torch.Generator().manual_seed(0), tolerance=1e-4),
            lambda: scikit(init="k-means++", random_state=0, max_iter=100, tol=1e-4),
        ),
    }
    for case, (ours, theirs) in cases.items():
        fit, wall, cpu = fastest(ours)
        error["mlcomp"] = fit.distortion
        yield record(case, "mlcomp", wall, cpu, 1.0, error["mlcomp"])
        other, their_wall, their_cpu = fastest(theirs)
        error["scikit-learn"] = other.inertia_ / points.numel()
        yield record(case, "scikit-learn", their_wall, their_cpu, their_wall / wall, error["scikit-learn"])
        if case == "iterations":
            # float32 sums in another order, over some iterations.
            assert np.abs(fit.codebook.numpy() - other.cluster_centers_).max() < 0.05
            assert abs(error["mlcomp"] / error["scikit-learn"] - 1) < 1e-3


def record(case, version, wall, cpu, ratio, error):
    """One line of the table. ``ratio``: this version's wall time over ours."""
    return {
        "case": case,
        "version": version,
        "wall_s": round(wall, 3),
        "cpu_s": round(cpu, 3),
        "ratio": round(ratio, 2),
        "error": round(error, 6),
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=300_000)
    parser.add_argument("--dim", type=int, default=8)
    parser.add_argument("--entries", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10, help="iterations of the first case")
    options = common_options(parser, RESULTS, argv)
    threads = torch.get_num_threads()
    points = torch.randn(options.points, options.dim, generator=torch.Generator().manual_seed(0))
    source = origin(seed=0) | {
        "problem": f"{options.points}x{options.dim}, K={options.entries}, steps={options.steps}"
    }
    print(source)
    print(f"{'case':12}{'version':14}{'wall s':>9}{'CPU s':>9}{'ratio':>8}{'error':>11}")
    began = time.perf_counter()
    with threadpool_limits(threads):
        rows = compare(points, options.entries, options.steps)
        show_and_keep(rows, "{:12}{:14}{:>9}{:>9}{:>8}{:>11}", source, None if options.no_record else RESULTS)
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
