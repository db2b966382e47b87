"""The first code cell of every notebook: it finds the book's package, or installs it, or says what to do.

    python tools/setup_cell.py solutions    # put the present cell into the source notebooks of the exercises

Lecture notebooks get it from `tools/notebooks.py stamp`.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.address import Address, address  # noqa: E402  (the folder is put on the path above)

FIRST_LINE = "# Set-up: finds or installs the package of this book, and asks for sharp figures."
CELL = """{first_line}
import importlib
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

from packaging.version import Version

NEEDED = "{version}"
PUBLISHED = {published}
WAY_OUT = (
    f"Download mlcomp_book-{{NEEDED}}-py3-none-any.whl from the book's page 'How to work "
    f"with this book' into the folder {{Path.cwd()}}, and run this cell again."
)
installed = [d.version for d in distributions(name="mlcomp-book")]
if list(distributions(name="mlcomp")):
    raise ImportError(
        "The package 'mlcomp' is another project with the name of our module. Run "
        "'%pip uninstall -y mlcomp mlcomp-book', restart the kernel, and rerun this cell."
    )
if not installed or Version(installed[0]) < Version(NEEDED):
    above = [Path.cwd(), *Path.cwd().parents]
    places = [folder / inside for folder in above for inside in ("", "wheel")]
    wheels = [w for place in places for w in place.glob("mlcomp_book-*.whl")]
    wheels = [w for w in wheels if Version(w.name.split("-")[1]) >= Version(NEEDED)]
    sources = [w.as_uri() for w in wheels] + PUBLISHED
    if not sources:
        raise ImportError(f"mlcomp-book {{NEEDED}} is not installed. {{WAY_OUT}}")
    what = f"mlcomp-book[notebooks,kernels] @ {{sources[0]}}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", what]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        raise ImportError(f"pip failed at {{what}}. {{WAY_OUT}}\\n{{done.stderr[-2000:]}}")
    importlib.invalidate_caches()

import matplotlib_inline.backend_inline

matplotlib_inline.backend_inline.set_matplotlib_formats("retina")"""


def library_version() -> str:
    """Return the library's version, without importing it."""
    text = (ROOT / "mlcomp" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.M)[1]


def wheel_name(version: str) -> str:
    """Return the name of the file that the package is installed from."""
    return f"mlcomp_book-{version}-py3-none-any.whl"


def setup_cell(settings: Address) -> str:
    """Return the source of the set-up cell for what the notebooks may be installed from."""
    version, published = library_version(), []
    if settings.site:
        published.append(f"{settings.site}/wheel/{wheel_name(version)}")
    if settings.repository:
        published.append(f"git+{settings.repository}@v{version}")
    lines = "".join(f'\n    "{where}",' for where in published)
    return CELL.format(first_line=FIRST_LINE, version=version, published=f"[{lines}\n]" if lines else "[]")


def stamp_solution(path: Path, cell: str) -> bool:
    """Put the cell into one source notebook of an exercise; return whether that changed it."""
    text = path.read_text(encoding="utf-8")
    book = json.loads(text)
    place = next(c for c in book["cells"] if c["cell_type"] == "code")
    if "not-graded" not in place["metadata"].get("tags", []):
        raise ValueError(f"{path}: the first code cell is not the set-up cell, which has the tag not-graded")
    place["source"] = cell.splitlines(keepends=True)
    changed = json.dumps(book, ensure_ascii=False, indent=1) + "\n"
    path.write_text(changed, encoding="utf-8")
    return changed != text


if __name__ == "__main__":
    if sys.argv[1:] != ["solutions"]:
        sys.exit(__doc__)
    for notebook in sorted((ROOT / "solutions").glob("*/*.ipynb")):
        if stamp_solution(notebook, setup_cell(address())):
            print(f"stamped {notebook.relative_to(ROOT)}")
