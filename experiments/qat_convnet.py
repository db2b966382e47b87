"""Rounding after training against training with rounding, on the course's convolutional network and mnist5k.

    python experiments/qat_convnet.py            # W4A4, W2A4 and W2A2, two seeds; about ten minutes on two cores
    python experiments/qat_convnet.py --epochs 1 --count 500 --no-record    # a quick look

First and last layer have 8 bits. Each line is a method; accuracy is on the 1000 held-out digits, the divergence is
that of the predicted probabilities from the float32 network's. Numbers go to
``mlcomp/data/tables/qat_convnet.json``.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import origin
from mlcomp.data import mnist5k, mnist_calibration, random_shift
from mlcomp.data.committed_table import TABLES, read_results, write_results
from mlcomp.layerwise import reestimate_batchnorm
from mlcomp.metrics import accuracy, kl_divergence
from mlcomp.models import convnet
from mlcomp.quant import (
    SizeTarget,
    diffq_codes,
    finish_qat,
    meet_size,
    prepare_diffq,
    prepare_qat,
    ptq,
)
from mlcomp.train import train

RESULTS = TABLES / "qat_convnet.json"
ENDS = {"stem.conv": (8, 8), "head": (8, 8)}
BITS = ((4, 4), (2, 4), (2, 2))
SEEDS = (0, 1)
ROUNDINGS = {
    "rounded, folded": {},
    "rounded, biases corrected": {"bias_correction": True},
    "rounded, BatchNorm re-estimated": {"batchnorm": "reestimate"},
}
DIFFQ_BITS = (3.0, 4.0)  # mean bits a weight that DiffQ aims at


def measured(model, images, labels, reference) -> dict:
    """Return accuracy and divergence [nats] of a network in eval mode."""
    with torch.no_grad():
        divergence = kl_divergence(reference, model.eval()(images))
    return {"accuracy": accuracy(model, images, labels), "divergence": round(divergence, 5)}


def quantized(options, images, labels, reference):
    """Yield one record for each number of bits, method and seed."""
    data, batches = mnist5k("train", count=options.count), mnist_calibration(256)
    model = convnet()
    for w, a in BITS:
        bits = {"weight_bits": w, "input_bits": a, "overrides": ENDS}
        for method, extra in ROUNDINGS.items():
            result = ptq(model, batches, **bits, **extra)
            yield {"bits": f"W{w}A{a}", "method": method, "nbytes": result.nbytes} | measured(
                result.model, images, labels, reference
            )
        for method in ("ste", "lsq"):
            for seed in SEEDS:
                student, start = prepare_qat(model, batches, method=method, **bits), time.perf_counter()
                train(student, *data, epochs=options.epochs, lr=1e-3, seed=seed, augment=random_shift, progress=False)
                seconds = time.perf_counter() - start
                result = finish_qat(student)
                line = {"bits": f"W{w}A{a}", "method": method, "seed": seed, "nbytes": result.nbytes}
                yield line | measured(result.model, images, labels, reference) | {"seconds": round(seconds, 1)}
                settled = finish_qat(reestimate_batchnorm(student, batches)).model
                line["method"] = f"{method}, BatchNorm re-estimated"
                yield line | measured(settled, images, labels, reference)


def mixed(options, images, labels, reference):
    """Yield one record for each size and seed of DiffQ: the bits of each layer as learned."""
    data = mnist5k("train", count=options.count)
    for mean_bits in DIFFQ_BITS:
        for seed in SEEDS:
            student = prepare_diffq(convnet(), group_size=None, init_bits=6.0, speed=30.0)
            count = sum(c.codes.numel() for c in diffq_codes(student).values())
            target, start = count * mean_bits / 8, time.perf_counter()
            loss = SizeTarget(student, target, start=0.003, rate=0.03)
            shared = {"lr": 5e-4, "seed": seed, "augment": random_shift, "progress": False}
            train(student, *data, epochs=options.epochs - 1, loss=loss, **shared)
            trained = sum(c.nbytes for c in diffq_codes(student).values())
            student = meet_size(student, target)
            train(student, *data, epochs=1, **shared)  # at fixed bits
            seconds = time.perf_counter() - start
            packed = diffq_codes(student)
            line = {"method": "DiffQ", "seed": seed, "target_bytes": round(target), "trained_bytes": trained}
            line |= {"packed_bytes": sum(len(c.pack()) + 8 for c in packed.values())}
            line |= measured(student, images, labels, reference)
            yield line | {"bits": {n: int(c.bits[0]) for n, c in packed.items()}, "seconds": round(seconds, 1)}


def main(argv: list[str] | None = None) -> None:
    """Run everything and write the numbers after each record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--count", type=int, default=4000, help="training images")
    parser.add_argument("--part", choices=("quantized", "mixed"), help="one of the two tables; the other stays")
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args(argv)
    images, labels = mnist5k("held_out")
    with torch.no_grad():
        reference = convnet()(images)
    result = {
        "recipe": {"epochs": options.epochs, "images": options.count, "lr": 1e-3, "lr_diffq": 5e-4, "batch_size": 64},
        "float32_accuracy": accuracy(convnet(), images, labels),
        "origins": {},
        "quantized": [],
        "mixed": [],
    }
    if options.part and RESULTS.exists():
        there = read_results(RESULTS)
        if there["recipe"] != result["recipe"]:
            raise SystemExit(f"the other table of {RESULTS} was made otherwise, {there['recipe']}: run both parts")
        (other,) = {"quantized", "mixed"} - {options.part}
        result |= {other: there[other], "origins": {other: there["origins"][other]}}
    for key, records in (("quantized", quantized), ("mixed", mixed)):
        if options.part not in (None, key):
            continue
        result["origins"][key] = origin(seed=SEEDS)
        for record in records(options, images, labels, reference):
            print(record, flush=True)
            result[key].append(record)
            if not options.no_record:
                write_results(result, RESULTS)


if __name__ == "__main__":
    main()
