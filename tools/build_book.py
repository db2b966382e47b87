"""Build the book with warnings as errors, and the library's wheel beside its pages.

    python tools/build_book.py           # clean: what CI trusts
    python tools/build_book.py --keep    # reuse what did not change

A second, incremental build of a broken book exits 0, so `--keep` falls back to a clean build after a red one.
"""

import argparse
import html
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
# What the wheel is made of.
PACKAGE = ("mlcomp", "solutions", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "LICENSE-text")
# Jupyter Book's own start page is a bare redirect: without an icon, for which browsers then ask the server's root,
# and with nothing to click where redirects are switched off.
START = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="refresh" content="0; url=book/intro.html">
<link rel="icon" href="_static/favicon.svg">
<title>{title}</title>
</head>
<body><a href="book/intro.html">To the book</a></body>
</html>
"""


def build_wheel(root: Path, out: Path) -> Path:
    """Build the wheel of ``root`` into ``out``, beside an index of it, and return its path.

    From a copy, since setuptools takes over what earlier builds left in the folder.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for name in PACKAGE:
            if (root / name).is_dir():
                ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
                shutil.copytree(root / name, Path(scratch, name), ignore=ignore)
            else:
                shutil.copy(root / name, scratch)
        # What builds it is in the extra `book`: nothing is fetched.
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*command, "--wheel-dir", str(out), scratch], check=True)
    (wheel,) = out.glob("*.whl")
    name = html.escape(wheel.name)
    page = f'<!DOCTYPE html><html lang="en"><title>{name}</title><body><a href="{name}">{name}</a></body></html>\n'
    (out / "index.html").write_text(page, encoding="utf-8")
    return wheel


def build(root: Path, out: Path, *, keep: bool = False) -> int:
    """Build the book of ``root`` into ``out``/_build/html and return the exit status."""
    folder = out / "_build"
    green = folder / ".green"
    if folder.exists() and not (keep and green.exists()):
        shutil.rmtree(folder)
    green.unlink(missing_ok=True)
    command = [Path(sys.executable).with_name("jupyter-book"), "build", "-W", "-n", "--keep-going", "-q", str(root)]
    done = subprocess.run([*command, "--path-output", str(out)], cwd=root, stdout=subprocess.PIPE, text=True)
    code = done.returncode  # warnings went to stderr as they came; the rest is of interest after a failure only
    if code:
        print(done.stdout)
    if code == 0:
        title = yaml.safe_load((root / "_config.yml").read_text())["title"]
        (folder / "html" / "index.html").write_text(START.format(title=title), encoding="utf-8")
        shutil.rmtree(folder / "html" / "wheel", ignore_errors=True)
        build_wheel(root, folder / "html" / "wheel")
        green.touch()
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="reuse the pages that did not change")
    parser.add_argument("--out", type=Path, default=ROOT, help="folder that receives _build")
    options = parser.parse_args()
    sys.exit(build(ROOT, options.out, keep=options.keep))
