"""Instructions whose responses can be checked: what to do with four digits, and how to write the result.

An instruction names an operation and a format, so there are 8 · 6 = 48 kinds: "please reverse commas : 3 1 4 2 =" is
answered by "2 , 4 , 1 , 3". Each kind has 16 phrasings: two words for the operation, two for the format, which of
them comes first, with or without "please". A response ends with a token of its own.   Syllabus: 5.10
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from mlcomp.checks import check_codes, check_whole
from mlcomp.context import isolated

DIGITS, ITEMS = 8, 4
OPERATIONS: dict[str, Callable[[list[int]], list[int]]] = {
    "reverse": lambda d: d[::-1],
    "sort": sorted,
    "rotate": lambda d: d[1:] + d[:1],
    "swap": lambda d: [d[-1], *d[1:-1], d[0]],
    "drop": lambda d: d[:-1],
    "largest": lambda d: [max(d)],
    "smallest": lambda d: [min(d)],
    "next": lambda d: [(x + 1) % DIGITS for x in d],
}
FORMATS: dict[str, Callable[[list[str]], list[str]]] = {
    "plain": lambda w: w,
    "commas": lambda w: [part for x in w for part in (x, ",")][:-1],
    "brackets": lambda w: ["[", *w, "]"],
    "dot": lambda w: [*w, "."],
    "twice": lambda w: w * 2,
    "label": lambda w: ["answer", ":", *w],
}
# The second word for each.
OTHERS = "backwards order turn exchange shorten maximum minimum plus bare listed boxed stopped again named".split()
NAMES = (*OPERATIONS, *FORMATS)
FILLER, END = "·", "<end>"
WORDS = (*map(str, range(DIGITS)), *NAMES, *OTHERS, "please", FILLER, ":", "=", ",", "[", "]", ".", "answer", END)
TOKEN = {word: token for token, word in enumerate(WORDS)}
VOCABULARY, STOP = len(WORDS), TOKEN[END]
KINDS = tuple(itertools.product(OPERATIONS, FORMATS))
PHRASINGS = tuple(
    itertools.product((0, 1), repeat=4)
)  # other operation word, other format word, format first, please
PROMPT, RESPONSE = 9, 9  # tokens of a prompt and of the longest response, the end included


@dataclass(frozen=True)
class CheckableInstructions:
    """Prompts, and what was asked.

    Attributes:
        prompts: (n, 9) tokens.
        kinds: the operation and the format of each.
        digits: (n, 4).
    """

    prompts: Int64[Tensor, "n 9"]
    kinds: tuple[tuple[str, str], ...]
    digits: Int64[Tensor, "n 4"]

    def responses(self) -> list[list[int]]:
        """Return the right response to each, its end included, in tokens."""
        pairs = zip(self.kinds, self.digits.tolist(), strict=True)
        return [[TOKEN[word] for word in right_words(kind, digits)] + [STOP] for kind, digits in pairs]

    def right(self, outputs: Int64[Tensor, "n length"]) -> Bool[Tensor, " n"]:
        """Return which outputs are right up to their end, which must be there.

        Raises:
            ValueError: another number of them, a token that is none.
        """
        check_codes("outputs", outputs, VOCABULARY - 1)
        if outputs.ndim != 2 or len(outputs) != len(self.kinds):
            raise ValueError(f"outputs must be ({len(self.kinds)}, length), got {tuple(outputs.shape)}")
        said = outputs.tolist()
        pairs = zip(said, self.responses(), strict=True)
        return torch.tensor([row[: len(want)] == want for row, want in pairs], dtype=torch.bool, device="cpu")


@isolated
def checkable_instructions(
    count: int,
    *,
    kinds: Sequence[tuple[str, str]] = KINDS,
    phrasings: Sequence[tuple[int, ...]] = PHRASINGS,
    seed: int = 0,
) -> CheckableInstructions:
    """Draw instructions: kind, phrasing and digits each at random.

    Args:
        count: how many.
        kinds, phrasings: some of KINDS and of PHRASINGS.
        seed: the same seed gives the same instructions; the global random state is left alone.
    Raises:
        ValueError: a count below 1, no kind or phrasing, or an unknown one.
    """
    check_whole("count", count, 1)
    check_whole("seed", seed, 0)
    for name, given, known in (("kinds", kinds, KINDS), ("phrasings", phrasings, PHRASINGS)):
        unknown = [item for item in given if item not in known]
        if unknown or not len(given):
            raise ValueError(
                f"{name} must be one or more of the {len(known)} there are, got {unknown[:1] or given!r}"
            )
    generator = torch.Generator().manual_seed(seed)
    chosen = [kinds[i] for i in torch.randint(len(kinds), (count,), generator=generator).tolist()]
    wordings = [phrasings[i] for i in torch.randint(len(phrasings), (count,), generator=generator).tolist()]
    digits = torch.randint(DIGITS, (count, ITEMS), generator=generator)
    rows = [_prompt(*parts) for parts in zip(chosen, wordings, digits.tolist(), strict=True)]
    return CheckableInstructions(torch.tensor(rows), tuple(chosen), digits)


def right_words(kind: tuple[str, str], digits: Sequence[int]) -> list[str]:
    """Return the right response in words, without its end."""
    operation, form = kind
    return FORMATS[form]([str(digit) for digit in OPERATIONS[operation](list(digits))])


def _prompt(kind: tuple[str, str], phrasing: tuple[int, ...], digits: list[int]) -> list[int]:
    operation, form = (
        OTHERS[NAMES.index(name)] if other else name for name, other in zip(kind, phrasing, strict=False)
    )
    asked = [form, operation] if phrasing[2] else [operation, form]
    words = ["please" if phrasing[3] else FILLER, *asked, ":", *map(str, digits), "="]
    return [TOKEN[word] for word in words]
