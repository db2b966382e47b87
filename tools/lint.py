"""What a program can check of a notebook as it is stored: the pattern of CONTRIBUTING.md, rule by rule."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import nbformat

from tools.inventory import glossary
from tools.papers import papers, problem
from tools.stamp import FOOTER, ROOT, contents, is_folded

MOST_LINES, MOST_NUMBERS, LEAST_ALT = 20, 20, 25
STATEMENTS = "Theorem|Lemma|Proposition|Corollary|Definition|Algorithm"
STATEMENT = re.compile(rf"^> \*\*({STATEMENTS}) (\d+) \(.+\)\.\*\*", re.MULTILINE)
UNNAMED = re.compile(rf"^(?:> )?\*\*({STATEMENTS})(?: \d+)?\.\*\*", re.MULTILINE)
# "Theorem 2", but not "the paper's Theorem 2" nor "Theorem 2 of the paper".
MENTION = re.compile(rf"(?<!paper's )(?<!lecture's )(?<!slide's )(?<![\w*\[])({STATEMENTS}) (\d+)\b(?! (?:\(|of ))")
EXERCISE = re.compile(r"^> \*\*Exercise (\d+) \(.+\)\.\*\*", re.MULTILINE)
RAW = {
    "a role": re.compile(r"(?<!`)\{[a-z]+(?::[a-z]+)*\}`"),
    "a directive": re.compile(r"^\s*(?:>\s*)?(?:`{3,}|~{3,}|:{3,})\s*\{", re.MULTILINE),
    "an option of a directive": re.compile(r"^:[a-z-]+:(?:\s|$)", re.MULTILINE),
    "a label": re.compile(r"^\([\w-]+\)=\s*$|^\$\$ \([\w-]+\)\s*$", re.MULTILINE),
    "a substitution": re.compile(r"\{\{"),
}
PROSE_CODE = re.compile(r"```.*?```|~~~.*?~~~|``.*?``|`[^`]*`", re.DOTALL)
FORMULA = re.compile(r"\$\$.*?\$\$|\$[^$]*\$", re.DOTALL)
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)\)")
NUMBER = re.compile(r"(?<![\w.])[-−+]?\d+(?:[.,]\d+)?(?:e[-+]?\d+)?")
ASSERTS = re.compile(r"^\s*(?:assert\b|(?:torch|np|numpy)\.testing\.assert_)", re.MULTILINE)
# Where a link to a later notebook is allowed.
AHEAD = ("what breaks it", "reading", "exercises", FOOTER.removeprefix("## ").lower())
PARTS = {"## What breaks it": 1, "## Quiz": 1, "## Exercises": 1, "## Reading": 1}


def markdown(nb: nbformat.NotebookNode) -> list[str]:
    return [c.source for c in nb.cells if c.cell_type == "markdown"]


def shown_markdown(nb: nbformat.NotebookNode) -> list[str]:
    """Return the Markdown that a reader sees: of cells, and of what cells display."""
    data = [o.get("data", {}) for c in nb.cells if c.cell_type == "code" for o in c.outputs]
    return markdown(nb) + [d["text/markdown"] for d in data if "text/markdown" in d]


def raw_markup(nb: nbformat.NotebookNode) -> Iterator[str]:
    """Find what only the built book would render."""
    for text in shown_markdown(nb):
        without_code = PROSE_CODE.sub("", text)
        # Roles and directives are themselves made of backticks, and labels stand after formulas.
        parts = {"a role": FORMULA.sub("", text), "a directive": text, "a label": without_code}
        for what, pattern in RAW.items():
            looked = parts.get(what, FORMULA.sub("", without_code))
            if hit := pattern.search(looked):
                yield f"shows {what} that only the book renders: {hit.group().strip()!r}"


def cells(nb: nbformat.NotebookNode) -> Iterator[str]:
    """Find visible cells that are too long, that assert, or print too much; and marks of the old kind."""
    code = [c for c in nb.cells if c.cell_type == "code" and c.source.strip()]
    for n, cell in enumerate(code, 1):
        tags = set(cell.metadata.get("tags", []))
        if "NBVAL_CHECK_OUTPUT" in cell.source:
            yield f"code cell {n} is marked by a comment: use the tag nbval-check-output"
        if is_folded(cell):
            continue
        if (length := len(cell.source.splitlines())) > MOST_LINES:
            yield f"code cell {n} has {length} lines: a visible cell has at most {MOST_LINES} (split it, or fold it)"
        if ASSERTS.search(cell.source):
            yield f"code cell {n} asserts in view: put the checks into a folded cell after it"
        if "hide-output" not in tags:
            printed = "".join(o.get("text", "") for o in cell.outputs if o.output_type == "stream")
            if (count := len(NUMBER.findall(printed))) > MOST_NUMBERS:
                yield f"code cell {n} prints {count} numbers: at most {MOST_NUMBERS}, or a picture, or a fold"
        if any(o.output_type == "execute_result" and "text/html" not in o.data for o in cell.outputs):
            yield f"code cell {n} shows the value of its last line as Python writes it: print it, or give it a name"


def pictures(nb: nbformat.NotebookNode) -> Iterator[str]:
    """Find pictures without words."""
    drawings = 0
    for n, cell in enumerate((c for c in nb.cells if c.cell_type == "code"), 1):
        for output in cell.outputs:
            kinds = [kind for kind in output.get("data", {}) if kind.startswith("image/")]
            drawings += "image/svg+xml" in kinds
            if kinds and not any(len(output.metadata.get(kind, {}).get("alt", "")) >= LEAST_ALT for kind in kinds):
                yield f"code cell {n} shows a picture without words for those who cannot see it: show(fig, alt)"
    if not drawings:
        yield "it has no schematic drawing (show_drawing)"
    for text in markdown(nb):
        for alt in re.findall(r"!\[([^\]]*)\]\(", text):
            if len(alt) < LEAST_ALT:
                yield f"an image has too few words for those who cannot see it: {alt!r}"


def statements(nb: nbformat.NotebookNode) -> Iterator[str]:
    """Find theorems that are not numbered in order, have no name, or are referred to and don't exist."""
    text = "\n\n".join(markdown(nb))
    found = [(kind, int(n)) for kind, n in STATEMENT.findall(text)]
    if [n for _, n in found] != list(range(1, len(found) + 1)):
        numbers = ", ".join(f"{kind} {n}" for kind, n in found)
        yield f"its statements are not numbered 1, 2, 3 …, one count for all kinds: {numbers}"
    for kind in UNNAMED.findall(text):
        yield f"a {kind.lower()} has no number or no name: > **{kind} 1 (Name).** …"
    plain = FORMULA.sub("", LINK.sub("", PROSE_CODE.sub("", text)))
    known = {f"{kind} {n}" for kind, n in found}
    for kind, n in MENTION.findall(plain):
        if f"{kind} {n}" not in known:
            yield f"refers to {kind} {n}, which it doesn't have (link to another notebook's)"
    exercises = [int(n) for n in EXERCISE.findall(text)]
    if exercises != list(range(1, len(exercises) + 1)):
        yield f"its exercises are not numbered 1, 2, 3 …: {exercises}"


def parts(nb: nbformat.NotebookNode) -> Iterator[str]:
    """Find what the pattern asks of every notebook and this one lacks."""
    text = "\n\n".join(markdown(nb))
    info = nb.metadata.get("mlcomp", {})
    for key in ("goals", "summary"):
        if len(info.get(key, [])) != 3:
            yield f"its metadata has {len(info.get(key, []))} {key}, not three"
    if info.get("path") not in ("core", "deeper"):
        yield "its path is neither core nor deeper"
    for heading, least in PARTS.items():
        if len(re.findall(rf"^{heading}", text, re.MULTILINE | re.IGNORECASE)) < least:
            yield f"it lacks the section {heading!r}"
    asked = re.findall(r"^> \*\*Predict first\.\*\*.*?(?=^#|\Z|^> \*\*Predict)", text, re.MULTILINE | re.DOTALL)
    if len(asked) < 2:
        yield f"it has {len(asked)} stops 'Predict first', not two"
    if any("<details>" not in part for part in asked):
        yield "a stop 'Predict first' has no folded answer after it"
    quiz = re.search(r"^## Quiz\s*$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if quiz and (len(re.findall(r"^\*\*\d\.\*\*", quiz[1], re.MULTILINE)), quiz[1].count("<details>")) != (3, 3):
        yield "its quiz has not three questions, each with a folded answer"
    code = "\n".join(c.source for c in nb.cells if c.cell_type == "code")
    if "> **Your turn.**" not in text or "@your_turn(" not in code:
        yield "it has no cell 'Your turn' with its check"
    if text.count("<details>") != text.count("</details>"):
        yield "a <details> is not closed"
    if re.search(r"<details>(?!<summary>[^<\n]+</summary>\n\n)|(?<!\n\n)</details>", text):
        yield "a <details> needs its <summary> on the same line, and an empty line after it and before its end"


def slug(heading: str) -> str:
    """Return the anchor that Jupyter, GitHub and the book give to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def anchors(path: Path) -> set[str]:
    """Return the anchors of a notebook or page: headings, statements, exercises, terms of the glossary."""
    if path.suffix == ".ipynb":
        text = "\n\n".join(markdown(nbformat.read(path, as_version=4)))
    else:
        text = path.read_text(encoding="utf-8")
        if path.name == "glossary.md":
            return {f"term-{term.slug}" for term in glossary()}
    found = {slug(h) for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    found |= {f"{kind.lower()}-{n}" for kind, n in STATEMENT.findall(text)}
    return found | {f"exercise-{n}" for n in EXERCISE.findall(text)}


def links(nb: nbformat.NotebookNode, path: Path) -> Iterator[str]:
    """Find links that lead nowhere, ahead where that is not allowed, or to a paper that is not listed."""
    listed, order = papers(), contents()
    section, here = "", path.resolve()
    names = [(ROOT / name).resolve() for name in order]
    for cell in nb.cells[2:]:
        if cell.cell_type != "markdown":
            continue
        for line in cell.source.splitlines():
            if line.startswith("## "):
                section = line[3:].strip().lower()
            for text, target in LINK.findall(line):
                if re.match(r"https?:", target):
                    if fault := problem(text, target, listed):
                        yield fault
                    continue
                file, _, anchor = target.partition("#")
                goal = (path.parent / unquote(file)).resolve() if file else here
                if not goal.exists():
                    yield f"links to {target}, which doesn't exist"
                elif anchor and anchor not in anchors(goal):
                    yield f"links to {target}: there is no such place"
                elif not section.startswith(AHEAD) and later(goal, here, names):
                    yield f"links ahead to {file} under {section!r}; only the last sections may"


def later(goal: Path, here: Path, names: list[Path]) -> bool:
    places = [names.index(p.with_suffix("")) if p.with_suffix("") in names else -1 for p in (goal, here)]
    return goal.suffix == ".ipynb" and -1 not in places and places[0] > places[1]


def pattern(nb: nbformat.NotebookNode, path: Path) -> list[str]:
    """Return everything in which a notebook departs from the pattern."""
    rules = (raw_markup, cells, pictures, statements, parts)
    return [fault for rule in rules for fault in rule(nb)] + list(links(nb, path))
