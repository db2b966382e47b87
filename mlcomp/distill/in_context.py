r"""In-context learning distillation: a student learns from a teacher to read examples that stand before a question.

Notation: D sequences of examples and a question, in which the label tokens count; D' ordinary text, in which all do;
q the teacher's and p the student's probabilities of the next token.

$$L = L(D) + \beta L(D'), \quad L(\cdot) = \mathrm{mean}\,[(1 - \alpha)\,(-\log p(y_t)) + \alpha\,T^2\,\mathrm{KL}(q
\Vert p)]$$

The teacher reads the same sequence, examples included, so its soft label says how sure the examples make it.
Source: Huang, Chen, Yu, McKeown 2022, arXiv:2212.10670 (hard and soft labels, on in-context sequences and as
language modelling). How the paper weighs the four parts over the training is not repeated here: α and β are yours,
and α may change.   Syllabus: 5.07
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from mlcomp.checks import check_interval, check_mask, check_whole
from mlcomp.context import isolated_run
from mlcomp.distill.soft_targets import distillation_loss
from mlcomp.distill.teaching import Seen, teach
from mlcomp.distill.train_student import Taught
from mlcomp.generate.outputs import check_tokens
from mlcomp.layerwise.fit import copy_model
from mlcomp.modes import home
from mlcomp.train.loop import batch_starts

Share = float | int | Callable[[float], float]


@isolated_run
def in_context_student(
    student: nn.Module,
    teacher: nn.Module,
    sequences: Int64[Tensor, "n length"],
    counted: Bool[Tensor, "n length"],
    *,
    alpha: Share,
    temperature: float | int = 1.0,
    text: Int64[Tensor, "m other"] | None = None,
    text_weight: float | int = 1.0,
    epochs: int,
    lr: float,
    **options: Any,
) -> Taught:
    """Train a copy of ``student`` on sequences of examples, and on ordinary text beside them.

    Args:
        student: ``student(tokens)`` is (n, length, vocabulary) logits of the next token; not modified.
        teacher: with the same tokens; not modified, in eval mode.
        sequences: examples and questions in turn, in tokens.
        counted: True at tokens that are labels; the first token cannot be predicted.
        alpha: share of the soft labels, in [0, 1]: 0 hard labels only, 1 soft ones only. Or
            ``alpha(progress)``, of the share of the steps that are done, from 0 to below 1.
        temperature: T of the soft labels.
        text: sequences of another kind, in which every token but the first counts. None: no such term.
        text_weight: β, not negative.
        epochs, lr, options: as for :func:`mlcomp.train.train`, but ``loss`` and ``augment``. Sequences and texts are
            one set of n + m rows, in batches of ``batch_size``; each term is the mean over its tokens in a batch.
    Returns:
        the student and its history.
    Raises:
        ValueError: a row without a counted token, a counted first token, a share outside [0, 1], a checkpoint with
            an alpha that changes (it would not know where it stood), and what ``train`` refuses.
    Guarantee: with α = 0 and no text, training on the label tokens alone, whatever the teacher is.
    Cost: the teacher's logits of all rows are kept.
    """
    options |= {"epochs": epochs, "lr": lr}
    _check(sequences, counted, text, alpha, options)
    check_interval("text_weight", text_weight, "[0, inf)")
    result = copy_model(student)
    rows, counts, number = _rows(sequences, counted, text if text_weight else None, home(result))
    targets = rows[:, 1:]
    share = _share(alpha, options, len(rows))

    def loss(seen: Seen, taught: Seen, index: Tensor) -> Tensor:
        both = {"temperature": float(temperature), "alpha": float(share())}
        in_context = (index < number).to(counts.device)
        total = seen.logits.new_zeros(())
        for weight, kind in ((1.0, in_context), (text_weight, ~in_context)):
            chosen = counts[index] & kind[:, None]
            if bool(chosen.any()):  # a batch may hold rows of one kind only
                ours, theirs, labels = seen.logits[chosen], taught.logits[chosen], targets[index][chosen]
                total = total + weight * distillation_loss(ours, theirs, labels, **both)
        return total

    return Taught(result, teach(result, teacher, rows[:, :-1], loss, **options)[0])


def _rows(
    sequences: Tensor, counted: Tensor, text: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor, int]:
    """Return all rows, filled behind to one length; which tokens but the first count; how many rows are sequences."""
    kinds = [(sequences, counted)]
    if text is not None:
        kinds.append((text, torch.ones_like(text, dtype=torch.bool)))
    longest = max(rows.shape[1] for rows, _ in kinds)
    tokens, counts = (
        torch.cat([F.pad(kind[part].to(device), (0, longest - kind[part].shape[1])) for kind in kinds])
        for part in (0, 1)
    )
    return tokens.long(), counts[:, 1:], len(sequences)


def _share(alpha: Share, options: dict[str, Any], rows: int) -> Callable[[], float]:
    """Return what gives alpha at the present step; if it changes, have the steps counted."""
    if not callable(alpha):
        return lambda: alpha
    changing: Callable[[float], float] = alpha
    total = options["epochs"] * len(batch_starts(rows, options.get("batch_size", 64)))
    after, done = options.get("after_step"), 0

    def count(number: int) -> None:
        nonlocal done
        done = number
        if after is not None:
            after(number)

    options["after_step"] = count
    return lambda: changing(done / total)


def _check(sequences: Tensor, counted: Tensor, text: Tensor | None, alpha: Share, options: dict[str, Any]) -> None:
    """Raise unless the rows can be learned from, and the options are those of a run whose loss is given."""
    check_tokens("sequences", sequences)
    check_mask("counted", counted, sequences)
    if bool(counted[:, 0].any()) or not bool(counted.any(1).all()):
        raise ValueError("counted must hold a token of each sequence, and never the first: nothing stands before it")
    if text is not None:
        check_tokens("text", text)
        if text.shape[1] < 2:
            raise ValueError(f"text must have at least two tokens, got {tuple(text.shape)}")
    check_whole("epochs", options["epochs"], 1)
    check_interval("alpha is the share of the soft labels and", alpha(0.0) if callable(alpha) else alpha, "[0, 1]")
    refused = {"loss": "it follows from alpha and text_weight", "augment": "tokens are taken as they are"}
    if callable(alpha):
        refused["checkpoint"] = "it would not know how far an alpha that changes has come"
    for name, why in refused.items():
        if options.get(name) is not None:
            raise ValueError(f"{name} cannot be given: {why}")
