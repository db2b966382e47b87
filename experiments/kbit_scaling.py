"""Quantize each model of the family at every precision, block size and data type; total bits against held-out loss.

    python experiments/kbit_scaling.py                  # about 15 minutes on one quiet core
    python experiments/kbit_scaling.py --device cuda    # about a minute; both go on where they stopped

One row a model and setting goes to ``mlcomp/data/tables/kbit_scaling.csv``, with what it was made on. The loss is on
the first 32 KiB of the fixed held-out text (``mlcomp.data.reference_bytes``).
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import append, origin
from mlcomp.compare import bits_per_byte, quantize_matrices
from mlcomp.data import reference_bytes
from mlcomp.data.committed_table import TABLES, read_table
from mlcomp.models import byte_lm
from mlcomp.models.byte_lm import WIDTHS

RESULTS = TABLES / "kbit_scaling.csv"
BLOCKS = (16, 64, 256, 1024, None)
TEXT = 32_768
SEED = 0  # with which the family was trained; nothing is drawn here


def settings() -> list[tuple[int, int | None, str]]:
    """Return all (bits, block size, data type): 16 bits once, then k = 2 … 8 with each block size and type."""
    grid = [(bits, size, kind) for bits in range(2, 9) for size in BLOCKS for kind in ("int", "float", "quantile")]
    return [(16, None, "float"), *(s for s in grid if s[0] > 2 or s[2] != "float")]


def row(width: int, bits: int, block_size: int | None, data_type: str, text: torch.Tensor) -> dict[str, object]:
    """Measure one model at one setting, on the device of ``text``."""
    start = time.perf_counter()
    model, total = quantize_matrices(
        byte_lm(width).to(text.device), bits=bits, block_size=block_size, data_type=data_type
    )
    loss = bits_per_byte(model, text)
    return {
        "width": width, "parameters": sum(p.numel() for p in model.parameters()), "bits": bits,
        "block_size": block_size or "matrix", "data_type": data_type, "total_bits": total,
        "bits_per_byte": f"{loss:.5f}", "seconds": f"{time.perf_counter() - start:.2f}",
    }  # fmt: skip


def main() -> None:
    """Measure what is not in the file yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    key = ("width", "bits", "block_size", "data_type")
    have = read_table(options.out) if options.out.exists() else []
    done = {tuple(r[k] for k in key) for r in have}
    text = reference_bytes(TEXT + 1).to(options.device)
    about = origin(seed=SEED, device=text.device)
    for width in options.widths:
        for bits, size, kind in settings():
            if (str(width), str(bits), str(size or "matrix"), kind) not in done:
                made = row(width, bits, size, kind, text)
                append([made | about], options.out)
                print(*made.values(), flush=True)


if __name__ == "__main__":
    main()
