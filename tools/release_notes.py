"""Print the changelog's section of a release, after checking that its tag is the version of the library.

python tools/release_notes.py v0.2.0
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def library_version() -> str:
    """Return mlcomp.__version__ without importing the library."""
    text = (ROOT / "mlcomp" / "__init__.py").read_text(encoding="utf-8")
    (found,) = re.findall(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    return found


def section(changelog: str, version: str) -> str:
    """Return what stands under the heading ``## [version] - date``.

    Raises:
        ValueError: there is no such heading, or nothing under it.
    """
    parts = re.split(r"^## \[([^\]]+)\] - \d{4}-\d\d-\d\d$\n", changelog, flags=re.MULTILINE)
    texts = {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}
    if not texts.get(version):
        raise ValueError(f"CHANGELOG.md has no section [{version}] with a date and a text")
    return texts[version]


def main(tag: str) -> None:
    if tag != f"v{library_version()}":
        raise SystemExit(f"the tag is {tag}, and the library is {library_version()}")
    print(section((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), library_version()))


if __name__ == "__main__":
    main(sys.argv[1])
