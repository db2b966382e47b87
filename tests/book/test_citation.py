"""How to cite: from one source, with the address only where there is one."""

import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "book" / "_ext"))

import citation as subject

import mlcomp

ABOUT = {"title": "A Book", "author": "The authors", "year": "2030", "version": "1.2", "url": "https://x.y/z"}


def test_both_forms_say_year_version_and_address():
    assert subject.sentence(ABOUT) == "The authors (2030). A Book. Version 1.2. https://x.y/z"
    lines = subject.bibtex(ABOUT).splitlines()
    assert lines[0] == "@misc{mlcomp2030," and lines[-1] == "}" and len(lines) == 7
    assert {"  year   = {2030},", "  url    = {https://x.y/z},", "  title  = {{A Book}},"} <= set(lines)


def test_without_an_address_none_is_named():
    nowhere = ABOUT | {"url": ""}
    assert subject.sentence(nowhere).endswith("Version 1.2.") and "url" not in subject.bibtex(nowhere)


def test_facts_are_those_of_the_repository(tmp_path, monkeypatch):
    found = subject.facts()
    assert found["version"] == mlcomp.__version__ and found["year"].isdigit() and "Compression" in found["title"]
    config = tmp_path / "_config.yml"
    for site, url, shown in (("", "", ""), ("", "https://r", "https://r"), ("https://s", "https://r", "https://s")):
        config.write_text(
            yaml.safe_dump({"copyright": "2030", "repository": {"url": url, "site": site, "branch": "main"}})
        )
        monkeypatch.setattr(subject, "CONFIG", config)
        assert subject.facts()["url"] == shown
