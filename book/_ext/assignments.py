"""`{assignment}`: how to get an assignment's notebook, and what each of its questions asks for and builds on."""

import shutil
import sys
from pathlib import Path
from typing import ClassVar

from docutils.parsers.rst import directives
from method_index import Generated

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mlcomp.grading.assignment import load_assignment  # noqa: E402  (the folder is put on the path above)
from tools import inventory  # noqa: E402
from tools.address import address  # noqa: E402


class Assignment(Generated):
    """One assignment; the argument is its place below ``solutions/`` and ``exercises/``, without the ending."""

    required_arguments = 1
    option_spec: ClassVar = {"time": directives.unchanged_required}

    def lines(self) -> list[str]:
        """Return links to the student's notebook, its questions, and a fold with the link to the answers."""
        name = self.arguments[0]
        source = ROOT / "solutions" / f"{name}.ipynb"
        self.watch(source)
        questions = load_assignment(source).questions
        taught = inventory.notebooks("lectures")
        titles = {n.path.relative_to(ROOT).with_suffix("").as_posix(): n.title for n in taught}
        ways = [f'<a href="../exercises/{name}.ipynb" download>Download the notebook</a>']
        if colab := address(Path(self.env.srcdir)).colab(f"exercises/{name}.ipynb"):
            ways.insert(0, f"[Open in Colab]({colab})")
        by_hand = sum(q.points for q in questions if q.manual)
        points = f"{sum(q.points for q in questions)} points, {by_hand} of them for a derivation on paper"
        rows = [f"| {q.title} | {q.points} | [{titles[q.section]}](/{q.section}) |" for q in questions]
        return [
            f"{' · '.join(ways)} · {self.options['time']} · {points}",
            "",
            "| What you build | Points | Work through first |",
            "|---|---|---|",
            *rows,
            "",
            "<details><summary>The answers, for afterwards</summary>",
            "",
            f"[The same notebook with its answers](/solutions/{name}), each folded.",
            "",
            "</details>",
            "",
        ]


def copy_exercises(app, exception) -> None:
    """Put the students' notebooks beside the built pages, for download."""
    if exception is None and app.builder.format == "html":
        for source in sorted(ROOT.glob("exercises/*/*.ipynb")):
            target = Path(app.outdir) / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def setup(app) -> dict:
    """Register the directive with Sphinx."""
    app.add_directive("assignment", Assignment)
    app.connect("build-finished", copy_exercises)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
