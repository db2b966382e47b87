"""The glossary: one source that is whole, and links from a page's text to it, where a reader first meets a word."""

import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from docutils import nodes

sys.path.insert(0, str(Path(__file__).parents[2] / "book" / "_ext"))

import glossary as subject

from tools.inventory import Term, glossary

ASKED_FOR = (
    "GPTQ",
    "Wanda",
    "perplexity",
    "SparseGPT",
    "held-out error",
    "round to nearest",
    "nats",
    "2:4",
    "W4A16",
    "E8",
)


def links(text: str, seen: set[str] | None = None) -> list[tuple[str, str]]:
    """Return (slug, words) of the marks in a text."""
    parts = subject.marked(nodes.Text(text), set() if seen is None else seen)
    assert "".join(part.astext() for part in parts) == text
    return [(part["term"], part.astext()) for part in parts if isinstance(part, nodes.inline)]


def test_every_entry_is_whole_in_three_languages():
    terms = glossary()
    assert len(terms) > 140
    for term in terms:
        assert set(term.meanings) == {"en", "ru", "zh"} and all(term.meanings.values()), term.name
        assert re.search("[а-яё]", term.meanings["ru"]) and re.search("[一-鿿]", term.meanings["zh"]), term.name
        assert not re.search(r"[$\\]", "".join(term.meanings.values())), f"{term.name}: a tooltip shows no formulas"
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", term.slug)


def test_no_word_means_two_entries():
    terms = glossary()
    words = Counter(form.casefold() for term in terms for form in set(term.forms))
    assert [word for word, count in words.items() if count > 1] == []
    assert len({term.slug for term in terms}) == len(terms)
    assert set(ASKED_FOR) <= {form for term in terms for form in term.forms}


def test_slugs():
    named = {term.name: term.slug for term in glossary()}
    assert named["bits per weight"] == "bits-per-weight" and named["n:m sparsity"] == "n-m-sparsity"
    assert (
        named["QuIP"] == "quip"
        and named["QuIP#"] == "quip-sharp"
        and named["Lloyd–Max quantizer"] == "lloyd-max-quantizer"
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The Hessians of two layers, and a Hessian.", [("hessian", "Hessians")]),
        ("the inverse\nHessian and the Hessian", [("inverse-hessian", "inverse\nHessian"), ("hessian", "Hessian")]),
        ("2:4, but not at 12:45 or 2:44", [("n-m-sparsity", "2:4")]),
        ("QuIP# is QuIP with E8", [("quip-sharp", "QuIP#"), ("quip", "QuIP"), ("e8-lattice", "E8")]),
        ("in bits per weight (RTN)", [("bits-per-weight", "bits per weight"), ("round-to-nearest", "RTN")]),
        ("obs, gptq: names of functions; pre-quantization", []),
        ("a code, its scale and the weights", []),  # common words
    ],
)
def test_terms_are_found_in_text(text, found):
    assert links(text) == found


def test_a_term_is_linked_once():
    seen = {"perplexity"}
    assert links("Perplexity of GPTQ", seen) == [("gptq", "GPTQ")]
    assert links("GPTQ again, then Wanda", seen) == [("wanda", "Wanda")]


def test_headings_links_code_and_definitions_stay():
    for kind in (nodes.title, nodes.reference, nodes.literal, nodes.math, nodes.strong):
        word, around = nodes.Text("GPTQ"), nodes.paragraph()
        around += kind("", "", word)
        assert subject.inside(word, subject.NO_LINK), kind
    plain = nodes.Text("GPTQ")
    nodes.paragraph("", "", plain)
    assert not subject.inside(plain, subject.NO_LINK)


def test_a_row_holds_all_languages_and_no_markup_of_its_own():
    term = Term("a < b", ("a < b", "c&d"), False, {"ru": "имя", "zh": "名"}, {"en": "<x>", "ru": "и", "zh": "中"})
    row = subject.row(term)
    assert row.startswith('<tr id="term-a-b">') and "a &lt; b" in row and "c&amp;d" in row and "&lt;x&gt;" in row
    assert '<td lang="ru"><b>имя</b><p>и</p></td><td lang="zh"><b>名</b><p>中</p></td>' in row


def test_other_languages_are_found_name_by_name():
    words = {word for term in glossary() for word in subject.words_of(term)}
    assert {"гессиан", "матрица Гессе", "海森矩阵", "最优脑外科医生"} <= words
