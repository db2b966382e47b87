"""Written answers in nbgrader's own pages: what a student wrote is shown, and does nothing."""

import contextlib
import shutil
import threading
import time
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import nbgrader
import pytest
from nbconvert import HTMLExporter

from mlcomp.grading import written
from mlcomp.grading.gradebook import with_policy
from mlcomp.grading.written import harmless

PAGES = Path(nbgrader.__file__).parent / "server_extensions" / "formgrader"
PICTURE = {"hand.png": {"image/png": "iVBORw0KGgo="}}
RUN = "window.owned=1"
ATTEMPTS = [
    f"<script>{RUN}</script>",
    f"text <img src=x onerror={RUN}>",
    f"<svg onload={RUN}></svg>",
    f"<svg><animate onbegin={RUN} attributeName=x dur=1s></svg>",
    f"<svg><a xlink:href='javascript:{RUN}'><text y=20>x</text></a></svg>",
    f"<math><mtext><table><mglyph><style><!--</style><img title='--><img src=1 onerror={RUN}>'>",
    f"<noscript><p title='</noscript><img src=x onerror={RUN}>'></noscript>",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'></iframe>",
    f"<details open ontoggle={RUN}><summary>more</summary></details>",
    f"<a id=x tabindex=1 autofocus onfocus={RUN} href='javascript:{RUN}'>x</a>",
    f"<form action=javascript:{RUN}><button id=x>x</button></form>",
    f"<input autofocus onfocus={RUN}>",
    f"<object data='data:text/html,<script>{RUN}</script>'></object>",
    f"<meta http-equiv=refresh content='0;url=javascript:{RUN}'>",
    "<base href='https://example.org/'>",
    "<link rel=stylesheet href='https://example.org/x.css'>",
    "<style>* { display: none }</style>",
    "<p style='position:fixed;inset:0' class='score' id='statusmessage'>x</p>",
    f"[x](javascript:{RUN})",
    f"[x](\x01javascript:{RUN})",
    f"[x](JAVA&Tab;SCRIPT:{RUN})",
    f"[x][y]\n\n[y]: javascript:{RUN}",
    f"<javascript:{RUN}>",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](/logout) [y](../../api/contents)",
    "![x](https://example.org/track.png)",
    "![x](data:image/svg+xml;base64,PHN2Zz48L3N2Zz4=)",
    f"![x](x 'a\" onerror=\"{RUN}')",
    f"\\[x\\](javascript:{RUN}) \\<script>{RUN}\\</script>",
    f"&lt;script&gt;{RUN}&lt;/script&gt; &amp;lt;script&amp;gt;",
    f"`</code><script>{RUN}</script>`",
    f"```html\n</pre><script>{RUN}</script>\n```",
    f'```"><script>{RUN}</script>\nx\n```',
    f"```mermaid\ngraph LR; A[<img src=x onerror={RUN}>]\n```",
    f"$\\href{{javascript:{RUN}}}{{x}}$ $\\style{{position:fixed}}{{x}}$ \\class{{score}}{{x}}",
    f"$</script><script>{RUN}</script>$",
    f"$$\n<img src=x onerror={RUN}>\n$$",
    f"\\begin{{align}}<img src=x onerror={RUN}>\\end{{align}}",
    f"</div></div></body></html><script>{RUN}</script>",
    f"| a |\n|---|\n| <img src=x onerror={RUN}> |",
    f"<!--><img src=x onerror={RUN}>-->",
    f"<![CDATA[><img src=x onerror={RUN}>]]>",
    f"<?x ><img src=x onerror={RUN}>?>",
]


def shown(text, kind="markdown"):
    (made,) = harmless([{"cell_type": kind, "source": text, "attachments": PICTURE}], seconds=30.0)
    return made


def exported(texts, template="formgrade"):
    """Return the page that nbgrader makes of a stored notebook with these Markdown cells."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text) for text in texts])
    exporter = HTMLExporter(
        template_name=template,
        extra_template_basedirs=[str(PAGES / "templates")],
        extra_template_paths=[str(PAGES / "static" / "node_modules" / "bootstrap" / "dist" / "css")],
    )
    resources = {"base_url": "", "index": 0, "total": 1, "submission_id": "s", "notebook_id": "n"}
    resources["nbgrader"] = {"notebook": "n", "score": 0, "max_score": 0, "late_penalty": 0}
    return exporter.from_notebook_node(book, resources)[0]


class Tags(HTMLParser):
    """The tags of the cells in a page."""

    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.text = ""
        self.feed(page[page.index('id="notebook-container"') :])

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("text", ATTEMPTS)
@pytest.mark.slow
def test_an_attempt_becomes_no_tag_that_acts(text):
    page = exported([shown(text)])
    ours = exported(["MARK"]).count("<script")
    assert page.count("<script") == ours
    for tag, attributes in Tags(page).tags:
        assert tag not in {"svg", "math", "iframe", "object", "form", "input", "style", "link", "meta", "base"}
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        if tag == "a":
            assert attributes.get("href", "#").startswith(("#", "http://", "https://", "mailto:"))
        if tag == "img":
            assert attributes["src"].startswith("data:image/png;base64,")
    assert "\\href" not in page and "\\style" not in page and "\\class" not in page


@pytest.mark.parametrize(
    ("text", "tags", "words"),
    [
        ("By *symmetry*, $a_1 < b$ & so on", {"em"}, "$a_1 < b$ & so on"),
        ("$$\nx_1 \\\\ y^2\n$$", set(), "x_1 \\\\ y^2"),
        ("\\begin{align}a &< b\\end{align}", set(), "\\begin{align}a &< b\\end{align}"),
        ("| a | b |\n|---|---|\n| `x < 1` | 2 |", {"table", "code"}, "x < 1"),
        ("1. one\n2. two\n\n\n3. three", {"ol", "li"}, "three"),
        ("```python\nif x < 1:\n\n    y = '$'\n```", {"pre"}, "y = '$'"),
        ("`\\href` in code", {"code"}, "\\href in code"),
        ("![my hand](attachment:hand.png)", {"img"}, ""),
        ("see <https://example.org/a?b=c&d=e>", {"a"}, "https://example.org/a?b=c&d=e"),
        ("x<sub>1</sub> and <b>not closed", {"sub", "b"}, "not closed"),
        ("![missing](attachment:x.png)", set(), "[picture: missing]"),
    ],
)
def test_an_honest_answer_is_shown(text, tags, words):
    page = Tags(exported([shown(text)]))
    assert tags <= {tag for tag, _ in page.tags} and words in page.text


def test_text_that_is_no_markdown_is_shown_as_it_is():
    text = f"*a*\n\n<script>{RUN}</script>"
    page = Tags(exported([shown(text, "raw")]))
    assert text in page.text and "em" not in {tag for tag, _ in page.tags}


@pytest.mark.slow
def test_a_text_cannot_take_long_nor_much_memory():
    harmless([{"cell_type": "markdown", "source": "*a*"}], seconds=60.0)  # the first call imports what renders
    start = time.monotonic()
    slow = {"cell_type": "markdown", "source": "<div>" * 20_000}
    texts = harmless([slow, {"cell_type": "markdown", "source": "*late*"}], seconds=1.0)
    assert time.monotonic() - start < 10
    assert texts[1] == "<pre>&#42;late&#42;</pre>"  # nothing is lost, only its form
    many = "[x][y] " * 5000 + "\n\n[y]: https://example.org/" + "a" * 20_000
    assert len(shown(many)) < 12 * 2**20


def test_a_limit_that_something_swallowed_comes_again():
    with pytest.raises(written._OutOfTime), written._alarm(0.1):
        with contextlib.suppress(written._OutOfTime):  # lost, as in a callback of the garbage collector
            time.sleep(30)
        time.sleep(30)


def test_outside_of_the_main_thread_no_text_is_rendered_without_a_limit():
    made = []
    thread = threading.Thread(target=lambda: made.append(shown("*a*")))
    thread.start()
    thread.join()
    assert made == ["<pre>&#42;a&#42;</pre>"]


@pytest.mark.browser
@pytest.mark.parametrize("template", ["formgrade", "feedback"])
def test_no_attempt_runs_in_a_browser(template, tmp_path):
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no browser")
    from playwright.sync_api import sync_playwright

    (tmp_path / "safe.html").write_text(exported(map(shown, ATTEMPTS), template), encoding="utf-8")
    bare = exported(ATTEMPTS[:3], template)
    (tmp_path / "bare.html").write_text(bare, encoding="utf-8")
    (tmp_path / "policy.html").write_text(with_policy(bare), encoding="utf-8")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        asked = []
        page.on("request", lambda request: asked.append(request.url))

        def owned(name):
            page.goto((tmp_path / name).as_uri(), wait_until="domcontentloaded")
            for link in page.locator("#notebook a, #notebook button, #notebook summary").all():
                link.dispatch_event("click")
            page.wait_for_timeout(500)
            return page.evaluate("window.owned === 1")

        assert owned("bare.html")  # the page itself keeps nothing back
        assert not owned("policy.html")  # the second line of defence, of the feedback alone
        asked.clear()
        assert not owned("safe.html")
        assert not [url for url in asked if "example.org" in url and "a?b" not in url]
        browser.close()
