"""The filters of self-instruct: which texts of a model are kept, and why the others are not.

Source: Wang, Kordi, Mishra, Liu, Smith, Khashabi, Hajishirzi 2023, arXiv:2212.10560, section 2.2 (step 4) and the
authors' public code, from which the words and the numbers come.   Syllabus: 4.18
"""

import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlcomp.checks import check_interval, check_whole
from mlcomp.generate.rouge_l import rouge_l_of_words, words

# A model of texts can neither see nor draw, and opens no file.
BANNED = (*"image images graph graphs picture pictures file files map maps draw plot".split(), "go to")
REASONS = ("short", "long", "banned word", "write a program", "start", "similar")


@dataclass(frozen=True)
class Sifted:
    """What is left of some texts.

    Args:
        reasons: for each text, in order: one of REASONS, or "" where it is kept.
        kept: the texts that are.
    """

    reasons: tuple[str, ...]
    kept: tuple[str, ...]


def sift(
    texts: Sequence[str],
    *,
    pool: Iterable[str] = (),
    least: int = 4,
    most: int = 150,
    banned: Sequence[str] = BANNED,
    programs: bool = False,
    similar: float | int = 0.7,
) -> Sifted:
    """Return the texts that pass every filter; each is compared with the pool and with those kept before it.

    A text is rejected, and the first reason that holds is its reason, if it has fewer than ``least`` words ("short")
    or more than ``most`` ("long"), holds a banned word, begins with "Write a program" (unless ``programs``), begins
    with a punctuation mark or a character that is not ASCII ("start"), or has a ROUGE-L F above ``similar`` with a
    text of the pool or one kept before.

    Args:
        texts: in the order in which the model made them.
        pool: texts that are there already.
        least, most: numbers of words, which are what spaces part.
        banned: words or word groups, in small letters.
        similar: 1 rejects nothing, as in the public code.
    Raises:
        ValueError: texts that are no sequence of strings, a number out of range.
    Guarantee: no two of the pool and the kept texts that met here have an F above ``similar``.
    Cost: O(n²) comparisons.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError("texts must be a sequence of strings")
    check_whole("least", least, 1)
    check_whole("most", most, least)
    check_interval("similar", similar, "[0, 1]")
    ban = re.compile(r"\b(" + "|".join(map(re.escape, banned)) + r")\b", re.IGNORECASE) if banned else None
    there = [words(text) for text in pool]
    reasons = []
    for text in texts:
        count, own = len(text.split()), words(text)
        if count < least:
            reason = "short"
        elif count > most:
            reason = "long"
        elif ban and ban.search(text):
            reason = "banned word"
        elif not programs and text.lower().startswith("write a program"):
            reason = "write a program"
        elif text[0] in string.punctuation or not text[0].isascii():
            reason = "start"
        elif any(rouge_l_of_words(own, other) > similar for other in there):
            reason = "similar"
        else:
            reason = ""
            there.append(own)
        reasons.append(reason)
    return Sifted(tuple(reasons), tuple(text for text, reason in zip(texts, reasons, strict=True) if not reason))
