"""Turns the library's docstrings (Google sections, Markdown math and tables) into what autodoc reads."""

import re

LABELS = ("Notation", "Source", "Syllabus", "Guarantee", "Cost", "Deviation", "Deviations", "Note", "Layout")
SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes):\s*$")
LABEL = re.compile(rf"^({'|'.join(LABELS)}): *")
KEEP = re.compile(r"(``.+?``|:[a-z:]+:`[^`]+`|`[^`]+`_{0,2}|\$[^$]+\$)", re.DOTALL)


def escape(text: str) -> str:
    """Escape what reStructuredText would take for markup, except code, roles and math."""
    parts = KEEP.split(text)
    for i, part in enumerate(parts):
        if i % 2 and part.startswith("$"):
            parts[i] = f":math:`{part[1:-1].strip()}`\\ "
        elif i % 2 == 0:
            part = re.sub(r"([*|])", r"\\\1", part)
            parts[i] = re.sub(r"_(?=\W|$)", r"\\_", part)
    return re.sub(r"(?<=[^\s(])(?=:math:`)", r"\\ ", "".join(parts))


def table(lines: list[str]) -> list[str]:
    """Turn a Markdown table into a list-table."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    rows = [row for row in rows if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]
    body = [f"   {'* -' if n == 0 else '  -'} {escape(cell)}" for row in rows for n, cell in enumerate(row)]
    return ["", ".. list-table::", "   :header-rows: 1", "", *body, ""]


def items(lines: list[str]) -> list[str]:
    """Join the lines of an indented section into one string an entry; an entry starts at the smallest indent."""
    depth = min(len(line) - len(line.lstrip()) for line in lines)
    entries: list[str] = []
    for line in lines:
        if len(line) - len(line.lstrip()) == depth or not entries:
            entries.append(line.strip())
        else:
            entries[-1] += " " + line.strip()
    return entries


def fields(section: str, lines: list[str]) -> list[str]:
    """Turn one Google section into a field list."""
    if not lines:
        return []
    if section in ("Returns", "Yields"):
        return ["", f":returns: {escape(' '.join(line.strip() for line in lines))}"]
    keyword = {"Args": "param", "Raises": "raises", "Attributes": "ivar"}[section]
    out = [""]
    for entry in items(lines):
        name, _, text = entry.partition(":")
        for one in name.split(","):
            out.append(f":{keyword} {one.strip().lstrip('*')}: {escape(text.strip())}")
    return out


def convert(lines: list[str]) -> list[str]:
    """Convert one docstring."""
    out: list[str] = []
    block: list[str] = []  # running text waits here: markup may span lines

    def flush():
        if block:
            out.extend(escape("\n".join(block)).split("\n"))
            block.clear()

    i = 0
    while i < len(lines):
        line = lines[i]
        if section := SECTION.match(line):
            i += 1
            inside = []
            while i < len(lines) and (lines[i].startswith(" ") or not lines[i].strip()):
                inside += [lines[i]] if lines[i].strip() else []
                i += 1
            flush()
            out += [*fields(section.group(1), inside), ""]
            continue
        if line.startswith("|"):
            rows = []
            while i < len(lines) and lines[i].startswith("|"):
                rows.append(lines[i])
                i += 1
            flush()
            out += table(rows)
            continue
        if label := LABEL.match(line):
            flush()
            out += ["", f"**{label.group(1)}.**"]
            line = line[label.end() :]
            while i + 1 < len(lines) and lines[i + 1].startswith(" "):  # the label's text goes on, indented
                i += 1
                line += " " + lines[i].strip()
        elif line.startswith(("- ", "    ")) or not line:
            flush()
            out.append("" if not line else escape(line))
            i += 1
            continue
        block.append(re.sub(r"\s{2,}Syllabus:", " **Syllabus:**", line) if "Syllabus:" in line else line)
        if "**Syllabus:**" in block[-1]:
            last = block.pop()
            flush()
            before, _, ids = last.partition("**Syllabus:**")
            out += [escape(before), "", "**Syllabus.**" + ids, ""]
        i += 1
    flush()
    return out


def process(app, what, name, obj, options, lines) -> None:
    """Replace the docstring's lines in place, as autodoc asks."""
    lines[:] = convert(lines)


def setup(app) -> dict:
    """Register the extension with Sphinx."""
    app.connect("autodoc-process-docstring", process)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
