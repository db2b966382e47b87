"""Train the course's three small networks on mnist5k; write their weights and what was measured.

    python experiments/train_small_nets.py             # all; a few minutes on two cores
    python experiments/train_small_nets.py convnet     # one of them

Weights go to ``mlcomp/models/weights/``, numbers to ``mlcomp/data/tables/small_nets.json`` and from there to the
table in ``book/models.md`` (a test compares them). The vision transformer's weights are kept in float16, and it is
measured with these. Interrupted, it goes on from the last epoch (checkpoints in the
cache); ``seconds`` then counts the last part only.
"""

import json
import sys
import time
from pathlib import Path

from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import origin
from mlcomp.assets import cache_dir
from mlcomp.data import mnist5k, random_shift
from mlcomp.data.committed_table import TABLES, read_results, write_results
from mlcomp.metrics import accuracy
from mlcomp.models import convnet, mlp, vit
from mlcomp.models.pretrained import WEIGHTS
from mlcomp.resume import replacing
from mlcomp.train import train

RESULTS = TABLES / "small_nets.json"
CARD = Path(__file__).parents[1] / "book" / "models.md"
MARKS = ("<!-- small_nets.json: begin -->\n", "<!-- small_nets.json: end -->\n")
NETWORKS = {"mlp": mlp, "convnet": convnet, "vit": vit}
HALF = {"vit"}  # weights kept in float16
RECIPES = {
    "mlp": {"epochs": 60, "lr": 2e-3, "batch_size": 64, "seed": 0, "weight_decay": 1e-2},
    "convnet": {"epochs": 30, "lr": 4e-3, "batch_size": 64, "seed": 0, "weight_decay": 1e-2},
    "vit": {"epochs": 40, "lr": 3e-3, "batch_size": 64, "seed": 0, "weight_decay": 5e-2},
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
    weights = model.state_dict()
    with replacing(path) as draft:
        save_file({k: w.half() for k, w in weights.items()} if name in HALF else weights, draft)
    model.load_state_dict(load_file(path))
    checkpoint.unlink()
    return {
        "recipe": RECIPES[name] | {"augment": "random_shift, 2 pixels"},
        "parameters": sum(p.numel() for p in model.parameters()),
        "file_bytes": path.stat().st_size,
        "accuracy_train": accuracy(model, *mnist5k("train")),
        "accuracy_held_out": accuracy(model, *mnist5k("held_out")),
        "loss_last_epoch": history.loss[-1],
        "seconds": round(seconds, 1),
        "origin": origin(seed=RECIPES[name]["seed"]),
    }


def table(results: dict) -> str:
    """Return the model card's table."""
    lines = ["| network | parameters | file | held-out accuracy | training accuracy | epochs |"]
    lines.append("|---|---|---|---|---|---|")
    for name, r in sorted(results.items()):
        lines.append(
            f"| `{name}` | {r['parameters']:,} | {r['file_bytes'] / 1e6:.2f} MB | **{r['accuracy_held_out']:.1%}** "
            f"| {r['accuracy_train']:.2%} | {r['recipe']['epochs']} |"
        )
    return "\n".join(lines) + "\n"


def write_card(results: dict) -> None:
    """Put the table between its marks in the model card."""
    before, rest = CARD.read_text().split(MARKS[0])
    with replacing(CARD) as draft:
        draft.write_text(before + MARKS[0] + table(results) + MARKS[1] + rest.split(MARKS[1])[1])


def main(names: list[str]) -> None:
    """Train the named networks, or all, and update the results file."""
    results = read_results(RESULTS) if RESULTS.exists() else {}
    for name in names or sorted(NETWORKS):
        results[name] = run(name)
        print(name, json.dumps(results[name], indent=1))
        write_results(dict(sorted(results.items())), RESULTS)
    write_card(results)


if __name__ == "__main__":
    main(sys.argv[1:])
