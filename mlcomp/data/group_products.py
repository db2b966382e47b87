r"""Products of four symmetries of a pentagon: questions with one right answer and several right ways to it.

The dihedral group of order 10: element $5j + i$ is a turn by 72°·i, after a reflection if j = 1, and
$(i, j)(i', j') = (i + (-1)^j i' \bmod 5,\; j + j' \bmod 2)$. It is not commutative: the order of the factors counts,
but any two neighbours may be multiplied first.
A question is "a b c d =", its rationale the list after each product, "p q r = s t = u", its answer the last element.
Syllabus: 5.08, 5.09
"""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from mlcomp.checks import check_codes, check_whole
from mlcomp.context import isolated

ORDER = 10  # elements, which are the tokens 0 to 9
EQUALS, STOP = 10, 11
VOCABULARY = 12
FACTORS = 4


@isolated
def multiply(left: Int64[Tensor, "*batch"], right: Int64[Tensor, "*batch"]) -> Int64[Tensor, "*batch"]:
    """Return the product of elements, 0 to 9.

    Raises:
        ValueError: another number.
    """
    check_codes("left", left, ORDER - 1)
    check_codes("right", right, ORDER - 1)
    turns, flips = left % 5, left // 5
    return (turns + (1 - 2 * flips) * (right % 5)) % 5 + 5 * ((flips + right // 5) % 2)


@isolated
def group_products(count: int, *, seed: int, without: Tensor | None = None) -> Int64[Tensor, "count 4"]:
    """Return different questions, four elements each, in random order.

    Args:
        count: how many, of the 10 000 there are.
        seed: the same seed gives the same questions.
        without: (n, 4) questions that must not be among them.
    Raises:
        ValueError: more than are left.
    """
    check_whole("count", count, 1)
    check_whole("seed", seed, 0)
    weights = ORDER ** torch.arange(FACTORS - 1, -1, -1)
    free = torch.ones(ORDER**FACTORS, dtype=torch.bool)
    if without is not None:
        check_codes("without", without, ORDER - 1)
        free[(without.long() * weights).sum(-1)] = False
    if count > int(free.sum()):
        raise ValueError(f"count must be at most {int(free.sum())}, the questions that are left, got {count}")
    order = torch.randperm(len(free), generator=torch.Generator().manual_seed(seed))
    chosen = order[free[order]][:count]
    return chosen[:, None] // weights % ORDER


@isolated
def rationales(questions: Int64[Tensor, "n 4"], *, seed: int) -> Int64[Tensor, "n 9"]:
    """Return a right rationale for each question, the pair to multiply drawn each time, and the token that stops.

    Args:
        questions: (n, 4) elements.
        seed: of the draws.
    Raises:
        ValueError: malformed questions.
    """
    lists = _questions(questions)
    generator = torch.Generator().manual_seed(seed)
    parts: list[Tensor] = []
    while lists.shape[1] > 1:
        place = torch.randint(lists.shape[1] - 1, (len(lists), 1), generator=generator)
        pairs = multiply(lists[:, :-1], lists[:, 1:])
        columns = torch.arange(lists.shape[1] - 1)
        lists = torch.where(columns < place, lists[:, :-1], torch.where(columns == place, pairs, lists[:, 1:]))
        parts += [lists, torch.full((len(lists), 1), EQUALS if lists.shape[1] > 1 else STOP)]
    return torch.cat(parts, 1)


@isolated
def answers(questions: Int64[Tensor, "n 4"]) -> Int64[Tensor, " n"]:
    """Return the product of each question.

    Raises:
        ValueError: malformed questions.
    """
    q = _questions(questions)
    product = q[:, 0]
    for column in q[:, 1:].T:
        product = multiply(product, column)
    return product


@isolated
def stated_answers(texts: Int64[Tensor, "n length"]) -> Int64[Tensor, " n"]:
    """Return the element that stands before the first token that stops, −1 where none does.

    Args:
        texts: what a model wrote: with a rationale, or the answer alone.
    """
    if texts.ndim != 2:
        raise ValueError(f"texts must be (n, length), got {tuple(texts.shape)}")
    check_codes("texts", texts, VOCABULARY - 1)
    stops = texts == STOP
    place = torch.where(stops.any(1), stops.long().argmax(1), 0)
    before = texts.long().gather(1, (place - 1).clamp(min=0)[:, None])[:, 0]
    return torch.where((place > 0) & (before < ORDER), before, -1)


@isolated
def right_steps(questions: Int64[Tensor, "n 4"], texts: Int64[Tensor, "n length"]) -> Bool[Tensor, " n"]:
    """Return which texts are rationales whose every line follows from the one before by one right product."""
    q = _questions(questions)
    found = []
    for question, text in zip(q.tolist(), texts.tolist(), strict=True):
        found.append(_follows(question, text))
    return torch.tensor(found, dtype=torch.bool)


def _follows(line: list[int], text: list[int]) -> bool:
    while len(line) > 1:
        pairs = multiply(torch.tensor(line[:-1]), torch.tensor(line[1:])).tolist()
        allowed = [[*line[:i], pair, *line[i + 2 :]] for i, pair in enumerate(pairs)]
        after, end, text = text[: len(line) - 1], text[len(line) - 1 : len(line)], text[len(line) :]
        if after not in allowed or end != [EQUALS if len(line) > 2 else STOP]:
            return False
        line = after
    return True


def _questions(questions: Tensor) -> Tensor:
    check_codes("questions", questions, ORDER - 1)
    if questions.ndim != 2 or questions.shape[1] != FACTORS:
        raise ValueError(f"questions must be (n, {FACTORS}), got {tuple(questions.shape)}")
    return questions.long()
