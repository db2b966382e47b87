"""Check every internal link of a built book: the page is there, and so is the place on it.

python tools/check_links.py _build/html
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Collects where a page links to, and which places on it can be linked to."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.places.update(v for k, v in attrs if k in ("id", "name") and v)
        self.links += [named[key] for key in ("href", "src") if named.get(key)]


def broken_links(root: Path) -> list[str]:
    """Return one line for each link that leads nowhere."""
    pages = {p.resolve(): Page(p) for p in sorted(root.rglob("*.html")) if "_static" not in p.parts}
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


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if not (folder / "index.html").exists():
        sys.exit(f"no built book in {folder}")
    lines = broken_links(folder)
    print("\n".join(lines) or "every internal link leads somewhere")
    sys.exit(1 if lines else 0)
