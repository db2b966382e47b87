"""The cells that every lecture notebook shares: header, set-up and footer, made from its metadata.

    title      of the notebook; its number comes from lecture and file name
    path       core or deeper
    goals      three things that a reader will be able to do
    needs      Markdown: links to what is used here, and what of it
    summary    three sentences
    use_when, dont_when, cost

Minutes of reading are counted, minutes of running measured by `run`; what comes next follows from _toc.yml.
"""

import math
import re
from functools import cache
from pathlib import Path

import nbformat
import yaml

from tools.address import address
from tools.setup_cell import setup_cell

ROOT = Path(__file__).resolve().parents[1]
REQUIRED = ("title", "lecture", "syllabus", "path", "goals", "needs", "summary", "use_when", "dont_when", "cost")
HEADER_KEYS = {*REQUIRED, "slides"}
FOLDED = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
FOLD = re.compile(r"<details>.*?</details>", re.DOTALL)
FOOTER = "## In three sentences"


def config() -> dict:
    return yaml.safe_load((ROOT / "_config.yml").read_text())


def is_folded(cell: nbformat.NotebookNode) -> bool:
    return bool(FOLDED & set(cell.metadata.get("tags", [])))


def contents() -> list[str]:
    """Return the files of _toc.yml in reading order, without their suffix."""

    def walk(node: object) -> list[str]:
        if isinstance(node, dict):
            own = [node[key] for key in ("root", "file") if key in node]
            return own + [name for key in ("parts", "chapters", "sections") for name in walk(node.get(key, []))]
        return [name for child in node for name in walk(child)]

    return walk(yaml.safe_load((ROOT / "_toc.yml").read_text()))


@cache
def _info(path: Path, changed: int) -> dict:
    return nbformat.read(path, as_version=4).metadata.get("mlcomp", {})


def info_of(path: Path) -> dict:
    """Return a notebook's metadata. Every footer asks for its whole lecture: a file is read once until it changes."""
    return _info(path, path.stat().st_mtime_ns)


def number(info: dict, path: Path) -> str:
    """Return the number of a notebook, such as 1.5: its lecture, and its place there."""
    place = re.match(r"\d+", path.name)
    lecture = str(info["lecture"])
    return f"{lecture if lecture.isdigit() else lecture[0].upper()}.{int(place[0]) if place else 0}"


def reading_minutes(nb: nbformat.NotebookNode) -> int:
    """Estimate how long what an author wrote takes, unfolded: 150 words, 20 lines of code, 3 figures a minute."""
    words = lines = figures = 0
    for cell in unstamped(nb):
        if cell.cell_type == "markdown":
            words += len(FOLD.sub("", cell.source).split())
        elif cell.cell_type == "code":
            lines += 0 if is_folded(cell) else len(cell.source.splitlines())
            data = [output.get("data", {}) for output in cell.outputs]
            figures += sum(any(kind.startswith("image/") for kind in d) for d in data)
            words += sum(len(d.get("text/markdown", "").split()) for d in data)
    return max(1, round(words / 150 + lines / 20 + figures / 3))


def running_minutes(info: dict) -> str:
    """Return how long the notebook ran on two cores, in whole minutes."""
    seconds = info.get("ran", {}).get("seconds")
    if seconds is None:
        return "not run yet"
    return "under 1 min to run" if seconds < 60 else f"{math.ceil(seconds / 60)} min to run"


def lecture_path(lecture: object) -> list[tuple[Path, dict]]:
    """Return the notebooks of a lecture, in the order of the contents, with their metadata."""
    files = [ROOT / f"{name}.ipynb" for name in contents()]
    return [(f, i) for f in files if f.exists() and (i := info_of(f)).get("lecture") == lecture]


def next_line(info: dict, path: Path) -> str:
    """Return where to go from here: on the core path, and in the order of the contents."""
    here = path.resolve()
    order = lecture_path(info["lecture"])
    places = [f.resolve() for f, _ in order]
    if here not in places:
        return "**Next** the lecture's other notebooks."
    after = order[places.index(here) + 1 :]
    if not after:
        return "**Next** the [exercises](../../book/exercises.md): this was the last notebook of its lecture."

    def link(f: Path, i: dict) -> str:
        return f"[{number(i, f)} {i['title']}]({f.name})"

    core = next(((f, i) for f, i in after if i.get("path") == "core"), None)
    if core is None or core[0] == after[0][0]:
        return f"**Next** {link(*after[0])}" + ("." if core is None else ", the core path goes on there.")
    return f"**Next** on the core path {link(*core)}; deeper: {link(*after[0])}."


def header(nb: nbformat.NotebookNode, path: Path) -> nbformat.NotebookNode:
    """Return the first cell: what the notebook is, what one can do after it, and what it needs."""
    info = nb.metadata["mlcomp"]
    settings = config()
    follows = settings["mlcomp_lectures"][info["lecture"]] + (
        f", slides {info['slides']}" if "slides" in info else ""
    )
    facts = [follows, f"{info['path']} path", f"{reading_minutes(nb)} min to read", running_minutes(info)]
    inside = path.resolve().is_relative_to(ROOT)
    colab = address().colab(path.resolve().relative_to(ROOT).as_posix()) if inside else None
    facts += [f"[Open in Colab ↗]({colab})"] if colab else []
    goals = "\n".join(f"- {goal}" for goal in info["goals"])
    needs = "\n".join(f"- {need}" for need in info["needs"])
    return nbformat.v4.new_markdown_cell(
        f"# {number(info, path)} {info['title']}\n\n{' · '.join(facts)}\n\n"
        f"**You will be able to**\n\n{goals}\n\n**You need**\n\n{needs}"
    )


def is_set_up(cell: nbformat.NotebookNode) -> bool:
    return cell.cell_type == "code" and cell.source.startswith("# Set-up:")


def set_up() -> nbformat.NotebookNode:
    """Return the cell that finds or installs the package."""
    return nbformat.v4.new_code_cell(setup_cell(address()), metadata={"tags": ["remove-cell"]})


def footer(nb: nbformat.NotebookNode, path: Path) -> nbformat.NotebookNode:
    """Return the last cell: what to remember, when to use it, what it costs, and what comes next."""
    info = nb.metadata["mlcomp"]
    return nbformat.v4.new_markdown_cell(
        f"{FOOTER}\n\n{' '.join(info['summary'])}\n\n**Use it when** {info['use_when']}\n\n"
        f"**Don't when** {info['dont_when']}\n\n**What it costs** {info['cost']}\n\n{next_line(info, path)}"
    )


def missing_keys(info: dict) -> list[str]:
    return [key for key in REQUIRED if not info.get(key)]


def stamp(nb: nbformat.NotebookNode, path: Path) -> None:
    """Put header, set-up and footer in place of those of an earlier stamp; a set-up that ran is kept."""
    if missing := missing_keys(nb.metadata.get("mlcomp", {})):
        raise ValueError(f"{path}: the header lacks mlcomp.{', mlcomp.'.join(missing)} (see tools/template.py)")
    body, setup = unstamped(nb), set_up()
    for old in filter(is_set_up, nb.cells[:2]):  # a set-up that ran has run, with another address or version, too
        setup.execution_count, setup.outputs = old.execution_count, old.outputs
    nb.cells = body
    nb.cells = [header(nb, path), setup, *body, footer(nb, path)]


def is_stamped(nb: nbformat.NotebookNode, path: Path) -> bool:
    if missing_keys(nb.metadata.get("mlcomp", {})) or len(nb.cells) < 3:
        return False
    inner = nbformat.from_dict({"cells": nb.cells[2:-1], "metadata": nb.metadata})
    want = [header(inner, path), set_up(), footer(inner, path)]
    have = [*nb.cells[:2], nb.cells[-1]]
    return [(c.cell_type, c.source) for c in have] == [(c.cell_type, c.source) for c in want]


def unstamped(nb: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Return the cells that an author writes."""
    cells = list(nb.cells)
    if cells and cells[0].cell_type == "markdown" and cells[0].source.startswith("# "):
        cells.pop(0)
    if cells and is_set_up(cells[0]):
        cells.pop(0)
    if cells and cells[-1].source.startswith(FOOTER):
        cells.pop()
    return cells
