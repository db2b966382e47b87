"""The checker of pages sees links that lead nowhere, and markup that was not understood."""

import pytest

from tools.check_pages import broken_links, raw_markup


def test_broken_links_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text('<a href="sub/a.html#here"></a><a href="sub/b.html"></a><img src="no.png">')
    (tmp_path / "sub" / "a.html").write_text(
        '<p id="there"></p><a href="../index.html"></a><a href="https://x.y/z"></a>'
    )
    found = broken_links(tmp_path)
    assert len(found) == 3
    assert any("#here" in line and "no such place" in line for line in found)
    assert any("b.html" in line for line in found)
    assert any("no.png" in line for line in found)


@pytest.mark.parametrize(
    "raw",
    [
        "```{list-table} Published figures, <cite>Max</cite>, table I.",
        "a number {glue:text}`bits` in a sentence",
        "as {cite:t}`max1960` says",
        "~~~{admonition} Note",
        "<p>:class: note\nthe rest</p>",
    ],
)
def test_raw_markup_is_found(tmp_path, raw):
    (tmp_path / "index.html").write_text(f"<nav>{{x}}</nav><article><p>{raw}</p></article>")
    (line,) = raw_markup(tmp_path)[:1]
    assert line.startswith("index.html: ") and "markup as it was written" in line


def test_code_and_formulas_are_no_raw_markup(tmp_path):
    (tmp_path / "index.html").write_text(
        "<article><pre>```{note}</pre><script>let a = `{x}`</script><p>a dict {1: 2}, at 10:30: fine</p>"
        r'<span class="math notranslate">\(\mathrm{rms}\)<span>{a}</span></span><div class="math">{b}</div>'
        "</article><footer>{c}</footer>"
    )
    assert raw_markup(tmp_path) == []
