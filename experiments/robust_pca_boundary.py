"""Where sparse plus low rank can be taken apart: planted matrices over rank and share of spikes.

    python experiments/robust_pca_boundary.py                    # seeds 0 to 4; about ten minutes on one core
    python experiments/robust_pca_boundary.py --seeds 5 6        # more seeds, added to what is there
    python experiments/robust_pca_boundary.py --size 20 --seeds 0 --out FILE    # a try

L is Gaussian of a rank, S has uniform entries in a share of the places (``planted_matrix``). A method recovers them
if its L is within 1e-3 of the true one. Principal component pursuit runs with two speeds of its multiplier; the
alternating projections are told the rank and the number of spikes. Numbers go to
``mlcomp/data/tables/robust_pca_boundary.json``, a row for each rank, share and seed. Finished rows are not repeated.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import origin
from mlcomp.data.committed_table import TABLES, read_results, write_results
from mlcomp.prune.classical import alternating_projections, planted_matrix, robust_pca

RESULTS = TABLES / "robust_pca_boundary.json"
PARTS = 10  # ranks and shares: 1 to 10 times a twentieth of the size, and of all entries


def relative_errors(rank: int, share: float, seed: int, size: int) -> dict[str, float]:
    """Return the relative error of each method's low-rank part."""
    low, sparse = planted_matrix(size, size, rank=rank, share=share, seed=seed)
    told = partial(alternating_projections, low + sparse, rank=rank, nonzeros=int((sparse != 0).sum()))
    results = {
        "pursuit, growth 1.05": robust_pca(low + sparse, growth=1.05),
        "pursuit, growth 1.5": robust_pca(low + sparse, growth=1.5),
        "projections from S": told(start="sparse"),
        "projections from L": told(start="low-rank"),
    }
    return {name: float((r.low_rank - low).norm() / low.norm()) for name, r in results.items()}


def main() -> None:
    """Run what is not in the results file yet, and write it after each rank."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small
    setting = {"size": args.size, "spike": 10.0, "recovered_below": 1e-3}
    results = {"setting": setting, "rows": []}
    if args.out.exists():
        results = read_results(args.out)
        if results["setting"] != setting:
            raise SystemExit(f"{args.out} holds another setting, {results['setting']}: name another --out")
    done = {(row["rank"], row["seed"]) for row in results["rows"]}
    for seed in args.seeds:
        for part in range(1, PARTS + 1):
            rank = args.size * part // 20
            if (rank, seed) in done:
                continue
            shares = [k / 20 for k in range(1, PARTS + 1)]
            errors = {share: relative_errors(rank, share, seed, args.size) for share in shares}
            recovered = {
                name: [int(errors[share][name] < setting["recovered_below"]) for share in shares]
                for name in errors[shares[0]]
            }
            row = {"rank": rank, "shares": shares, "seed": seed, "recovered": recovered, "origin": origin(seed=seed)}
            print(rank, seed, recovered, flush=True)
            results["rows"].append(row)
            write_results(results, args.out)


if __name__ == "__main__":
    main()
