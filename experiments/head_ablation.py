"""The loss without each attention head of three models, one head at a time, beside the heads' importance.

    python experiments/head_ablation.py                    # all; ten minutes on one core
    python experiments/head_ablation.py --part byte_lm     # or minilm, smollm2; what is there is not run again

byte_lm: the course's byte-level language model of width 64, 4 × 4 heads, 128 sequences of 128 bytes of held-out text.
minilm: all-MiniLM-L6-v2, 6 × 12 heads, says to which of eight topics of Python's reference 64 pieces of 32 tokens
    belong: logits are 20 times the cosine with the mean vector of other pieces of each topic, the loss is the
    cross-entropy.
smollm2: SmolLM2-135M, 30 × 9 query heads, 4 sequences of 64 tokens of held-out text. Without a head of block k only
    the blocks from k on are run again.

Rows go to ``mlcomp/data/tables/head_ablation.csv``: for each head the mean change of the loss [nats] without it, the
standard error of that mean over the examples, and its importance, not normalized, by three conventions.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))  # for benchmarks, which is no part of the installed package

from benchmarks.record import run_parts
from mlcomp.data import python_reference, reference_bytes, token_batches
from mlcomp.data.committed_table import TABLES
from mlcomp.layerwise.running import hooked
from mlcomp.models import byte_lm, minilm, smollm2
from mlcomp.modes import evaluating
from mlcomp.prune import attention_heads, head_importance, head_loss_changes
from mlcomp.prune.structured.attention_heads import inputs_masked
from mlcomp.prune.structured.head_importance import PER, next_token_losses

RESULTS = TABLES / "head_ablation.csv"
TOPICS, PIECES, TOKENS = 8, 8, 30  # the two tokens around a piece come to its 30

Row = dict[str, object]


def rows(
    model: nn.Module, heads: Mapping[str, int], changes: Mapping[str, Tensor], importance: Callable
) -> Iterator[Row]:
    """Yield the row of each head."""
    scores = {per: importance(per=per, normalize=False) for per in PER}
    for layer, (name, change) in enumerate(changes.items()):
        error = change.std(1) / change.shape[1] ** 0.5
        for head in range(heads[name]):
            measured = {"change": f"{float(change[head].mean()):.6f}", "error": f"{float(error[head]):.6f}"}
            conventions = {f"per_{per}": f"{float(score[name][head]):.6f}" for per, score in scores.items()}
            yield {"name": name, "layer": layer, "head": head} | measured | conventions


def simple(model: nn.Module, batches: list[Any], heads: Mapping[str, int], loss: Callable) -> Iterator[Row]:
    """Yield the rows of a model that is run as a whole for each head."""
    changes = head_loss_changes(model, batches, heads, loss)
    yield from rows(model, heads, changes, partial(head_importance, model, batches, heads, loss))


def bytes_part(seed: int) -> Iterator[Row]:
    """Yield the rows of byte_lm."""
    model, tokens = byte_lm(64), reference_bytes(128 * 128).reshape(128, 128)
    yield from simple(model, [tokens], attention_heads(model, tokens[:1, :8]), next_token_losses)


def pieces(tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Return the pieces of the longest topics, (topics, 2 · PIECES, TOKENS + 2), those for the mean vectors first."""
    from pydoc_data.topics import topics

    longest = sorted(topics.items(), key=lambda topic: (-len(topic[1]), topic[0]))[:TOPICS]
    count = 2 * PIECES
    found = []
    for _, text in longest:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][: count * TOKENS]
        body = torch.tensor(ids).reshape(count, TOKENS)
        ends = [torch.full((count, 1), i) for i in (tokenizer.cls_token_id, tokenizer.sep_token_id)]
        found.append(torch.cat([ends[0], body, ends[1]], 1))
    both = torch.stack(found)
    return both[:, :PIECES], both[:, PIECES:]


def vectors(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the unit vector of each piece: the mean over its tokens."""
    return F.normalize(model(tokens).last_hidden_state.mean(1), dim=1)


def minilm_part(seed: int) -> Iterator[Row]:
    """Yield the rows of MiniLM."""
    model, tokenizer = minilm()
    known, asked = pieces(tokenizer)
    with evaluating(model):
        means = F.normalize(vectors(model, known.flatten(0, 1)).unflatten(0, (TOPICS, PIECES)).mean(1), dim=1)
    tokens, labels = asked.flatten(0, 1), torch.arange(TOPICS).repeat_interleave(PIECES)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(20 * vectors(model, batch[0]) @ means.T, batch[1], reduction="none")

    yield from simple(model, [(tokens, labels)], attention_heads(model, tokens[:1]), loss)


class FromBlock:
    """The losses of SmolLM2 on one batch, computed from any block on."""

    def __init__(self, model: Any, tokens: Tensor) -> None:
        self.model, self.tokens = model, tokens
        self.inputs: list[tuple[Tensor, dict]] = []

        def keep(block: nn.Module, args: tuple, kwargs: dict) -> None:
            self.inputs.append((args[0], kwargs))

        blocks = model.model.layers
        with hooked([block.register_forward_pre_hook(keep, with_kwargs=True) for block in blocks]):
            self.whole = next_token_losses(model, tokens).double()

    def losses(self, first: int) -> Tensor:
        """Return the loss of each sequence, by the blocks from ``first`` on."""
        hidden, kwargs = self.inputs[first]
        for block in self.model.model.layers[first:]:
            hidden = block(hidden, **kwargs)
        logits = self.model.lm_head(self.model.model.norm(hidden))
        return F.cross_entropy(logits[:, :-1].mT, self.tokens[:, 1:], reduction="none").mean(1).double()


def smollm2_part(seed: int) -> Iterator[Row]:
    """Yield the rows of SmolLM2."""
    model, tokenizer = smollm2()
    model.config.use_cache = False
    (tokens,) = token_batches(tokenizer, python_reference("held_out"), length=64, count=4)
    heads = attention_heads(model, tokens[:1, :8])
    changes = {}
    with evaluating(model):
        run = FromBlock(model, tokens)
        torch.testing.assert_close(run.losses(3), run.whole, rtol=0, atol=1e-5)
        for block, (name, count) in enumerate(heads.items()):
            found = []
            for head in range(count):
                with inputs_masked(model, {name: 1 - F.one_hot(torch.tensor(head), count).float()}):
                    found.append(run.losses(block) - run.whole)
            changes[name] = torch.stack(found)
            print(name, changes[name].mean(1).tolist(), flush=True)
    yield from rows(model, heads, changes, partial(head_importance, model, [tokens], heads, next_token_losses))


PARTS = {"byte_lm": bytes_part, "minilm": minilm_part, "smollm2": smollm2_part}

if __name__ == "__main__":
    run_parts(PARTS, {part: [0] for part in PARTS}, RESULTS, about=__doc__)
