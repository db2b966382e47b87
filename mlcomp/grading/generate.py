"""Make the students' notebooks from the source notebooks, with nbgrader: no answers, no hidden checks, no outputs.

The code of the checks and of the set-up is folded: a student runs it, and may unfold it.
"""

import json
import logging
import re
import shutil
import tempfile
from pathlib import Path

from mlcomp.grading.assignment import marks
from mlcomp.grading.extra import require_nbgrader

# A link from a source notebook, which is a page of the book, to another page.
_PAGE = re.compile(r'<a href="\.\./\.\./lectures/(?P<page>[\w/]+)\.html">(?P<text>.*?)</a>')


def generate(solutions: Path, exercises: Path) -> list[Path]:
    """Write ``exercises/FOLDER/NAME.ipynb`` for each ``solutions/FOLDER/NAME.ipynb``; return the changed paths.

    The same source gives the same bytes. Files in ``exercises`` that no source has made are removed.
    """
    changed = []
    with tempfile.TemporaryDirectory(prefix="mlcomp-generate-") as scratch:
        made = _released(solutions, Path(scratch))
        for old in sorted(exercises.glob("*/*.ipynb")):
            if old.relative_to(exercises) not in made:
                old.unlink()
                changed.append(old)
        for relative, data in made.items():
            target = exercises / relative
            if not target.exists() or target.read_bytes() != data:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
                changed.append(target)
    return changed


def out_of_date(solutions: Path, exercises: Path) -> list[Path]:
    """Return the students' notebooks that differ from what :func:`generate` would write, and write nothing."""
    with tempfile.TemporaryDirectory(prefix="mlcomp-generate-") as scratch:
        made = _released(solutions, Path(scratch))
    there = {path.relative_to(exercises): path.read_bytes() for path in exercises.glob("*/*.ipynb")}
    return sorted(exercises / name for name in made.keys() | there.keys() if made.get(name) != there.get(name))


def _released(solutions: Path, scratch: Path) -> dict[Path, bytes]:
    """Return the students' notebooks by their path below the release folder, made inside ``scratch``."""
    require_nbgrader()
    from nbgrader.converters import GenerateAssignment
    from nbgrader.coursedir import CourseDirectory
    from traitlets.config import Config

    shutil.copytree(solutions, scratch / "source", ignore=shutil.ignore_patterns(".*", "__pycache__"))
    config = Config()
    config.CourseDirectory.root = str(scratch)
    config.CourseDirectory.source_directory = "source"
    config.CourseDirectory.release_directory = "release"
    config.CourseDirectory.course_id = "mlcomp"
    config.GenerateAssignment.no_database = True
    config.SaveCells.enabled = False
    for folder in sorted(path.name for path in (scratch / "source").iterdir() if path.is_dir()):
        config.CourseDirectory.assignment_id = folder
        converter = GenerateAssignment(coursedir=CourseDirectory(config=config), config=config)
        converter.log.setLevel(logging.ERROR)
        converter.start()
    release = scratch / "release"
    link = _notebook_link(solutions.parent / "_config.yml")
    return {
        path.relative_to(release): _finished(path.read_text(encoding="utf-8"), link)
        for path in sorted(release.glob("*/*.ipynb"))
    }


def _finished(text: str, link: str) -> bytes:
    """Return a notebook whose links lead out of the book, and whose code that is not the student's is folded.

    Folded in Jupyter and in Colab is what the book folds (the tag hide-input), less the answers.
    """
    book = json.loads(text)
    for cell in book["cells"]:
        cell["source"] = [_PAGE.sub(link, line) for line in cell["source"]]
        if "hide-input" in cell["metadata"].get("tags", []) and not marks(cell).get("solution"):
            cell["metadata"]["jupyter"] = {"source_hidden": True}
            cell["metadata"]["cellView"] = "form"  # Colab's word for it
    return (json.dumps(book, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()


def _notebook_link(config: Path) -> str:
    """Return what replaces a link to a page of the book.

    The notebook in the repository, good in Colab as well; without an address, what to look for in the book.
    """
    text, parts = config.read_text(encoding="utf-8"), []
    for key in ("url", "branch"):
        found = re.search(rf'^repository:.*?^  {key}: "?([^"\s]*)"?$', text, re.S | re.M)
        if found is None:
            raise ValueError(f"{config} does not say the {key} of the repository")
        parts.append(found[1])
    url, branch = parts
    if not url:
        return r"\g<text> (in the book: <code>\g<page></code>)"
    return rf'<a href="{url}/blob/{branch}/lectures/\g<page>.ipynb">\g<text></a>'
