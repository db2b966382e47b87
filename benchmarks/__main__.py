"""Run benchmarks: python -m benchmarks [OPERATION …] [--output CSV | --no-record] [--device cpu|cuda]

Without names, all operations of benchmarks/kernels. Each is checked against its reference before it is timed. On a
machine without a GPU the references and other CPU versions are timed at smaller shapes, and the rows say so.
"""

import argparse
import importlib
import pkgutil
from pathlib import Path

import torch

import benchmarks.kernels
from benchmarks.measure import Case, Limits, Timer, Timing, limits
from benchmarks.record import RESULTS, append, origin

SEED = 0  # of the inputs of each operation


def main() -> None:
    """Measure, print a table, and append the rows to the CSV."""
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.kernels.__path__))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("operations", nargs="*", metavar="OPERATION", help=", ".join(names))
    parser.add_argument("--output", type=Path, default=RESULTS, help="CSV to append to")
    parser.add_argument("--no-record", action="store_true", help="print only")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=0.4, help="to spend on each measurement")
    options = parser.parse_args()
    if unknown := sorted(set(options.operations) - set(names)):
        parser.error(f"unknown operation {', '.join(unknown)}; there are {', '.join(names)}")
    timer = Timer(torch.device(options.device), options.seconds)
    about, ceiling = origin(seed=SEED, device=timer.device), limits(timer)
    rates = ", ".join(f"{unit} {rate / 1e12:.3g} T/s" for unit, rate in ceiling.rate.items())
    print(f"{about['device']}, torch {about['torch']}: copy {ceiling.bandwidth / 1e9:.0f} GB/s, {rates}")
    print("operation, shape, version, mode: median µs, 20–80 % quantiles, limit T*, share of it, ratio to the first")
    for name in options.operations or names:
        torch.manual_seed(SEED)
        for case in importlib.import_module(f"benchmarks.kernels.{name}").cases(timer.device):
            case.check()
            rows = list(measured(case, timer, ceiling, about))
            if not options.no_record:
                append(rows, options.output)
            del case  # its tensors, before the next one's are made


def measured(case: Case, timer: Timer, ceiling: Limits, about: dict[str, object]):
    """Yield a CSV row for each version of a case, and print it."""
    limit, bound = ceiling.seconds(case)
    first = {}
    for version, function in case.versions.items():
        modes = ["launch", "graph"] if version in case.graph and timer.device.type == "cuda" else ["launch"]
        for mode in modes:
            timing = (timer.graph if mode == "graph" else timer)(function)
            first.setdefault(mode, timing)
            yield _row(case, version, mode, timing, limit, bound, first[mode], ceiling, about)


def _row(
    case: Case, version: str, mode: str, timing: Timing, limit: float, bound: str, first: Timing, ceiling: Limits,
    about: dict[str, object],
) -> dict[str, object]:  # fmt: skip
    micro = {name: f"{1e6 * value:.2f}" for name, value in vars(timing).items()}
    share, ratio = limit / timing.median, timing.median / first.median
    print(
        f"{case.operation:<20} {case.shape:<26} {version:<14} {mode:<7} {micro['median']:>10} "
        f"{micro['low']:>9} – {micro['high']:>8} {1e6 * limit:>9.2f} {share:5.2f} {ratio:5.2f}",
        flush=True,
    )
    return about | {
        "operation": case.operation, "shape": case.shape, "dtype": case.dtype, "version": version, "mode": mode,
        "median_us": micro["median"], "q20_us": micro["low"], "q80_us": micro["high"],
        "limit_us": f"{1e6 * limit:.2f}", "bound": bound, "share": f"{share:.3f}", "ratio": f"{ratio:.3f}",
        "copy_gb_s": f"{ceiling.bandwidth / 1e9:.0f}", "rate_t_s": f"{ceiling.rate[case.unit] / 1e12:.2f}",
    }  # fmt: skip


if __name__ == "__main__":
    main()
