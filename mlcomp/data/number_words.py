r"""English number words and their translations into German-like ones: a task with many right answers.

Each German word has two spellings (the second is made up, or a dialect's), and units may stand before the tens with
"und", as in German, or behind them: 47 is "sieben und vierzig" or "vierzig sieben". A number of four digits has 128
translations. A reference is one of them at random: each word in its first spelling with probability 0.6, units first
with 0.6, all independent. So the likeliest translation of 4567 has probability $0.6^7 = 0.028$.

A prompt is six words of English, filled in front, and "→"; a translation ends with ".".   Syllabus: 4.15
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from mlcomp.checks import check_codes, check_whole
from mlcomp.context import isolated

SHARE = 0.6  # of the first spelling, and of units before tens
PROMPT, LENGTH = 7, 8  # tokens of a prompt and of the longest translation, "." included
ENGLISH = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand"
).split()
GERMAN = (
    "ein/oan zwei/zwo drei/drü vier/fiar fünf/fimf sechs/seks sieben/siebn acht/ocht neun/noin zehn/zehne elf/ölf "
    "zwölf/zwelf dreizehn/drüzehn vierzehn/fiarzehn fünfzehn/fuffzehn sechzehn/sekzehn siebzehn/siebzehne "
    "achtzehn/ochtzehn neunzehn/noinzehn zwanzig/zwanzg dreißig/drüßig vierzig/fiarzig fünfzig/fuffzig "
    "sechzig/sekzig siebzig/siebzg achtzig/ochtzig neunzig/noinzig hundert/hunnert tausend/dausend"
).split()
FILLER, ARROW, END = "·", "→", "."
WORDS = [FILLER, ARROW, END, *ENGLISH, "und", *(word for pair in GERMAN for word in pair.split("/"))]
TOKEN = {word: token for token, word in enumerate(WORDS)}
_PAIR = {english: pair.split("/") for english, pair in zip(ENGLISH, GERMAN, strict=True)}


@dataclass(frozen=True)
class NumberWords:
    """Prompts and one translation of each.

    Attributes:
        numbers: (n,).
        prompts: (n, 7) tokens.
        references: (n, 8) tokens, filled with ``end`` behind their end.
        end: the token of ".".
        words: the word of each token.
    """

    numbers: Int64[Tensor, " n"]
    prompts: Int64[Tensor, "n 7"]
    references: Int64[Tensor, "n 8"]
    end: int
    words: tuple[str, ...]

    def text(self, tokens: Tensor) -> str:
        """Return a row of tokens as words, without fillers, up to the first end."""
        row = tokens.tolist()
        row = row[: row.index(self.end) + 1] if self.end in row else row
        return " ".join(WORDS[token] for token in row if WORDS[token] != FILLER)

    def right(self, outputs: Tensor) -> Bool[Tensor, " n"]:
        """Return which of the outputs (n, any length) are one of the right translations, up to their end."""
        check_codes("outputs", outputs, 255)
        found = []
        for number, row in zip(self.numbers.tolist(), outputs.tolist(), strict=True):
            said = row[: row.index(self.end) + 1] if self.end in row else row
            found.append(tuple(said) in {answer for answer, _ in translations(number)})
        return torch.tensor(found, dtype=torch.bool, device="cpu")

    def likeliest(self) -> Int64[Tensor, "n 8"]:
        """Return the likeliest translation of each number: first spellings, units before tens."""
        return _rows([translations(number)[0][0] for number in self.numbers.tolist()])


@isolated
def number_words(count: int, *, seed: int = 0, leave_out: Iterable[int] = ()) -> NumberWords:
    """Draw different numbers from 1 to 9999, and one translation of each.

    Args:
        count: how many, at least 1.
        seed: of the numbers and of the translations; the global random state is left alone.
        leave_out: numbers that are not drawn, those of another set.
    Raises:
        ValueError: a count below 1, or larger than what is left of the 9999 numbers.
    """
    allowed = sorted({*range(1, 10_000)} - {int(number) for number in leave_out})
    check_whole("count", count, 1, len(allowed))
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(allowed), generator=generator)[:count]
    numbers = torch.tensor(allowed)[chosen]
    drawn = [_drawn(number, generator) for number in numbers.tolist()]
    prompts = [[FILLER] * (PROMPT - 1 - len(words)) + [*words, ARROW] for words in map(english, numbers.tolist())]
    tokens = torch.tensor([[TOKEN[word] for word in row] for row in prompts])
    return NumberWords(numbers, tokens, _rows(drawn), TOKEN[END], tuple(WORDS))


def english(number: int) -> list[str]:
    """Return the English words of a number from 1 to 9999, without "and"."""
    thousands, hundreds, rest = number // 1000, number // 100 % 10, number % 100
    words = [ENGLISH[thousands - 1], "thousand"] if thousands else []
    words += [ENGLISH[hundreds - 1], "hundred"] if hundreds else []
    return words + _below_hundred(rest)


def translations(number: int) -> list[tuple[tuple[int, ...], float]]:
    """Return all right translations of a number, as tokens with their end, and their probabilities, largest first."""
    found = []
    for words, share in _orders(english(number)):
        for spelling in itertools.product((0, 1), repeat=sum(word != "und" for word in words)):
            p = share
            for second in spelling:
                p *= 1 - SHARE if second else SHARE
            found.append((_spelled(words, spelling), p))
    return sorted(found, key=lambda pair: -pair[1])


def _below_hundred(rest: int) -> list[str]:
    if rest < 20:
        return [ENGLISH[rest - 1]] if rest else []
    return [ENGLISH[17 + rest // 10], *([ENGLISH[rest % 10 - 1]] if rest % 10 else [])]


def _orders(words: list[str]) -> list[tuple[list[str], float]]:
    """Return the orders of the words, units first if there are two of them, and their probabilities."""
    if len(words) < 2 or words[-2] not in ENGLISH[19:27]:
        return [(words, 1.0)]
    *before, tens, units = words
    return [([*before, units, "und", tens], SHARE), (words, 1 - SHARE)]


def _spelled(words: list[str], spelling: Iterable[int]) -> tuple[int, ...]:
    """Return the tokens of German words, "und" as it is, and the end."""
    chosen = iter(spelling)
    german = [word if word == "und" else _PAIR[word][next(chosen)] for word in words]
    return tuple(TOKEN[word] for word in [*german, END])


def _drawn(number: int, generator: torch.Generator) -> tuple[int, ...]:
    orders = _orders(english(number))
    luck = torch.rand(PROMPT, generator=generator).tolist()
    words = orders[len(orders) > 1 and luck[0] > SHARE][0]
    return _spelled(words, [value > SHARE for value in luck[1:]])


def _rows(outputs: list[tuple[int, ...]]) -> Tensor:
    return torch.tensor([[*row, *[TOKEN[END]] * (LENGTH - len(row))] for row in outputs])
