"""AQLM and PV-tuning on the first blocks of SmolLM2, against GPTQ, QuIP and QuIP# on the same blocks: perplexity.

    python experiments/aqlm_smollm2.py                 # two blocks of thirty; about ten minutes on two quiet cores
    python experiments/aqlm_smollm2.py --tiny          # seconds; one block, few tokens, nothing written

Per block: AQLM on all seven linear layers, with the inputs that the blocks before it give; then block fine-tuning or
PV-tuning towards the original block's outputs. The other blocks stay as they are. Finished blocks are kept in the
cache (see ``mlcomp.resume``), and a killed run goes on after the last; ``seconds`` then counts the last part only.
SmolLM2's weights come from a 4-bit file, each block of 32 on a grid of its own; no method here uses groups of 32.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import append, origin
from experiments.whole_model import nearest
from mlcomp.assets import cache_dir
from mlcomp.data import python_reference, token_batches
from mlcomp.data.committed_table import TABLES, committed_table
from mlcomp.layerwise import collect_hessians, compress
from mlcomp.metrics import perplexity
from mlcomp.models import smollm2
from mlcomp.obs import gptq, quip, quip_sharp
from mlcomp.quant import CapturedBlock, aqlm, capture_block, pv_tuning
from mlcomp.resume import ResumeFolder, hash_batches, hash_model, hash_values

RESULTS = TABLES / "aqlm_smollm2.csv"
FIELDS = ["method", "blocks", "bits_per_weight", "perplexity", "loss_before", "loss_after", "seconds"]
SETTINGS = {
    "blocks": 2, "length": 128, "calibration": 48, "held_out": 32, "dim": 4, "books": 1, "code_bits": 8, "tau": 0.03,
    "rounds": 4, "steps": 12, "v_steps": 3, "v_batch_size": 16, "batch_size": 4, "learning_rate": 3e-3, "seed": 0,
}  # fmt: skip
TINY = SETTINGS | {
    "blocks": 1, "length": 32, "calibration": 8, "held_out": 4, "code_bits": 4, "tau": 0.5, "rounds": 1, "steps": 1,
    "v_steps": 1,
}  # fmt: skip


def linear_layers(model: nn.Module, block: str) -> list[str]:
    """Return the names of the block's linear layers."""
    return [name for name, m in model.named_modules() if name.startswith(block + ".") and isinstance(m, nn.Linear)]


def block_and_targets(
    model: nn.Module, dense: nn.Module, block: str, batches: Iterable[torch.Tensor], batch_size: int
) -> tuple[CapturedBlock, torch.Tensor]:
    """Return the block of ``model`` with the inputs it gets there, and the outputs it gave in the dense network."""
    here, original = capture_block(model, batches, block), capture_block(dense, batches, block)
    with torch.no_grad():
        return here, torch.cat([original.block(x) for x in original.inputs.split(batch_size)])


def compress_block(model: nn.Module, dense: nn.Module, block: str, batches: list, method: str, s: dict) -> dict:
    """Give the block of ``model`` codes, tune it in place; return codes by layer name and the facts of the tuning."""
    names = linear_layers(model, block)
    hessians = collect_hessians(model, batches, names)
    codes = {}
    for name in names:
        generator = torch.Generator().manual_seed(s["seed"])
        weight = model.get_submodule(name).weight.detach()
        sizes = {key: s[key] for key in ("dim", "books", "code_bits", "tau")}
        codes[name] = aqlm(weight, hessians[name], generator=generator, **sizes)
    here, targets = block_and_targets(model, dense, block, batches, s["batch_size"])
    options = {k: s[k] for k in ("steps", "v_steps", "v_batch_size", "batch_size", "learning_rate", "seed")}
    inside = {"block" + name.removeprefix(block): q for name, q in codes.items()}
    tuned = pv_tuning(
        here.block, here.inputs, inside, targets=targets, rounds=0 if method == "aqlm" else s["rounds"],
        method={"aqlm+pv": "pv", "aqlm+ste": "ste"}.get(method, "continuous"), **options,
    )  # fmt: skip
    model.get_submodule(block).load_state_dict(tuned.block.block.state_dict())
    return {"layers": {block + k.removeprefix("block"): q for k, q in tuned.layers.items()}, "loss": tuned.history}


def additive(
    model: nn.Module, calibration: list, method: str, s: dict, folder: Path | None
) -> tuple[nn.Module, dict]:
    """Return a copy with its first blocks compressed, and bits a weight and losses."""
    result = copy.deepcopy(model)
    store = None
    if folder is not None:
        print_of = {"model": hash_model(model), "calibration": hash_batches(calibration), "settings": json.dumps(s)}
        store = ResumeFolder(folder, print_of | {"method": hash_values((method, compress_block))})
    nbytes, count, losses = 0, 0, []
    for i in range(s["blocks"]):
        block = f"model.layers.{i}"
        if store is not None and block in store:
            tensors, facts = store.load(block)
            result.get_submodule(block).load_state_dict(tensors)
        else:
            made = compress_block(result, model, block, calibration, method, s)
            facts = {"nbytes": sum(q.nbytes for q in made["layers"].values()), "loss": list(made["loss"])}
            if store is not None:
                store.save(block, result.get_submodule(block).state_dict(), facts)
        nbytes += facts["nbytes"]
        count += sum(result.get_submodule(name).weight.numel() for name in linear_layers(result, block))
        losses.append([facts["loss"][0], min(facts["loss"])])
    before, after = (" ".join(f"{value:.5f}" for value in column) for column in zip(*losses, strict=True))
    return result, {"bits_per_weight": round(nbytes * 8 / count, 4), "loss_before": before, "loss_after": after}


def scalar(model: nn.Module, calibration: list, method: object, s: dict) -> tuple[nn.Module, dict]:
    """Return a copy with the same layers quantized by a (weight, hessian) method, and bits a weight."""
    names = [name for i in range(s["blocks"]) for name in linear_layers(model, f"model.layers.{i}")]
    result, report = compress(model, calibration, method, layers=names, progress=False)
    rows = [row for row in report.rows if row.name in set(names)]
    count = sum(model.get_submodule(name).weight.numel() for name in names)
    return result, {"bits_per_weight": round(sum(row.nbytes_after for row in rows) * 8 / count, 4)}


def methods(s: dict, *, keep: bool) -> dict[str, Callable]:
    """Return the methods by name: (model, calibration) → compressed copy and facts."""
    layerwise = {
        "rtn": partial(nearest, bits=2, clip="mse"),
        "gptq": partial(gptq, bits=2),
        "gptq, order and clip": partial(gptq, bits=2, order="activation", clip="mse"),
        "quip": partial(quip, bits=2, transform="hadamard", seed=s["seed"]),
        "quip#": partial(quip_sharp, bits=2, seed=s["seed"]),
    }
    made = {name: partial(scalar, method=method, s=s) for name, method in layerwise.items()}
    for name in ("aqlm", "aqlm+block tuning", "aqlm+ste", "aqlm+pv"):
        folder = cache_dir() / "experiments" / "aqlm_smollm2" / name.replace(" ", "_") if keep else None
        made[name] = partial(additive, method=name, s=s, folder=folder)
    return made


def run(s: dict, path: Path | None) -> None:
    """Measure every method that ``path`` lacks: perplexity on held-out text, size and seconds; add a row for each."""
    model, tokenizer = smollm2()
    shape = {"length": s["length"], "batch_size": s["batch_size"]}
    calibration = token_batches(tokenizer, python_reference(), count=s["calibration"], **shape)
    held_out = token_batches(tokenizer, python_reference("held_out"), count=s["held_out"], **shape)
    settings = json.dumps(s)
    have = committed_table(path.stem) if path is not None and path.exists() else []
    finished = {row["method"] for row in have if row["settings"] == settings}
    for name, method in {"dense": None, **methods(s, keep=path is not None)}.items():
        if name in finished:
            continue
        start = time.perf_counter()
        compressed, facts = method(model, calibration) if method else (model, {"bits_per_weight": 32.0})
        seconds = round(time.perf_counter() - start, 1)
        row = dict.fromkeys(FIELDS, "") | {"method": name, "blocks": s["blocks"]} | facts
        row |= {"perplexity": round(perplexity(compressed, held_out), 3), "seconds": seconds}
        print({k: v for k, v in row.items() if v != ""}, flush=True)
        if path is not None:
            append([row | origin(seed=s["seed"]) | {"settings": settings}], path)


def main() -> None:
    """Run, and write the results unless the run is tiny."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a quick trial that writes nothing")
    parser.add_argument("--blocks", type=int, default=SETTINGS["blocks"])
    arguments = parser.parse_args()
    if arguments.tiny:
        run(TINY, None)
    else:
        run(SETTINGS | {"blocks": arguments.blocks}, RESULTS)


if __name__ == "__main__":
    main()
