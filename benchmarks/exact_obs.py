"""ExactOBS and OBQ for all rows at once, against Algorithms 1 and 2 as printed; cheap masks with a refit.

Run: python -m benchmarks.exact_obs [--size 576] [--rows 8] [--threads N] [--no-record]

Three versions do the same arithmetic in float64: "literal", one row at a time, rewriting its d×d inverse Hessian at
every step; "batched literal", the same for a few rows at a time, what one would write first; and the library's. The
first two are run on the first ROWS rows only, as the table says, and compared by seconds per row.
"""

import argparse
from itertools import chain
from pathlib import Path

import torch

from benchmarks.record import common_options, origin, show_and_keep, timed
from mlcomp.data import make_layer
from mlcomp.metrics import relative_error
from mlcomp.obs import exact_obs, layer_hessian, literal_exact_obs, obq, refit, sparsegpt
from mlcomp.prune import magnitude, wanda
from mlcomp.quant import fit_grid

RESULTS = Path(__file__).parent / "results" / "exact_obs.csv"
BATCH = 4  # rows at a time of the batched literal version: larger batches leave the cache and are slower on a CPU


def printed_prune(weight, hessian, steps):
    """Algorithm 1 row after row."""
    inverse = torch.linalg.inv(hessian.double())
    return torch.stack([literal_exact_obs(row, inverse, steps)[0] for row in weight.double()])


def batched_prune(weight, hessian, steps, *, room_of=1, room=None, batch=1):
    """Algorithm 1 for ``batch`` rows at a time; ``room`` zeros in every ``room_of`` inputs, if given."""
    inverse = torch.linalg.inv(hessian.double())
    result = []
    for w in weight.double().split(batch):
        w, rows = w.clone(), torch.arange(len(w))
        b = inverse.expand(len(w), -1, -1).clone()
        barred = torch.zeros_like(w)
        gone = torch.zeros_like(w, dtype=torch.bool)
        left = torch.full((len(w), w.shape[1] // room_of), room or 1)
        for _ in range(steps):
            p = (w.square() / b.diagonal(dim1=1, dim2=2) + barred).argmin(1)
            column, pivot = b[rows, p], b[rows, p, p]
            w -= (w[rows, p] / pivot)[:, None] * column
            b -= column[:, :, None] * column[:, None, :] / pivot[:, None, None]
            gone[rows, p] = True
            b[rows, p, p] = 1
            barred[rows, p] = torch.inf
            if room is not None:
                left[rows, p // room_of] -= 1
                barred[(left == 0).repeat_interleave(room_of, 1)] = torch.inf
        result.append(w.masked_fill_(gone, 0))
    return torch.cat(result)


def batched_obq(weight, hessian, bits, *, batch=1):
    """Algorithm 2 with the outlier rule, ``batch`` rows at a time."""
    inverse = torch.linalg.inv(hessian.double())
    grid = fit_grid(weight, bits=bits)
    result = []
    parts = (weight.double(), grid.step.double(), grid.zero.double())
    for w, step, zero in zip(*(part.split(batch) for part in parts), strict=True):
        w, rows = w.clone(), torch.arange(len(w))
        b = inverse.expand(len(w), -1, -1).clone()
        done = torch.zeros_like(w, dtype=torch.bool)
        for _ in range(w.shape[1]):
            q = (((w / step).round() + zero).clamp(0, 2**bits - 1) - zero) * step
            size = (w - q).abs().masked_fill(done, 0)
            p = (size.square() / b.diagonal(dim1=1, dim2=2)).masked_fill(done, torch.inf).argmin(1)
            off_grid = size > step * (0.5 + 1e-5)
            p = torch.where(off_grid.any(1), size.masked_fill(~off_grid, 0).argmax(1), p)
            column, pivot = b[rows, p], b[rows, p, p]
            value = q[rows, p]
            w -= ((w[rows, p] - value) / pivot)[:, None] * column
            b -= column[:, :, None] * column[:, None, :] / pivot[:, None, None]
            w[rows, p] = value
            b[rows, p, p] = 1
            done[rows, p] = True
        result.append(w)
    return torch.cat(result)


def compare(size, rows):
    """Yield one record for each method and version."""
    weight, x, _ = make_layer(size, size, max(2048, 2 * size), seed=0)
    hessian = layer_hessian(x)
    half, part = size // 2, weight[:rows]
    cases = {
        "50 % per row": (
            lambda w: exact_obs(w, hessian, sparsity=0.5, scope="row"),
            lambda: printed_prune(part, hessian, half),
            lambda: batched_prune(part, hessian, half, batch=BATCH),
        ),
        "50 % global": (
            lambda w: exact_obs(w, hessian, sparsity=0.5),
            # The traces of all rows to their ends; the selection on top is not timed.
            lambda: printed_prune(part, hessian, size),
            lambda: batched_prune(part, hessian, size, batch=BATCH),
        ),
        "2:4": (
            lambda w: exact_obs(w, hessian, pattern=(2, 4)),
            lambda: batched_prune(part, hessian, half, room=2, room_of=4),
            lambda: batched_prune(part, hessian, half, room=2, room_of=4, batch=BATCH),
        ),
        "OBQ 4 bit": (
            lambda w: obq(w, hessian, bits=4).dequantize(),
            lambda: batched_obq(part, hessian, 4),
            lambda: batched_obq(part, hessian, 4, batch=BATCH),
        ),
    }
    for case, (ours, literal, batched) in cases.items():
        compressed, wall, cpu = timed(lambda ours=ours: ours(weight))
        per_row = wall / size
        mine = relative_error(part, compressed[:rows], x)
        yield record(case, "mlcomp", size, wall, cpu, 1.0, relative_error(weight, compressed, x), same_rows=mine)
        for version, compress in (("literal", literal), ("batched literal", batched)):
            found, wall, cpu = timed(compress)
            error = None
            if case != "50 % global":
                error = relative_error(part, found, x)
                # The same arithmetic on the same rows: the same error up to the rounding of near ties.
                assert mine <= error * 1.001, f"{case}: {mine} on the rows where {version} has {error}"
            yield record(case, version, rows, wall, cpu, wall / rows / per_row, None, same_rows=error)


def refits(size):
    """Yield one record for each cheap mask, without and with the least-squares refit."""
    weight, x, held_out = make_layer(size, size, max(2048, 2 * size), seed=0)
    hessian, norm = layer_hessian(x), x.norm(dim=1)
    for target in ({"sparsity": 0.5}, {"pattern": (2, 4)}):
        name = "50 % per row" if "sparsity" in target else "2:4"
        exact = dict(target, scope="row") if "sparsity" in target else target
        methods = {
            "magnitude": lambda target=target: magnitude(weight, **target),
            "Wanda": lambda target=target: wanda(weight, norm, **target),
            "SparseGPT": lambda target=target: sparsegpt(weight, hessian, **target),
            "ExactOBS": lambda exact=exact: exact_obs(weight, hessian, **exact),
        }
        for method, prune in methods.items():
            pruned, wall, cpu = timed(prune)
            yield record(
                name,
                method,
                size,
                wall,
                cpu,
                None,
                relative_error(weight, pruned, x),
                relative_error(weight, pruned, held_out),
            )
            if method == "ExactOBS":
                continue
            fitted, more, more_cpu = timed(lambda pruned=pruned: refit(weight, pruned != 0, hessian))
            error, new = relative_error(weight, fitted, x), relative_error(weight, fitted, held_out)
            yield record(name, f"{method} + refit", size, wall + more, cpu + more_cpu, None, error, new)


def record(case, version, rows, wall, cpu, ratio, error, held_out=None, same_rows=None):
    """One line of the table. ``same_rows``: error on the rows that the literal versions were run on."""

    def rounded(value, digits):
        return None if value is None else round(value, digits)

    return {
        "case": case,
        "version": version,
        "rows": rows,
        "wall_s": round(wall, 3),
        "cpu_s": round(cpu, 3),
        "per_row_ratio": rounded(ratio, 1),
        "error": rounded(error, 5),
        "held_out_error": rounded(held_out, 5),
        "error_same_rows": rounded(same_rows, 5),
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=576, help="inputs and outputs of the layer, a multiple of 4")
    parser.add_argument("--rows", type=int, default=8, help="rows that the literal versions are run on")
    options = common_options(parser, RESULTS, argv)
    source = origin(seed=0) | {"layer": f"{options.size}x{options.size}"}
    print(source)
    print(
        f"{'case':14}{'version':22}{'rows':>6}{'wall s':>9}{'CPU s':>9}"
        f"{'per row ×':>11}{'error':>10}{'held-out':>10}{'same rows':>11}"
    )
    rows = chain(compare(options.size, min(options.rows, options.size)), refits(options.size))
    form = "{:14}{:22}{:>6}{:>9}{:>9}{:>11}{:>10}{:>10}{:>11}"
    show_and_keep(rows, form, source, None if options.no_record else RESULTS)


if __name__ == "__main__":
    main()
