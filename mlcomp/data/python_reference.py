"""Real English technical prose without a download: the language reference that ships inside Python.

``pydoc_data.topics`` is what ``help("ASSIGNMENT")`` shows (© Python Software Foundation, PSF-2.0; 370 kB without its
repetitions). The text differs a little between Python versions, so nothing may depend on its exact words:
compare methods on it, do not expect a perplexity to the last digit.
"""

import textwrap
from pydoc_data.topics import topics

from mlcomp.checks import check_choice, check_whole


def python_reference(split: str = "calibration") -> str:
    """Return the text of one part: "calibration" (about three quarters) or "held_out" (the rest).

    Whole topics go to one part or the other. Topics quote one another at length ("compound" holds "if", "for",
    "while"), so each paragraph is kept only where it comes first: no paragraph stands in both parts.

    Raises:
        ValueError: another split.
    """
    check_choice("split", split, ("calibration", "held_out"))
    seen: set[str] = set()
    parts: dict[str, list[str]] = {"calibration": [], "held_out": []}
    size = {"calibration": 0, "held_out": 0}
    for topic in sorted(topics):
        fresh = [p for p in topics[topic].strip().split("\n\n") if p not in seen]
        fresh = list(dict.fromkeys(fresh))
        seen.update(fresh)
        part = "held_out" if 3 * size["held_out"] < size["calibration"] else "calibration"
        parts[part] += fresh
        size[part] += sum(map(len, fresh))
    return "\n\n".join(parts[split])


def python_sentences(split: str = "calibration", *, count: int = 128) -> list[str]:
    """Return the first ``count`` paragraphs of prose (80 to 600 characters, no tables or code), each on one line.

    Raises:
        ValueError: another split, or more paragraphs than it has.
    """
    prose = []
    for paragraph in map(textwrap.dedent, python_reference(split).split("\n\n")):
        plain = paragraph[:1].isupper() and "\n  " not in paragraph and "::=" not in paragraph
        if plain and 80 <= len(paragraph) <= 600 and paragraph.endswith("."):
            prose.append(" ".join(paragraph.split()))
    check_whole("count", count, 1, len(prose))
    return prose[:count]
