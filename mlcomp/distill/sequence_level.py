r"""Distillation of sequences: the teacher's probabilities word by word, or its likeliest sequence as the target.

Notation: x prompt, y reference, q teacher, p student; ŷ the teacher's output by beam search, near to its mode.
Word level: $L = -\sum_t \sum_k q(k \mid x, y_{<t}) \log p(k \mid x, y_{<t})$, on the reference's beginnings.
Sequence level: $L_\mathrm{SEQ\text{-}KD} = -\sum_y q(y \mid x) \log p(y \mid x) \approx -\log p(\hat y \mid x)$.
Mixture: $(1 - \alpha) L_\mathrm{SEQ\text{-}NLL} + \alpha L_\mathrm{SEQ\text{-}KD}$, $L_\mathrm{SEQ\text{-}NLL} =
-\log p(y \mid x)$.
Source: Kim and Rush 2016, arXiv:1606.07947, sections 3.1 to 3.3.   Syllabus: 4.15
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn import functional as F

from mlcomp.checks import check_interval, check_whole
from mlcomp.context import isolated_run
from mlcomp.distill.soft_targets import distillation_loss
from mlcomp.distill.teaching import Seen, teach
from mlcomp.distill.train_student import Taught
from mlcomp.generate.beam_search import search_outputs
from mlcomp.generate.outputs import check_tokens, output_mask
from mlcomp.layerwise.fit import copy_model
from mlcomp.modes import home
from mlcomp.train.loop import History, train


@isolated_run
def teacher_outputs(
    teacher: nn.Module, prompts: Int64[Tensor, "n prompt"], *, beam: int, length: int, end: int, batch_size: int = 256
) -> Int64[Tensor, "n length"]:
    """Return the best output of the teacher's beam search for each prompt: the data of sequence-level distillation.

    Args:
        teacher, prompts, beam, length, end: as in :func:`mlcomp.generate.search_outputs`.
        batch_size: prompts that are searched at once.
    Raises:
        ValueError: as ``search_outputs``.
    """
    check_tokens("prompts", prompts)
    check_whole("batch_size", batch_size, 1)
    search = {"beam": beam, "length": length, "end": end}
    return torch.cat([search_outputs(teacher, part, **search).tokens[:, 0] for part in prompts.split(batch_size)])


@isolated_run
def sequence_student(
    student: nn.Module,
    prompts: Int64[Tensor, "n prompt"],
    references: Int64[Tensor, "n length"],
    *,
    end: int,
    teacher: nn.Module | None = None,
    outputs: Int64[Tensor, "n other"] | None = None,
    alpha: float,
    epochs: int,
    lr: float,
    **options: Any,
) -> Taught:
    r"""Train a copy of ``student`` on $(1 - \alpha)$ NLL of the references + α of what the teacher says.

    Args:
        student: ``student(tokens)`` is (n, length, vocabulary) logits of the next token; not modified.
        prompts: of one length.
        references: outputs of the data; behind their end anything.
        end: the token that ends an output.
        teacher: for the word level: its probabilities after each beginning of a reference. Not modified, in eval
            mode.
        outputs: for the sequence level: the teacher's outputs (:func:`teacher_outputs`), which may be of another
            length. Give one of the two, or none with ``alpha=0``.
        alpha: share of the teacher's part, in [0, 1].
        epochs, lr, options: as for :func:`mlcomp.train.train`, but ``loss``, ``augment``. At the sequence level with
            0 < α < 1 the references and the outputs are one set of 2n rows, in batches of ``batch_size``.
    Returns:
        the student and its history. The loss is the mean over the tokens of a batch; in a mixture a reference's
        tokens weigh 2(1 − α) and an output's 2α.
    Raises:
        ValueError: both or neither of teacher and outputs, numbers of rows that differ, and what ``train`` refuses.
    Guarantee: with α = 0 the training on references alone, bit for bit, whatever the teacher is. At the word level
        the gradient is that of the cross-entropy with q.
    Deviation: the paper sums over the tokens of a sequence; a mean only scales the loss.
    Cost: at the word level the teacher's logits of all references are kept.
    """
    check_interval("alpha is the share of the teacher and", alpha, "[0, 1]")
    _check(prompts, references, outputs, end)
    if (teacher is not None) + (outputs is not None) != 1 and not (alpha == 0 and outputs is None):
        raise ValueError("give the teacher for the word level, or its outputs for the sequence level, and not both")
    for name in ("loss", "augment"):
        if options.get(name) is not None:
            raise ValueError(f"{name} cannot be given: the loss follows from alpha, and tokens are taken as they are")
    result = copy_model(student)
    options |= {"epochs": epochs, "lr": lr}
    if teacher is not None and alpha > 0:
        history = _word_level(result, teacher, prompts, references, end, alpha, options)
    else:
        history = _on_rows(result, prompts, references, outputs, end, alpha, options)
    return Taught(result, history)


def _word_level(
    student: nn.Module,
    teacher: nn.Module,
    prompts: Tensor,
    references: Tensor,
    end: int,
    alpha: float,
    options: dict[str, Any],
) -> History:
    """Train ``student`` in place, on references and the teacher's probabilities after their beginnings."""
    first = prompts.shape[1] - 1
    targets = references.to(home(student))
    counts = output_mask(targets, end=end)

    def loss(seen: Seen, taught: Seen, index: Tensor) -> Tensor:
        mask, labels = counts[index], targets[index]
        ours, theirs = seen.logits[:, first:][mask], taught.logits[:, first:][mask]
        return distillation_loss(ours, theirs, labels[mask], temperature=1.0, alpha=alpha)

    return teach(student, teacher, torch.cat((prompts, references), 1)[:, :-1], loss, **options)[0]


def _on_rows(
    student: nn.Module,
    prompts: Tensor,
    references: Tensor,
    outputs: Tensor | None,
    end: int,
    alpha: float,
    options: dict[str, Any],
) -> History:
    """Train ``student`` in place, on references, on the teacher's outputs, or on both as one set."""
    parts = [(references, 1 - alpha)] if alpha < 1 else []
    parts += [(outputs, alpha)] if outputs is not None and alpha > 0 else []
    longest = max(rows.shape[1] for rows, _ in parts)

    def joined(of_part: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([F.pad(of_part(rows), (0, longest - rows.shape[1])) for rows, _ in parts]).to(home(student))

    # An output that was cut short has no end: what fills its row must not become one.
    targets, counts = joined(lambda rows: rows), joined(partial(output_mask, end=end))
    weights = [len(parts) * share for _, share in parts]
    inputs = torch.cat((prompts.repeat(len(parts), 1), targets.to(prompts.device)), 1)[:, :-1]
    first = prompts.shape[1] - 1

    def loss(logits: Tensor, index: Tensor) -> Tensor:
        nll, mask = F.cross_entropy(logits[:, first:].mT, targets[index], reduction="none"), counts[index]
        weight = nll.new_tensor(weights)[index // len(prompts), None]
        return (weight * nll)[mask].sum() / mask.sum()

    return train(student, inputs, torch.arange(len(inputs), device="cpu"), loss=loss, **options)


def _check(prompts: Tensor, references: Tensor, outputs: Tensor | None, end: int) -> None:
    """Raise unless there are as many references, and outputs if there are any, as prompts."""
    check_whole("end", end, 0)
    check_tokens("prompts", prompts)
    for name, rows in (("references", references), ("outputs", outputs)):
        if rows is not None:
            check_tokens(name, rows)
            if len(rows) != len(prompts):
                raise ValueError(
                    f"there must be one row of {name} for each prompt, got {len(rows)} and {len(prompts)}"
                )
