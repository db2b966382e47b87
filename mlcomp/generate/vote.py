"""Prompt2Model's vote: one output for each input, where a model has given several.

Source: Viswanathan, Zhao, Bertsch, Wu, Neubig 2023, arXiv:2308.12261, section 3.3.   Syllabus: 4.18
"""

from collections import Counter
from collections.abc import Iterable, Sequence


def vote(outputs: Sequence[str]) -> str:
    """Return the most frequent output; of several, the shortest; of several, the first by the alphabet.

    Raises:
        ValueError: no output.
    """
    if isinstance(outputs, str) or not len(outputs):
        raise ValueError("outputs must be a sequence of at least one string")
    counts = Counter(outputs)
    return min(counts, key=lambda output: (-counts[output], len(output), output))


def vote_each(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return each input once, where it first stands, with the vote on its outputs.

    Args:
        pairs: (input, output). Inputs are the same if they differ in capitals and spaces only.
    """
    first: dict[str, str] = {}
    outputs: dict[str, list[str]] = {}
    for text, output in pairs:
        key = " ".join(text.lower().split())
        first.setdefault(key, text)
        outputs.setdefault(key, []).append(output)
    return [(text, vote(outputs[key])) for key, text in first.items()]
