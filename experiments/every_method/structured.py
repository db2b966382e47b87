"""Methods that remove units of sublayers: heads of the attention, hidden units of the feed-forward layers.

Each takes (subject, **setting) and returns a ``networks.Compressed``. The small network is tuned by the recipe of all
that train, and then written back into the full shapes, with zeros where a unit is gone, so that it is measured as the
others are. Its size is that of the small matrices in 16 bits: nothing says where zeros stand, since there are none.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiments.every_method.networks import (
    BATCH,
    EPOCHS,
    RATE,
    SEED,
    Compressed,
    Student,
    only_blocks,
    targets,
    trained,
)
from mlcomp.compare.subject import Subject
from mlcomp.distill import cofi
from mlcomp.prune import attention_heads, bonsai, head_loss_changes, module_blocks, module_utility, remove_heads

FEW = 16  # inputs on which units are judged
UNITS = 16  # hidden units in a block of those that go together
GATED = EPOCHS // 2  # of CoFi's epochs: half of the recipe learns the gates, half tunes what they leave
# The names of BERT's sublayers: those whose rows are the units, and the one that reads them.
SUBLAYERS = (
    (("attention.self.query", "attention.self.key", "attention.self.value"), "attention.output.dense"),
    (("intermediate.dense",), "output.dense"),
)


@dataclass(frozen=True)
class Smaller:
    """What is left of a matrix in its full shape, stored in 16 bits without the rest.

    Attributes:
        weight: (out, inp), zero where units are gone. count: numbers that are stored.
    """

    weight: Tensor
    count: int

    def dequantize(self) -> Tensor:
        """Return the weight, rounded to float16."""
        return self.weight.half().float()

    @property
    def nbytes(self) -> int:
        """Two bytes for each number that is left."""
        return 2 * self.count


def structured(choose: Callable[..., tuple[nn.Module, nn.Module]], epochs: int = EPOCHS) -> Callable[..., Compressed]:
    """Return the method that removes what ``choose(student, subject, **setting)`` leaves out, and tunes the rest.

    ``choose`` returns a small network, and the full one whose rows it keeps; both wrapped as the student is.
    ``epochs`` are those of the recipe that ``choose`` has not spent.
    """

    def method(subject: Subject, **setting: float) -> Compressed:
        student = Student(copy.deepcopy(subject.model), subject.output)
        small, full = (net.get_submodule("model") for net in choose(student, subject, **setting))
        kept = {block: kept_units(full.get_submodule(block), small.get_submodule(block)) for block in subject.blocks}
        tuned = trained(only_blocks(copy.deepcopy(small), subject), subject, targets(subject), epochs=epochs)
        return written_back(subject, tuned, kept)

    return method


def kept_units(full: nn.Module, small: nn.Module) -> dict[str, Tensor]:
    """Return for each sublayer of a block which rows of the full matrices the small ones have."""
    found = {}
    for readers, writer in SUBLAYERS:
        rows = [net.get_submodule(readers[-1]).weight.detach() for net in (full, small)]
        places = {row.numpy().tobytes(): place for place, row in enumerate(rows[0])}
        found[writer] = torch.tensor([places[row.numpy().tobytes()] for row in rows[1]], dtype=torch.long)
    return found


def written_back(subject: Subject, small: nn.Module, kept: Mapping[str, Mapping[str, Tensor]]) -> Compressed:
    """Return the small network in the full shapes."""
    model, results = copy.deepcopy(subject.model), {}
    whole = model.state_dict()
    for name, value in small.state_dict().items():
        if value.shape == whole[name].shape:
            whole[name].copy_(value)
    for block in subject.blocks:
        for readers, writer in SUBLAYERS:
            places = kept[block][writer]
            for short in (*readers, writer):
                name = f"{block}.{short}"
                layer, little = model.get_submodule(name), small.get_submodule(name)
                weight = torch.zeros_like(layer.weight)
                with torch.no_grad():
                    if short == writer:
                        weight[:, places] = little.weight
                    else:
                        weight[places] = little.weight
                        layer.bias.zero_()[places] = little.bias
                    layer.weight.copy_(weight)
                results[name] = Smaller(weight, little.weight.numel())
    return Compressed(model, results)


def distance(subject: Subject) -> tuple[Tensor, Callable[[nn.Module, Tensor], Tensor]]:
    """Return a few inputs, and the loss of each of them: the mean square of what changed in the dense outputs."""
    batch = subject.inputs[:FEW]
    with torch.no_grad():
        goal = subject.output(subject.model, batch)  # once: the loss is asked for a hundred times

    def loss(model: nn.Module, inputs: Tensor) -> Tensor:
        return (model(inputs) - goal).square().flatten(1).mean(1)

    return batch, loss


def heads_one_by_one(student: nn.Module, subject: Subject, *, heads: float) -> tuple[nn.Module, nn.Module]:
    """Remove the share of heads without which the outputs change least; one of each layer stays."""
    batch, loss = distance(subject)
    counts = attention_heads(student, batch[:1])
    changes = {name: change.mean(1) for name, change in head_loss_changes(student, [batch], counts, loss).items()}
    ranked = sorted((float(c), name, head) for name, change in changes.items() for head, c in enumerate(change))
    gone: dict[str, list[int]] = {name: [] for name in counts}
    for _, name, head in ranked:
        if sum(map(len, gone.values())) < round(heads * sum(counts.values())) and len(gone[name]) + 1 < counts[name]:
            gone[name].append(head)
    return remove_heads(student, {name: some for name, some in gone.items() if some}, batch[:1]), student


def by_bonsai(student: nn.Module, subject: Subject, *, sparsity: float) -> tuple[nn.Module, nn.Module]:
    """Remove heads and blocks of hidden units by regression on random submodels."""
    batch, loss = distance(subject)
    blocks = attention_heads(student, batch[:1])
    for block in subject.blocks:
        writer = f"model.{block}.{SUBLAYERS[1][1]}"
        blocks[writer] = student.get_submodule(writer).in_features // UNITS
    modules = module_blocks(student, batch[:1], blocks)
    utility = module_utility(student, modules, [batch], loss)
    made = bonsai(utility, modules.sizes, sparsity=sparsity, samples=100, layers=modules.layers, seed=SEED)
    return modules.remove(student, made.removed), student


def by_cofi(student: nn.Module, subject: Subject, *, sparsity: float) -> tuple[nn.Module, nn.Module]:
    """Remove heads and hidden units by gates that are learned with the weights, for ``GATED`` epochs.

    Whole sublayers have no gates of their own: after so few steps these are half open, which counts as sparsity but
    removes nothing. Dimensions of the stream stay, since LayerNorm averages over them. There are no logits: the loss
    is that of an infinite temperature, a mean square of centred outputs.
    """
    only_blocks(student.get_submodule("model"), subject)
    width = student(subject.inputs[:1]).shape[-1]
    reader = nn.Linear(width, width, bias=False).requires_grad_(False)  # what a model returns is no stream to read
    reader.weight.copy_(torch.eye(width))
    found = cofi(
        nn.Sequential(student, reader), subject.inputs, sparsity=sparsity, epochs=GATED, lr=RATE, batch_size=BATCH,
        levels=("units",), temperature=math.inf, seed=SEED, progress=False,
    )  # fmt: skip
    return found.removed.get_submodule("0"), found.whole.get_submodule("0")
