"""Train the course's two small networks on mnist5k; write their weights and what was measured.

    python experiments/train_small_nets.py             # both; a few minutes on two cores
    python experiments/train_small_nets.py convnet     # one of them

Weights go to ``mlcomp/models/weights/``, numbers to ``experiments/results/small_nets.json`` (the model card and a
test read them). Interrupted, it goes on from the last epoch (checkpoints in the cache).
"""

import json
import platform
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from mlcomp.assets import cache_dir
from mlcomp.data import mnist5k, random_shift
from mlcomp.metrics import accuracy
from mlcomp.models import convnet, mlp
from mlcomp.models.pretrained import WEIGHTS
from mlcomp.train import train

RESULTS = Path(__file__).parent / "results" / "small_nets.json"
NETWORKS = {"mlp": mlp, "convnet": convnet}
RECIPES = {
    "mlp": {"epochs": 60, "lr": 2e-3, "batch_size": 64, "seed": 0, "weight_decay": 1e-2},
    "convnet": {"epochs": 30, "lr": 4e-3, "batch_size": 64, "seed": 0, "weight_decay": 1e-2},
}


def run(name: str) -> dict:
    """Train one network; save its weights; return the recipe and the numbers."""
    model = NETWORKS[name](pretrained=False, seed=RECIPES[name]["seed"])
    checkpoint = cache_dir() / "checkpoints" / f"{name}.pt"
    start = time.perf_counter()
    history = train(model, *mnist5k("train"), augment=random_shift, checkpoint=checkpoint, **RECIPES[name])
    seconds = time.perf_counter() - start
    WEIGHTS.mkdir(exist_ok=True)
    path = WEIGHTS / f"{name}.safetensors"
    save_file(model.state_dict(), path)
    checkpoint.unlink()
    return {
        "recipe": RECIPES[name] | {"augment": "random_shift, 2 pixels"},
        "parameters": sum(p.numel() for p in model.parameters()),
        "file_bytes": path.stat().st_size,
        "accuracy_train": accuracy(model, *mnist5k("train")),
        "accuracy_held_out": accuracy(model, *mnist5k("held_out")),
        "loss_last_epoch": history.loss[-1],
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": f"{platform.machine()}, CPU",
    }


def main(names: list[str]) -> None:
    """Train the named networks, or both, and update the results file."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names or sorted(NETWORKS):
        results[name] = run(name)
        print(name, json.dumps(results[name], indent=1))
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
