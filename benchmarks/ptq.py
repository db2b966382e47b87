"""Calibration of activation ranges: the library's observers against PyTorch's own (torch.ao.quantization).

Run: python -m benchmarks.ptq [--images 1024] [--threads N] [--no-record]

The data are the inputs of five layers of the course's network, collected once; each observer then sees the same
batches. PyTorch marks its module for removal in favour of torchao in recent versions; where it is gone, the library's
observers are timed alone. "error" is the mean squared rounding error of all those inputs, on the grid that the range
gives, over their mean square. PyTorch's histogram observer looks for the best range of 256 levels whatever the bits.
"""

import argparse
import time
import warnings
from pathlib import Path

import torch

from benchmarks.record import common_options, origin, show_and_keep
from mlcomp.data import mnist_calibration
from mlcomp.layerwise import call_model
from mlcomp.models import convnet
from mlcomp.modes import evaluating
from mlcomp.quant import activation_grid, observer

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization.observer import HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver
except ImportError:
    MinMaxObserver = None

RESULTS = Path(__file__).parent / "results" / "ptq.csv"
LAYERS = ("block1.conv1.conv", "block1.conv2.conv", "block2.conv2.conv", "pointwise.conv", "head")
REPEATS = 5
# float32 averages of PyTorch against float64 ones: a relative difference of a few units in the last place a batch.
SAME = 1e-5


def collected(images):
    """Return layer → the batches of its input."""
    model, seen = convnet(), {name: [] for name in LAYERS}

    def hook(name):
        return lambda module, args: seen[name].append(args[0].clone())

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in LAYERS]
    with evaluating(model):
        for batch in mnist_calibration(images):
            call_model(model, batch)
    for handle in handles:
        handle.remove()
    return seen


class Torch:
    """One of PyTorch's observers with the names of ours."""

    def __init__(self, made):
        self.made = made
        self.add = made.forward

    def range(self):
        """Return the range that the observer's step and zero code span."""
        step, zero = self.made.calculate_qparams()
        levels = self.made.quant_max - self.made.quant_min
        low = float((self.made.quant_min - zero) * step)
        return low, low + float(levels * step)


def theirs(rule, bits):
    """Return a new observer of PyTorch for the rule, or None where it has none."""
    if MinMaxObserver is None:
        return None
    options = {"dtype": torch.quint8, "quant_min": 0, "quant_max": 2**bits - 1}
    made = {
        "minmax": lambda: MinMaxObserver(**options),
        "moving_average": lambda: MovingAverageMinMaxObserver(averaging_constant=0.1, **options),
        "mse": lambda: HistogramObserver(**options),
    }
    return Torch(made[rule]()) if rule in made else None


def timed(make, batches):
    """Return the range, the seconds of seeing the batches, and those of the range: the least of some repeats."""
    best = [float("inf"), float("inf")]
    for _ in range(REPEATS):
        watch, start = make(), time.perf_counter()
        for x in batches:
            watch.add(x)
        middle = time.perf_counter()
        span = watch.range()
        end = time.perf_counter()
        best = [min(best[0], middle - start), min(best[1], end - middle)]
    return span, *best


def error(span, batches, bits):
    """Return the relative squared error of rounding."""
    grid = activation_grid(*span, bits=bits)
    x = torch.cat([b.reshape(-1) for b in batches])[None]
    return float((grid.round(x) - x).double().square().sum() / x.double().square().sum())


def compare(images):
    """Yield one record for each layer, rule, number of bits and version."""
    for name, batches in collected(images).items():
        count = sum(x.numel() for x in batches)
        for rule, bits in (("minmax", 8), ("moving_average", 8), ("percentile", 8), ("mse", 8), ("mse", 4)):
            makers = {"mlcomp": lambda rule=rule, bits=bits: observer(rule, bits=bits)}
            if theirs(rule, bits) is not None:
                makers["torch"] = lambda rule=rule, bits=bits: theirs(rule, bits)
            found = {version: timed(make, batches) for version, make in makers.items()}
            if "torch" in found and rule != "mse":
                ours, other = found["mlcomp"][0], found["torch"][0]
                # Their range is read back from a step and a whole zero code; inputs are never negative here.
                assert abs(ours[1] - other[1]) <= SAME * ours[1], f"{name} {rule}: {ours} and {other}"
            whole = sum(found["mlcomp"][1:])
            for version, (span, adding, ranging) in found.items():
                yield {
                    "layer": name,
                    "values": count,
                    "rule": rule,
                    "bits": bits,
                    "version": version,
                    "low": round(span[0], 4),
                    "high": round(span[1], 4),
                    "error": f"{error(span, batches, bits):.4g}",
                    "add_ms": round(1000 * adding, 2),
                    "range_ms": round(1000 * ranging, 2),
                    "ratio": round((adding + ranging) / whole, 2),
                }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024, help="calibration images, in batches of 128")
    options = common_options(parser, RESULTS, argv)
    source = origin(seed=None)
    print(source)
    form = "{:20}{:>10} {:15}{:>3} {:8}{:>9}{:>9}{:>11}{:>9}{:>9}{:>7}"
    show_and_keep(compare(options.images), form, source, None if options.no_record else RESULTS)


if __name__ == "__main__":
    main()
