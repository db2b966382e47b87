"""Drop tokens of the course's vision transformer: learned, at random, by ink; write accuracy and multiply-adds.

    python experiments/dynamic_tokens.py                    # all; about ten minutes on one quiet core
    python experiments/dynamic_tokens.py --seeds 0          # what is there already is not run again

Each plan names the blocks before which tokens are dropped and the share of the 49 that is left there. In each plan
all rules keep the same number of tokens of every image:

learned: DynamicViT, two epochs; the predictors' rate is 1e-2, the backbone's 1e-4.
random, most ink, least ink: tokens drawn anew for each image, or those with the largest or smallest mean pixel.
class attention: those that the class token attends to most in the first block.
random tuned, most ink tuned: the same rule while the backbone trains on for two epochs, at 1e-4, with the same labels
    and teacher.

Each run is a row of ``mlcomp/data/tables/dynamic_tokens.csv``: accuracy on the 1000 held-out digits with equal
counts; for learned tokens also the share that the draws of training keep, and what the threshold ½ gives instead.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import append, origin
from mlcomp.data import mnist5k
from mlcomp.data.committed_table import TABLES, committed_table
from mlcomp.models import vit
from mlcomp.prune import DynamicViT, train_dynamic_vit
from mlcomp.train import train

RESULTS = TABLES / "dynamic_tokens.csv"
SEEDS = (0, 1, 2)
PLANS = ({1: 0.5}, {1: 0.25}, {1: 0.125}, {1: 0.5, 2: 0.25, 3: 0.125})
RATE, BACKBONE_RATE = 1e-2, 0.01
TRAINING = {"epochs": 2, "batch_size": 64, "progress": False}

Rule = Callable[[Tensor], Tensor]


def ink(images: Tensor) -> Tensor:
    """Return the mean pixel of each token's 4×4 patch, (n, 49)."""
    return F.avg_pool2d(images, 4).flatten(1)


def drawn(images: Tensor) -> Tensor:
    """Return random scores."""
    return torch.rand(len(images), 49)


@torch.no_grad()
def class_attention(images: Tensor) -> Tensor:
    """Return how much the class token attends to each token in the first block, mean over the heads."""
    backbone, seen = vit(), []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        seen.append(weights[:, :, 0, 1:].mean(1))
        return weights @ v

    backbone.blocks[0](backbone.embed(images), attend)
    return seen[0]


RULES: dict[str, Rule] = {
    "random": drawn,
    "most ink": ink,
    "least ink": lambda images: -ink(images),
    "class attention": class_attention,
}


class Ruled(nn.Module):
    """The network that keeps tokens by a rule, beside its dense teacher, for training."""

    def __init__(self, model: DynamicViT, rule: Rule) -> None:
        super().__init__()
        self.model, self.teacher, self.rule = model, vit().requires_grad_(False), rule

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of both."""
        return self.model.select(images, scores=self.rule(images)).logits, self.teacher(images)


def distilled(outputs: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
    """Return cross-entropy + ½ KL, as the learned tokens have it."""
    logits, teacher = (x.log_softmax(-1) for x in outputs)
    kl = F.kl_div(logits, teacher, reduction="batchmean", log_target=True)
    return F.nll_loss(logits, labels) + 0.5 * kl


def tuned(plan: dict[int, float], rule: Rule, seed: int) -> DynamicViT:
    """Return the network whose backbone was trained on with tokens dropped by the rule."""
    both = Ruled(DynamicViT(vit(), plan), rule)
    options = TRAINING | {"lr": RATE * BACKBONE_RATE, "loss": distilled, "seed": seed}
    train(both, *mnist5k("train"), **options)
    return both.model.eval()


@torch.no_grad()
def right(model: DynamicViT, scores: Tensor | None = None) -> float:
    """Return the accuracy on the held-out digits with equal counts."""
    x, y = mnist5k("held_out")
    return float((model.select(x, scores=scores).logits.argmax(1) == y).double().mean())


@torch.no_grad()
def draws_and_threshold(model: DynamicViT, seed: int) -> dict[str, object]:
    """Return the shares that draws keep, and accuracy and tokens of the last stage at the threshold ½."""
    x, y = mnist5k("held_out")
    decided = model.decide(x, generator=torch.Generator().manual_seed(seed))
    free = model.select(x, threshold=0.5)
    counts = free.kept[-1].sum(1)
    return {
        "drawn_shares": " ".join(f"{float(d.mean()):.4f}" for d in decided.decisions),
        "free_accuracy": float((free.logits.argmax(1) == y).double().mean()),
        "free_tokens": round(float(counts.double().mean()), 3),
        "free_range": f"{int(counts.min())} {int(counts.max())}",
    }


NOTHING = dict.fromkeys(("drawn_shares", "free_accuracy", "free_tokens", "free_range"), "")


def runs(plan: dict[int, float], seed: int) -> Iterator[dict[str, object]]:
    """Yield method, accuracy, and the rest of the row, for one plan and seed."""
    plain = DynamicViT(vit(), plan)
    x = mnist5k("held_out")[0]
    for name, rule in RULES.items():
        if name != "random" and seed:
            continue  # nothing is drawn
        torch.manual_seed(seed)
        yield {"method": name, "accuracy": right(plain, rule(x)), **NOTHING}
    for name in ("random", "most ink"):
        model = tuned(plan, RULES[name], seed)
        torch.manual_seed(seed)
        yield {"method": f"{name} tuned", "accuracy": right(model, RULES[name](x)), **NOTHING}
    options = TRAINING | {"lr": RATE, "backbone_rate": BACKBONE_RATE, "seed": seed}
    model = train_dynamic_vit(vit(), *mnist5k("train"), ratios=plan, **options).model
    yield {"method": "learned", "accuracy": right(model), **draws_and_threshold(model, seed)}


def main(argv: list[str] | None = None) -> None:
    """Run the plans and seeds that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    options = parser.parse_args(argv)
    have = committed_table(RESULTS.stem) if RESULTS.exists() else []
    for seed in options.seeds:
        for plan in PLANS:
            blocks = " ".join(map(str, plan))
            model = DynamicViT(vit(), plan)
            tokens = " ".join(map(str, model.counts))
            if any((row["blocks"], row["tokens"], row["seed"]) == (blocks, tokens, str(seed)) for row in have):
                continue
            rows, began = [], time.perf_counter()
            for row in runs(plan, seed):
                cost = {"multiply_adds": model.multiply_adds(predictors=row["method"] == "learned")}
                rows.append({"blocks": blocks, "tokens": tokens, **row, **cost})
                print(seed, rows[-1], flush=True)
            seconds = {"seconds": round(time.perf_counter() - began, 1)}
            append([row | seconds | origin(seed=seed) for row in rows], RESULTS)


if __name__ == "__main__":
    main()
