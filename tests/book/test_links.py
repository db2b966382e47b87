"""The link checker sees what leads nowhere."""

from tools.check_links import broken_links


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
