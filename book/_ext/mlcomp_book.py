"""Sphinx extension of this book: everything a page needs is served with the page."""

import shutil
from importlib.metadata import distribution
from pathlib import Path

STATIC = Path(__file__).parents[1] / "_static"
# MathJax comes from a pip package, so that pages work offline and no copy of it is committed. The parts left out are
# other input and output formats and the spoken-math engine, which this book does not load.
UNUSED = ("sre", "adaptors", "node-main.js", "asciimath*", "mml3*", "*svg*", "*-speech.js")


def mathjax_folder() -> Path:
    """Return where the installed package keeps MathJax."""
    for file in distribution("sphinx-mathjax-offline").files or []:
        if file.name == "tex-chtml.js":
            return Path(file.locate()).resolve().parent
    raise FileNotFoundError(
        "the package sphinx-mathjax-offline holds no tex-chtml.js: reinstall it, or run `make book`"
    )


def serve_locally(app, config) -> None:
    """Point Sphinx at the local MathJax and at the book's own style sheet."""
    config.mathjax_path = "mathjax/tex-chtml.js"
    config.html_static_path.append(str(STATIC))
    config.html_css_files.append("mlcomp.css")


def copy_mathjax(app, exception) -> None:
    """Copy MathJax beside the built pages."""
    if exception is None and app.builder.format == "html":
        target = Path(app.outdir, "_static", "mathjax")
        if not target.is_dir():
            shutil.copytree(mathjax_folder(), target, ignore=shutil.ignore_patterns(*UNUSED))


def drop_thebe(app, page, template, context, doctree) -> None:
    """Leave out the scripts of Thebe, which Jupyter Book always loads: they name an outside host, and clash."""
    for kind in ("script_files", "css_files"):
        context[kind] = [
            f for f in context[kind] if "thebe" not in f"{f.filename} {f.attributes.get('body')}".lower()
        ]


def setup(app) -> dict:
    """Register the extension with Sphinx."""
    app.connect("config-inited", serve_locally)
    app.connect("html-page-context", drop_thebe, priority=999)
    app.connect("build-finished", copy_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
