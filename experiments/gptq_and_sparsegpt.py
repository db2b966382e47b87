"""Zeros and codes for all linear layers of SmolLM2, by the sweep of GPTQ and SparseGPT and by what it must beat.

    python experiments/gptq_and_sparsegpt.py                              # all rows; about half an hour on one core
    python experiments/gptq_and_sparsegpt.py --methods sparsegpt_50 --draws 0 1 2
    python experiments/gptq_and_sparsegpt.py --blocks 1                   # the first block only; not recorded

Each layer's inputs come from the model whose earlier layers are compressed already, as in the papers; the methods
have the papers' settings (one min–max grid a row, columns in their natural order, blocks of 128) unless their name
says "clip": then grids are fitted by least squares, and large inputs go first. "damp_1" has a hundred times the usual
damping, and "then_rtn" rounds what another method has left. A draw is another, disjoint part of the calibration text.

Rows go to ``mlcomp/data/tables/gptq_and_sparsegpt.csv``, each with the mean log loss of every held-out sequence, so
that methods can be compared sequence by sequence. A run that was stopped goes on from its last finished layer, and a
row that is there already is not measured again.
"""

import argparse
import math
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import append, origin
from experiments.whole_model import linear_layers
from mlcomp.assets import cache_dir
from mlcomp.data import python_reference, token_batches
from mlcomp.data.committed_table import TABLES, committed_table
from mlcomp.layerwise import compress
from mlcomp.metrics import perplexity
from mlcomp.models import smollm2
from mlcomp.obs import quantized_sparsegpt
from mlcomp.prune import magnitude, sparsegpt, wanda
from mlcomp.quant import gptq, rtn

RESULTS = TABLES / "gptq_and_sparsegpt.csv"
CALIBRATION = {"length": 128, "count": 16, "batch_size": 8}
HELD_OUT = {"length": 256, "count": 16, "batch_size": 1}
ZEROS = {"50": {"sparsity": 0.5}, "2_4": {"pattern": (2, 4)}}
FLOAT_BITS = 16  # what a weight that is no code counts


def then_rtn(prune, weight, *arguments):
    """Prune, then round what is left; 0 is a point of every grid, so the zeros stay."""
    return rtn(prune(weight, *arguments), bits=4)


def pruned_and_rounded(weight, hessian, *, target):
    """SparseGPT, then rounding, with the Hessian of inputs that the rounded layers before have made."""
    return then_rtn(partial(sparsegpt, **target), weight, hessian)


def magnitude_and_rounded(weight, *, target):
    """Magnitude, then rounding: no inputs at all."""
    return then_rtn(partial(magnitude, **target), weight)


def methods():
    """Return name → (method, bits of a code or None), in the order in which they run."""
    found = {f"rtn_{bits}": (partial(rtn, bits=bits), bits) for bits in (4, 3)}
    found |= {f"gptq_{bits}": (partial(gptq, bits=bits), bits) for bits in (4, 3)}
    for name, target in ZEROS.items():
        found |= {
            f"magnitude_{name}": (partial(magnitude, **target), None),
            f"wanda_{name}": (partial(wanda, **target), None),
            f"sparsegpt_{name}": (partial(sparsegpt, **target), None),
            f"magnitude_{name}_then_rtn_4": (partial(magnitude_and_rounded, target=target), 4),
            f"sparsegpt_{name}_then_rtn_4": (partial(pruned_and_rounded, target=target), 4),
            f"joint_{name}_4": (partial(quantized_sparsegpt, bits=4, **target), 4),
        }
    clipped = {"clip": "mse", "order": "activation"}
    found["gptq_3_clip"] = partial(gptq, bits=3, **clipped), 3
    found["joint_50_4_clip"] = partial(quantized_sparsegpt, bits=4, **ZEROS["50"], **clipped), 4
    found["sparsegpt_50_damp_1"] = partial(sparsegpt, **ZEROS["50"], damp=1.0), None
    return found


def losses(model, held_out):
    """Return the mean log loss of each sequence."""
    return [math.log(perplexity(model, [sequence])) for sequence in held_out]


def bits_per_weight(rows, bits):
    """Return the size: all values, or a mask and the values that are not zero, whichever is less; grids included."""
    total = 0.0
    for row in rows:
        count = math.prod(row.shape)
        grids = 8 * row.nbytes_after - bits * count if bits else 0
        kept = (1 - row.sparsity) * count
        total += grids + min((bits or FLOAT_BITS) * count, (bits or FLOAT_BITS) * kept + count)
    return total / sum(math.prod(row.shape) for row in rows)


def store(name, draw, blocks):
    """Return the folder of a run's finished layers."""
    return cache_dir() / "gptq_and_sparsegpt" / f"{name}-{draw}-{blocks or 'all'}"


def run(model, text, name, draw, blocks):
    """Compress the first ``blocks`` blocks (None: all) by one method; return one row of results."""
    method, bits = methods()[name]
    start = time.process_time()
    compressed, report = compress(
        model,
        text["calibration"][draw],
        method,
        layers=linear_layers(model, blocks),
        resume=store(name, draw, blocks),
    )
    seconds = time.process_time() - start
    rows = [row for row in report.rows if row.status == "compressed"]
    zeros = sum(row.sparsity * math.prod(row.shape) for row in rows)
    return measured(compressed, text) | {
        "bits_per_weight": f"{bits_per_weight(rows, bits):.3f}",
        "zeros": f"{zeros / sum(math.prod(row.shape) for row in rows):.4f}",
        "method_seconds": f"{sum(row.seconds for row in rows):.1f}",
        "seconds": f"{seconds:.1f}",
    }


def measured(model, text):
    """Return perplexity and losses in the table's columns, and the other columns as the dense model has them."""
    found = losses(model, text["held_out"])
    return {
        "perplexity": f"{math.exp(sum(found) / len(found)):.3f}",
        "losses": " ".join(f"{loss:.4f}" for loss in found),
        "bits_per_weight": f"{FLOAT_BITS:.3f}",
        "zeros": "0.0000",
        "method_seconds": "0.0",
        "seconds": "0.0",
    }


def main(argv=None):
    """Run what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(methods()), default=list(methods()))
    parser.add_argument("--draws", nargs="+", type=int, choices=(0, 1, 2), default=[0])
    parser.add_argument("--blocks", type=int, help="the first so many blocks only; nothing is recorded")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # so that processor seconds compare
    model, tokenizer = smollm2()
    per_draw = CALIBRATION["count"]
    batches = token_batches(tokenizer, python_reference("calibration"), **CALIBRATION | {"count": 3 * per_draw})
    each = len(batches) // 3
    text = {
        "calibration": [batches[each * draw : each * (draw + 1)] for draw in range(3)],
        "held_out": token_batches(tokenizer, python_reference("held_out"), **HELD_OUT),
    }
    have = committed_table(RESULTS.stem) if RESULTS.exists() else []
    finished = {(row["method"], int(row["draw"])) for row in have}
    for name, draw in [("dense", 0)] + [(name, draw) for draw in options.draws for name in options.methods]:
        if options.blocks is None and (name, draw) in finished:
            continue
        row = {"method": name, "draw": draw}
        row |= measured(model, text) if name == "dense" else run(model, text, name, draw, options.blocks)
        print({key: value for key, value in row.items() if key != "losses"}, flush=True)
        if options.blocks is None:
            append([row | origin(seed=draw)], RESULTS)
        shutil.rmtree(store(name, draw, options.blocks), ignore_errors=True)  # "dense" has none


if __name__ == "__main__":
    main()
