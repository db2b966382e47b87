"""LDLQ: in blocks, against the literal loop and against GPTQ, which chooses the same codes.

Run: python -m benchmarks.ldlq [--sizes 576 1536] [--rows N] [--threads N] [--no-record]

"literal" is line 3 of the paper's Algorithm 3 as written: a full product of the error matrix with column k of the
feedback for every k, out·inp² multiply-adds of which half meet zeros. "blocked", the library's, collects the feedback
of finished blocks of columns in one matrix product. Both start from the same decomposition, whose time is listed on
its own; "gptq" has its own (two Cholesky factors and an inverse) and is timed whole, as ``ldlq`` is.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.record import common_options, origin, show_and_keep, timed
from mlcomp.data import make_layer
from mlcomp.obs import gptq, layer_hessian, ldl, ldlq
from mlcomp.quant.post_training.ldlq import feedback_rounding

RESULTS = Path(__file__).parent / "results" / "ldlq.csv"
BITS = 2


def literal_round(weight, feedback, top):
    """Every column by the full product, on the grid 0 … top."""
    rounded = weight.clone()
    for k in range(weight.shape[1]):
        rounded[:, k] = torch.round(weight[:, k] + (weight - rounded) @ feedback[:, k]).clamp(0, top)
    return rounded


def compare(size, rows):
    """Yield one record for each version on a layer of ``rows`` × ``size``."""
    weight, x, _ = make_layer(rows, size, 2 * size, seed=0)
    weight, hessian = weight.double(), layer_hessian(x.double())
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(size, dtype=hessian.dtype)
    top = 2**BITS - 1
    units = (weight / weight.std() + top / 2).clamp(0, top)
    (feedback, _), wall, cpu = timed(lambda: ldl(hessian))
    yield record(size, rows, "decomposition", wall, cpu, None)
    ours, blocked, cpu = timed(lambda: feedback_rounding(units, feedback, lambda k, x: x.round().clamp(0, top)))
    yield record(size, rows, "rounding, blocked", blocked, cpu, 1.0)
    theirs, wall, cpu = timed(lambda: literal_round(units, feedback, top))
    assert (ours.round() != theirs).double().mean() < 1e-4, "the versions differ"  # ties by rounding
    yield record(size, rows, "rounding, literal", wall, cpu, wall / blocked)
    quantized, whole, cpu = timed(lambda: ldlq(weight, hessian, bits=BITS, damp=0.0))
    yield record(size, rows, "ldlq, whole", whole, cpu, 1.0)
    twin, wall, cpu = timed(lambda: gptq(weight, hessian, bits=BITS, damp=0.0))
    differing = int((quantized.codes != twin.codes).sum())
    assert differing <= 1e-5 * twin.codes.numel(), f"{differing} codes differ from GPTQ's"
    yield record(size, rows, "gptq, whole", wall, cpu, wall / whole, differing)


def record(size, rows, version, wall, cpu, ratio, differing=None):
    """One line of the table; ``ratio`` to the library's LDLQ, the rounding alone or the whole."""
    return {
        "inputs": size,
        "rows": rows,
        "version": version,
        "wall_s": round(wall, 3),
        "cpu_s": round(cpu, 3),
        "ratio": None if ratio is None else round(ratio, 2),
        "codes_that_differ": differing,
    }


def main(argv=None):
    """Print the table and append it to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[576, 1536], help="inputs of the layers")
    parser.add_argument("--rows", type=int, default=576, help="outputs of the layers")
    options = common_options(parser, RESULTS, argv)
    source = origin(seed=0)
    print(source)
    rows = (row for size in options.sizes for row in compare(size, options.rows))
    show_and_keep(rows, "{:>6}{:>6}  {:32}{:>9}{:>9}{:>8}{:>4}", source, None if options.no_record else RESULTS)


if __name__ == "__main__":
    main()
