"""Sphinx extension of this book: everything a page needs is served with the page, and the address is its own."""

import shutil
import sys
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.address import address  # noqa: E402  (the folder is put on the path above)
from tools.setup_cell import library_version, wheel_name  # noqa: E402

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
    config.html_js_files.append("scrolling.js")
    config.html_search_scorer = str(Path(__file__).with_name("search_order.js"))


def say_the_address(app, config) -> None:
    """Link to repository and site where they are set; elsewhere the theme shows no such link.

    Pages choose with `{only} repository` or `{only} not repository`, and name what `words` holds as `{{ wheel }}`.
    """
    where = address(Path(app.srcdir))
    options, wheel = config.html_theme_options, wheel_name(library_version())
    install = f'pip install jupyterlab "{wheel}[notebooks,kernels]"'
    grading = f'pip install "{wheel}[grading]"'
    words = {
        **dict.fromkeys(("repository", "issues"), ""),  # parsed before `only` drops them
        "wheel": f'<a href="../wheel/{wheel}" download>{wheel}</a>',
        "install": f"```\n{install}\n```",
        "install_grading": f"```\n{grading}\n```",
    }
    if where.repository:
        app.tags.add("repository")
        options |= {"repository_url": where.repository, "repository_branch": where.branch}
        buttons = ("repository", "edit_page", "issues", "source")
        options |= {f"use_{name}_button": True for name in buttons}
        words |= {"repository": f"<{where.repository}>", "issues": f"[open an issue]({where.repository}/issues/new)"}
    if where.colab(""):
        options["launch_buttons"] = {"colab_url": "https://colab.research.google.com"}
    if where.site:
        config.html_baseurl = f"{where.site}/"
    config.myst_substitutions |= words


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


def name_folds(app, page, template, context, doctree) -> None:
    """Give the buttons that fold parts of the contents a name, which the theme leaves out."""
    if contents := context.get("generate_toctree_html"):
        named = '<summary aria-label="Show or hide the notebooks">'
        context["generate_toctree_html"] = lambda *args, **options: str(contents(*args, **options)).replace(
            "<summary>", named
        )


def setup(app) -> dict:
    """Register the extension with Sphinx."""
    app.connect("config-inited", serve_locally)
    app.connect("config-inited", say_the_address)
    app.connect("html-page-context", drop_thebe, priority=999)
    app.connect("html-page-context", name_folds, priority=999)
    app.connect("build-finished", copy_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
