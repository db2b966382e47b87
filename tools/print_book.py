"""Print the built book: one PDF for each lecture, beside the pages.

    python tools/print_book.py _build/html

Needs Chromium (or Chrome) on the path. Folds are opened, so that paper shows the proofs and the answers.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright
from pypdf import PdfWriter

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.stamp import contents  # noqa: E402  (the folder is put on the path above)

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# What a sheet of paper has no use for; cells may break over pages, pictures and boxes may not.
PRINT = """
html { font-size: 75%; }
.bd-sidebar-primary, .bd-sidebar-secondary, .bd-header-article, .bd-header, .prev-next-footer, .bd-footer-content,
.headerlink, .copybtn, .skip-link, .anim-buttons, .anim-controls { display: none !important; }
.bd-main .bd-content .bd-article-container { max-width: none; padding: 0; }
pre { white-space: pre-wrap; font-size: 8.5pt; }
img, svg, .admonition, table { break-inside: avoid; }
h1, h2, h3 { break-after: avoid; }
"""


def lectures() -> dict[str, list[str]]:
    """Return name of a PDF → its pages: the lecture's opening page, and its notebooks."""
    groups: dict[str, list[str]] = {}
    for name in contents():
        if name.startswith("lectures/"):
            folder = name.split("/")[1]
            opening = f"book/lecture{folder[0]}" if folder[0].isdigit() else None
            groups.setdefault(folder, [opening] if opening in contents() else []).append(name)
    return groups


def print_page(page: Page, address: str, target: Path) -> None:
    """Print one page of the site with its formulas set."""
    page.goto(address)
    page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    page.wait_for_function("!window.MathJax || (MathJax.startup?.promise?.then(() => window.set = true), window.set)")
    page.add_style_tag(content=PRINT)
    margin = {"top": "15mm", "bottom": "18mm", "left": "15mm", "right": "15mm"}
    number = "<div style='font-size:8pt;width:100%;text-align:center'><span class='pageNumber'></span></div>"
    page.pdf(
        path=str(target), format="A4", margin=margin, display_header_footer=True, header_template="<i></i>",
        footer_template=number,
    )  # fmt: skip


def print_book(site: Path, program: str) -> list[Path]:
    """Write the PDFs into ``site``/pdf and return their paths."""
    (site / "pdf").mkdir(exist_ok=True)
    made = []
    with sync_playwright() as play, tempfile.TemporaryDirectory() as folder:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(color_scheme="light")
        for lecture, names in lectures().items():
            with PdfWriter() as book:
                for i, name in enumerate(names):
                    sheet = Path(folder, f"{lecture}-{i}.pdf")
                    print_page(page, (site / f"{name}.html").resolve().as_uri(), sheet)
                    book.append(sheet, outline_item=page.title().partition(" — ")[0])
                made.append(site / "pdf" / f"{lecture}.pdf")
                book.write(made[-1])
            print(made[-1], flush=True)
        browser.close()
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="folder of the built pages")
    options = parser.parse_args()
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        sys.exit(f"error: no browser to print with: install one of {', '.join(PROGRAMS)}")
    if not (options.site / "index.html").exists():
        sys.exit(f"error: no pages in {options.site}: run `make book` first")
    print_book(options.site, found)
