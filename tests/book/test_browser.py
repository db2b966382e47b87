"""The built book in a browser: quiet console, nothing from outside, formulas, phone width, search, WCAG 2.1."""

import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
BOOK = Path(os.environ.get("MLCOMP_BOOK", ROOT / "_build" / "html"))
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
# Raw TeX that a reader would see if MathJax had not run. Code and hidden copies for screen readers do not count.
RAW_TEX = r"""() => {
  const page = document.querySelector('article').cloneNode(true);
  page.querySelectorAll('pre, code, mjx-container, script, style').forEach(e => e.remove());
  return (page.textContent.match(/\\(frac|mathrm|lVert|hat|sum|begin|top)\b|\\\(|\\\[/g) || []).slice(0, 5);
}"""
WIDE = """() => [...document.querySelectorAll('article *')]
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
  .slice(0, 3).map(e => e.tagName + '.' + e.className)"""
# The width of the page, once it fits or a second has passed: a busy machine lays a page out anew some frames later.
WIDTH = """async most => {
  const page = document.documentElement;
  for (let i = 0; i < 60 && page.scrollWidth > most; i++) await new Promise(requestAnimationFrame);
  return page.scrollWidth;
}"""
# Formulas wider than the page that show their end first.
CUT = """() => [...document.querySelectorAll('article div.math mjx-container')]
  .filter(e => e.getBoundingClientRect().left < e.parentElement.getBoundingClientRect().left - 1)
  .slice(0, 3).map(e => e.getBoundingClientRect().left + ' in ' + e.closest('section')?.id)"""
# axe-core's rules for WCAG 2.1, levels A and AA. Left out are formulas, since MathJax draws each from hundreds of
# elements that are hidden from screen readers, beside a copy that is read; and the entries of the API page, which
# autodoc makes as lists that axe objects to, and on which it takes minutes.
WCAG = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}
CONTRAST = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}  # all that a dark page has of its own
LEFT_OUT = ["mjx-container", "article dl.py"]


def missing(what: str):
    """Skip on a reader's machine; fail in CI, where it must be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="module")
def site():
    """The book on a local server; only the address is handed out."""
    if not (BOOK / "index.html").exists():
        missing("the book is not built: run `make book` first")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(BOOK)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    """One headless Chromium for all pages."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        missing(f"no browser: install one of {', '.join(names)} to run the browser tests")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=program, args=FLAGS)
        yield chromium
        chromium.close()


def pages() -> list[str]:
    found = sorted(p.relative_to(BOOK).as_posix() for p in BOOK.rglob("*.html")) if BOOK.exists() else []
    # index.html only sends the reader on: it has a test of its own.
    return [p for p in found if p != "index.html" and not p.startswith(("_static/", "_modules/", "wheel/"))]


@pytest.fixture(scope="module", params=["light", "dark"])
def tab(request, browser, site):
    """A tab in one colour scheme that notes what it should not see."""
    context = browser.new_context(color_scheme=request.param, viewport=DESK)
    page = context.new_page()
    page.faults = []
    page.on("console", lambda m: page.faults.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda e: page.faults.append(f"script: {e}"))

    def failed(request):
        if request.failure != "net::ERR_ABORTED":  # cancelled because the tab went on to another page
            page.faults.append(f"failed: {request.url} {request.failure}")

    page.on("requestfailed", failed)

    def watch(request):
        if not request.url.startswith((site, "data:", "blob:")):
            page.faults.append(f"left the machine: {request.url}")

    page.on("request", watch)
    page.scheme = request.param
    yield page
    context.close()


@pytest.mark.parametrize("name", pages())
def test_page(tab, site, name):
    tab.faults.clear()
    tab.set_viewport_size(DESK)
    tab.goto(site + name, wait_until="load")
    if tab.locator("article .math").count():
        tab.wait_for_function("window.MathJax?.startup?.promise !== undefined")
        tab.evaluate("() => MathJax.startup.promise")
        assert tab.locator("mjx-container").count() > 0
        assert tab.locator("mjx-merror").count() == 0, tab.locator("mjx-merror").first.inner_text()
    if tab.locator("article").count():
        assert tab.evaluate(RAW_TEX) == []
    assert tab.evaluate("document.documentElement.dataset.theme") in (tab.scheme, None)
    tab.set_viewport_size(PHONE)
    width = tab.evaluate(WIDTH, PHONE["width"])
    assert width <= PHONE["width"], f"{width} px wide on a phone: {tab.evaluate(WIDE)}"
    assert tab.evaluate(CUT) == []
    assert tab.faults == []


@pytest.mark.parametrize("name", pages())
def test_page_is_for_everyone(tab, site, name):
    """No violation of WCAG, and a description of at most 160 characters."""
    from axe_playwright_python.sync_playwright import Axe

    tab.set_viewport_size(DESK)
    tab.goto(site + name, wait_until="load")
    description = tab.locator("head meta[name=description]")
    assert description.count() == 1 and 20 <= len(description.get_attribute("content")) <= 160
    if tab.locator("article .math").count():
        tab.wait_for_function("window.MathJax?.startup?.promise !== undefined")
        tab.evaluate("() => MathJax.startup.promise")
    rules = WCAG if tab.scheme == "light" else CONTRAST
    found = Axe().run(tab, {"exclude": [[place] for place in LEFT_OUT]}, {**rules, "resultTypes": ["violations"]})
    faults = [(v["id"], n["target"], n["html"][:120]) for v in found.response["violations"] for n in v["nodes"]]
    assert faults == []


def test_what_is_wide_can_be_scrolled_with_the_keyboard(tab, site):
    tab.set_viewport_size(PHONE)
    tab.goto(site + "book/results.html", wait_until="load")
    tab.wait_for_selector(".pst-scrollable-table-container[tabindex='0']")
    wide = tab.locator(".pst-scrollable-table-container").first
    assert wide.evaluate("e => e.scrollWidth > e.clientWidth")
    wide.focus()
    tab.keyboard.press("ArrowRight")
    tab.wait_for_function("document.querySelector('.pst-scrollable-table-container').scrollLeft > 0")


def test_focus_is_visible(tab, site):
    """Of a link in the text, by a ring that differs from the page enough to be seen (3 to 1)."""
    tab.set_viewport_size(DESK)
    tab.goto(site + "book/exercises.html", wait_until="load")
    link = tab.locator("article a[download]").first
    tab.keyboard.press("Tab")  # from here on, focus counts as the keyboard's
    link.focus()
    width, style = link.evaluate("e => [getComputedStyle(e).outlineWidth, getComputedStyle(e).outlineStyle]")
    assert (width, style) == ("3px", "solid")


def test_index_leads_to_the_introduction(tab, site):
    tab.faults.clear()
    tab.goto(site + "index.html")
    tab.wait_for_url(site + "book/intro.html")
    assert tab.faults == []


def test_the_picture_of_every_method_stands_above_its_tables(tab, site):
    tab.set_viewport_size(DESK)
    tab.goto(site + "book/every_method.html")
    tab.wait_for_selector("figure.every-method .vega-embed svg")
    picture = tab.locator("figure.every-method .vega-embed svg").first.bounding_box()
    table = tab.locator("article table").first.bounding_box()
    assert picture["height"] > 200 and picture["y"] + picture["height"] <= table["y"]


def test_search_finds_the_inverse_hessian(tab, site):
    tab.faults.clear()
    tab.set_viewport_size(DESK)
    tab.goto(site + "book/intro.html")
    tab.keyboard.press("Control+k")
    box = tab.locator("input[type=search]:visible").first
    box.fill("inverse Hessian")
    box.press("Enter")
    tab.wait_for_selector("#search-results ul.search li a")
    assert tab.locator("#search-results ul.search li").count() >= 1
    assert tab.faults == []


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("2:4", "book/glossary.html#term-n-m-sparsity"),
        ("W4A16", "book/glossary.html#term-w4a16"),
        ("E8", "book/glossary.html#term-e8-lattice"),
        ("cite", "book/cite.html"),
        ("гессиан", "book/glossary.html#term-hessian"),
        ("剪枝", "book/glossary.html#term-pruning"),
        ("GPTQ", "book/method_index.html#method-gptq"),
    ],
)
def test_search_finds_short_names_and_other_languages(tab, site, words, page):
    tab.goto(site + "search.html?q=" + words)
    tab.wait_for_function("document.querySelector('p.search-summary')?.textContent.includes('found')")
    links = tab.eval_on_selector_all("#search-results ul.search li a", "all => all.map(a => a.getAttribute('href'))")
    assert any(link.startswith(page) for link in links[:5]), links


def test_rows_are_filtered_while_one_types(tab, site):
    tab.goto(site + "book/method_index.html")
    box = tab.get_by_label("Show rows with").first
    rows = tab.locator("table.filterable").first.locator("tbody tr:visible")
    before = rows.count()
    box.press_sequentially("brain surgeon")
    assert 1 <= rows.count() < before and "Optimal Brain Surgeon" in rows.first.inner_text()
    box.fill("")
    assert rows.count() == before


def test_the_picture_names_a_method_and_can_be_filtered(tab, site):
    tab.faults.clear()
    tab.set_viewport_size(DESK)
    tab.goto(site + "book/which_method.html")
    tab.wait_for_selector(".interactive svg")
    marks = tab.locator(".interactive .mark-symbol path[aria-label]")
    before = marks.count()
    assert before > 90 and not tab.locator("figure.every-method .static").is_visible()
    tab.locator(".interactive").focus()
    tab.keyboard.press("ArrowRight")
    assert "bits a weight" in tab.locator(".told").inner_text()
    tab.get_by_label("kind of method").select_option("Several weights to a code")
    tab.wait_for_function(
        f"document.querySelectorAll('.interactive .mark-symbol path[aria-label]').length < {before}"
    )
    assert 5 < marks.count() < 20
    marks.first.dispatch_event("mouseover")  # marks overlap: a pointer might meet another one
    assert tab.locator(".told").inner_text() == marks.first.get_attribute("aria-label")
    assert tab.faults == []


def test_answers_come_last_in_the_search(tab, site):
    tab.goto(site + "search.html?q=quantization+exercises")
    tab.wait_for_selector("#search-results ul.search li a")
    tab.wait_for_function("document.querySelector('#search-results .search-summary').textContent.includes('found')")
    hits = tab.locator("#search-results ul.search li > a").evaluate_all("all => all.map(a => a.pathname)")
    answers = [place for place, hit in enumerate(hits) if "/solutions/" in hit]
    assert answers and answers[0] >= len(hits) - len(answers) > 0
