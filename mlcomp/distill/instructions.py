r"""Instruction distillation: a student learns the responses of a teacher that can only be asked.

Notation: x instruction, y the teacher's response; $L = -\mathrm{mean}_t \log p(y_t \mid x, y_{<t})$ over the tokens
of responses. The instruction is read, not learned. What is left to decide is the data: which pairs are used.
Source: Wu, Waheed, Zhang, Abdul-Mageed, Aji 2023, arXiv:2304.14402 (LaMini-LM: 2.58 million instructions, the
responses of one teacher, cross-entropy). The checks are of our own choice.   Syllabus: 5.10
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from mlcomp.checks import check_interval, check_values, check_whole
from mlcomp.context import isolated
from mlcomp.distill.distilbert import IGNORED, checked_labels
from mlcomp.generate.rouge_l import rouge_l_of_words, words

REFUSALS = ("i cannot", "i can't", "i am unable", "i'm sorry", "i am sorry", "as an ai", "as a language model")
REASONS = ("empty", "truncated", "refusal", "leak", "duplicate")


@dataclass(frozen=True)
class InstructionRows:
    """Pairs as rows of tokens, all of the length of the longest.

    Attributes:
        inputs: (n, length), instruction and response without the last token, filled with ``end``.
        labels: (n, length), the token after each position that is to be learned, else −100.
    """

    inputs: Int64[Tensor, "n length"]
    labels: Int64[Tensor, "n length"]


@isolated
def instruction_rows(
    instructions: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    end: int,
    learn_instructions: bool = False,
) -> InstructionRows:
    """Return what :func:`mlcomp.train.train` takes, with :func:`response_loss`.

    Args:
        instructions: tokens of each, at least one.
        responses: tokens of each, at least one; a response that ends with ``end`` teaches where to stop, one that was
            cut short does not.
        end: the token that ends a response, and fills the rows behind (there nothing is learned).
        learn_instructions: learn to write the instructions, too.
    Raises:
        ValueError: numbers that differ, a pair without a token on one side, a token below 0.
    Guarantee: with ``response_loss`` the tokens of the responses count, each once, and no others.
    """
    check_whole("end", end, 0)
    if len(instructions) != len(responses) or not len(responses):
        raise ValueError(
            f"there must be one response for each instruction, got {len(instructions)} and {len(responses)}"
        )
    pairs = [(list(map(int, x)), list(map(int, y))) for x, y in zip(instructions, responses, strict=True)]
    if any(not x or not y or min(x + y) < 0 for x, y in pairs):
        raise ValueError("each instruction and each response must hold at least one token, and none below 0")
    longest = max(len(x) + len(y) for x, y in pairs)
    rows, labels = [], []
    for x, y in pairs:
        fill = longest - len(x) - len(y)
        rows.append(x + y + [end] * fill)
        labels.append((x if learn_instructions else [IGNORED] * len(x)) + y + [IGNORED] * fill)
    return InstructionRows(torch.tensor(rows)[:, :-1], torch.tensor(labels)[:, 1:])


@isolated
def response_loss(logits: Float[Tensor, "*batch classes"], labels: Int64[Tensor, "*batch"]) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of the tokens that have a label, [nats a token].

    Args:
        logits: of the next token; the loss is differentiable in them.
        labels: the next token, −100 where none is to be learned.
    Raises:
        ValueError: NaN or inf, shapes that do not fit, a label out of range, none at all.
    """
    check_values("logits", logits)
    if logits.ndim == 0 or not logits.shape[-1]:
        raise ValueError(f"logits must be (…, classes), got {tuple(logits.shape)}")
    if not checked_labels(labels, logits).any():
        raise ValueError(f"labels must hold at least one token of 0 … {logits.shape[-1] - 1}, and −100 elsewhere")
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(exact.flatten(0, -2), labels.flatten().long(), ignore_index=IGNORED)


@dataclass(frozen=True)
class SiftedPairs:
    """What is left of some pairs.

    Attributes:
        reasons: for each pair, in order: one of REASONS, or "" where it is kept.
        kept: the pairs that are.
    """

    reasons: tuple[str, ...]
    kept: tuple[tuple[str, str], ...]


def sift_pairs(
    pairs: Sequence[tuple[str, str]],
    *,
    ended: Sequence[bool] | None = None,
    held_out: Iterable[str] = (),
    refusals: Sequence[str] = REFUSALS,
    similar: float | int = 0.7,
) -> SiftedPairs:
    """Return the pairs of instruction and response that can be learned from.

    The first reason that holds is a pair's reason: a side without a word ("empty"), a response that did not end by
    itself ("truncated"), one that begins with a refusal ("refusal"), an instruction whose ROUGE-L F with one that is
    held out for the measurement is above ``similar`` ("leak"), and one that a kept pair has, too, but for capitals
    and spaces ("duplicate"): its first response stays.

    Args:
        pairs: (instruction, response).
        ended: of each response, whether it ended by itself. None: all did.
        held_out: instructions that the student will be measured on.
        refusals: beginnings, in small letters.
        similar: in [0, 1].
    Raises:
        ValueError: no pairs of strings, another number of ``ended``, ``similar`` out of range.
    Guarantee: no kept instruction is a held-out one, whatever its capitals and spaces; no two are the same.
    Cost: a comparison of each instruction with each that is held out.
    """
    check_interval("similar", similar, "[0, 1]")
    if isinstance(held_out, str) or isinstance(refusals, str):
        raise ValueError("held_out and refusals must be sequences of strings")
    for pair in pairs:
        if not isinstance(pair, tuple) or [type(part) for part in pair] != [str, str]:
            raise ValueError(f"pairs must be (instruction, response), two strings each, got {pair!r}")
    ends = [True] * len(pairs) if ended is None else list(ended)
    if len(ends) != len(pairs):
        raise ValueError(f"ended must hold one entry for each of the {len(pairs)} pairs, got {len(ends)}")
    asked = [(_key(text), words(text)) for text in held_out]
    seen: set[str] = set()
    reasons = []
    for (instruction, response), whole in zip(pairs, ends, strict=True):
        key, own = _key(instruction), words(instruction)
        if not key or not response.strip():
            reason = "empty"
        elif not whole:
            reason = "truncated"
        elif _key(response).startswith(tuple(refusals)):
            reason = "refusal"
        elif any(key == other or rouge_l_of_words(own, theirs) > similar for other, theirs in asked):
            reason = "leak"
        else:
            reason = "duplicate" if key in seen else ""
            seen.add(key)
        reasons.append(reason)
    return SiftedPairs(tuple(reasons), tuple(pair for pair, reason in zip(pairs, reasons, strict=True) if not reason))


def _key(text: str) -> str:
    """Return a text in small letters with single spaces."""
    return " ".join(text.lower().replace("\u2019", "'").split())
