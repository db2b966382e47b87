import re
import sys
import xml.etree.ElementTree
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "book" / "_ext"))

import every_method_page as subject

BASE = {
    "method": "A", "syllabus": "1.02", "kind": "scalar", "setting": "bits=4", "bits_per_weight": "4.1",
    "megabytes": "5.1", "size": "packed", "layer_error": "0.1", "similarity": "0.9", "recall_at_10": "0.8",
    "seconds": "1.5", "hessian_seconds": "2.0", "date": "2030-01-02", "commit": "abc", "device": "CPU",
    "torch": "3", "python": "3.20",
}  # fmt: skip


def rows(*points):
    return [{**BASE, "method": n, "bits_per_weight": str(b), "similarity": str(s)} for n, b, s in points]


def test_front_by_hand():
    found = subject.front(
        rows(("a", 2, 0.5), ("b", 3, 0.4), ("c", 3, 0.7), ("d", 4, 0.7), ("e", 8, 0.9), ("f", 8, 0.9))
    )
    assert [name for name, _ in found] == ["a", "c", "e", "f"]
    assert subject.caption(rows(("<b>", 2, 0.5))) == "<figcaption>On the front: 1 &lt;b&gt; (bits=4).</figcaption>"


def test_no_other_row_dominates_the_front_of_the_committed_file():
    table = subject.results()
    best = subject.front(table)
    assert 2 <= len(best) < len(table)
    for row in table:
        beaten = any(
            float(o["bits_per_weight"]) <= float(row["bits_per_weight"])
            and float(o["similarity"]) >= float(row["similarity"])
            and (o["bits_per_weight"], o["similarity"]) != (row["bits_per_weight"], row["similarity"])
            for o in table
        )
        assert beaten != ((row["method"], row["setting"]) in best)


def test_page_says_what_is_missing_and_what_was_counted():
    table = [BASE, {**BASE, "method": "B", "size": "counted", "similarity": "0.8", "kind": "pruning"}]
    text = "\n".join(subject.page(table, ["C (bits=2)"]))
    assert "not run yet:** C (bits=2)" in text and "| **A** | bits=4 | 4.10 |" in text
    assert re.search(r"\| B \|.*4\.10\\\* ", text) and "3.5 |" in text and "abc of 2030-01-02" in text
    assert "not run yet" not in "\n".join(subject.page(table, []))


def test_the_newest_row_counts(tmp_path):
    path = tmp_path / "t.csv"
    lines = [",".join(BASE), ",".join(BASE.values()), ",".join({**BASE, "similarity": "0.95"}.values())]
    path.write_text("\n".join(lines) + "\n")
    (row,) = subject.results(path)
    assert row["similarity"] == "0.95"


def test_picture_is_well_formed_and_holds_every_row():
    table = [*rows(("a", 2, 0.5), ("b <&>", 3, 1.0)), {**BASE, "kind": "both"}]
    tree = xml.etree.ElementTree.fromstring(subject.picture(table))
    titles = [t.text for t in tree.iter("title")]
    assert len(titles) == 3 and any("b <&>" in t for t in titles)
    box = [float(v) for v in tree.attrib["viewBox"].split()]
    for path in tree.iter("path"):
        if at := re.match(r"translate\(([\d.]+),([\d.]+)\)", path.attrib.get("transform", "")):
            assert 0 < float(at[1]) < box[2] and 0 < float(at[2]) < box[3]


def test_every_kind_of_the_registry_has_a_table():
    from experiments.every_method.registry import KINDS

    assert set(subject.KINDS) == set(KINDS)
