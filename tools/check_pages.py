"""Check the pages of a built book: every internal link leads somewhere, and no markup was left as it was written.

python tools/check_pages.py _build/html
"""

import functools
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a reader never should see outside of code: a fence, a role, a directive's option. Sphinx does not warn of them.
RAW_MARKUP = re.compile(r"```|~~~|\{[a-z-]+(?::[a-z-]+)*\}`?|^:[a-z-]+:", re.MULTILINE)
VERBATIM = ("pre", "script", "style", "textarea")


class Page(HTMLParser):
    """Collects where a page links to, which places on it can be linked to, and the text of its article."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.text: list[str] = []
        self._article = self._verbatim = self._math = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.places.update(v for k, v in attrs if k in ("id", "name") and v)
        self.links += [named[key] for key in ("href", "src") if named.get(key)]
        self._article += tag == "article"
        self._verbatim += tag in VERBATIM
        # Formulas hold braces of their own: everything from the element with class "math" to its end is left out.
        if self._math or "math" in (named.get("class") or "").split():
            self._math += tag in ("div", "span")

    def handle_endtag(self, tag):
        self._article -= tag == "article"
        self._verbatim -= tag in VERBATIM
        if self._math:
            self._math -= tag in ("div", "span")

    def handle_data(self, data):
        if self._article and not self._verbatim and not self._math:
            self.text.append(data)


@functools.cache  # both checks read the same pages
def pages_of(root: Path) -> dict[Path, Page]:
    """Return each page of the book, by its path."""
    return {p.resolve(): Page(p) for p in sorted(root.rglob("*.html")) if "_static" not in p.parts}


def broken_links(root: Path) -> list[str]:
    """Return one line for each link that leads nowhere."""
    pages = pages_of(root)
    found = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            if not target.exists():
                found.append(f"{path.relative_to(root.resolve())}: {link}: no such file")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
                found.append(f"{path.relative_to(root.resolve())}: {link}: no such place on the page")
    return found


def raw_markup(root: Path) -> list[str]:
    """Return one line for each piece of text that is markup instead of what it should have become."""
    found = []
    for path, page in pages_of(root).items():
        text = "".join(page.text)
        for match in RAW_MARKUP.finditer(text):
            shown = " ".join(text[max(0, match.start() - 10) : match.end() + 40].split())
            found.append(f"{path.relative_to(root.resolve())}: {shown}: markup as it was written")
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if not (folder / "index.html").exists():
        sys.exit(f"no built book in {folder}")
    lines = broken_links(folder) + raw_markup(folder)
    print("\n".join(lines) or "every internal link leads somewhere, and no markup is left")
    sys.exit(1 if lines else 0)
