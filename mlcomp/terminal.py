"""What is printed on a terminal: tables as wide as it is, and errors in one line."""

import re
import shutil
import textwrap
from collections import defaultdict
from collections.abc import Sequence


def as_table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return columns under their heads; the last one is wrapped to the terminal's width."""
    wide = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    before = sum(wide[:-1]) + 2 * (len(wide) - 1)
    last = max(30, shutil.get_terminal_size((120, 24)).columns - before)
    lines = []
    for row in (head, *rows):
        cells = [row[i].rjust(wide[i]) if i in right else row[i].ljust(wide[i]) for i in range(len(row) - 1)]
        first, *more = textwrap.wrap(row[-1], last) or [""]
        lines.append("  ".join([*cells, first]).rstrip())
        lines += [" " * before + part for part in more]
    return "\n".join(lines)


def one_line(error: BaseException) -> str:
    """Return an error's message in one line; layers with the same problem are counted, not listed."""
    text = " ".join(str(error).split()) or type(error).__name__
    parts = re.findall(r"layer '([^']*)': (.*?)(?=; layer '|$)", text)
    if len(parts) < 2:
        return text
    layers = defaultdict(list)
    for name, problem in parts:
        layers[problem].append(name)
    more = {names[0]: f" and {len(names) - 1} more" if len(names) > 1 else "" for names in layers.values()}
    told = [f"{names[0]}{more[names[0]]}: {problem}" for problem, names in layers.items()]
    return "; ".join(told) + " (--layers chooses some, --skip-unfit leaves such layers as they are)"
