"""What every committed number says about itself: commit, machine, versions and seed."""

import csv
import json
import re

import pytest

from tools.inventory import ROOT

FOLDERS = ("mlcomp/data/tables", "benchmarks/results")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*")) if path.suffix in (".csv", ".json")]
# A commit as `git describe --always --dirty` writes it, or the one in which numbers landed that did not say.
COMMIT = re.compile(r"[0-9a-f]{7,40}(-dirty|-landed)?")
# JSON file → its own numbers, each beside the origin that speaks for it.
PARTS = {
    "in_context_teacher": lambda d: [(d, d.get("origin"))],
    "pruning_taxonomy": lambda d: [(row, d["origins"].get(name)) for name, row in d["rows"].items()],
    "pruning_vs_quantization": lambda d: [(row, row.get("origin")) for row in d["rows"]],
    "qat_convnet": lambda d: [(d[part], d["origins"].get(part)) for part in ("quantized", "mixed")],
    "robust_pca_boundary": lambda d: [(row, row.get("origin")) for row in d["rows"]],
    "scaling_family": lambda d: [(d["models"], d.get("origin"))],
    "synthetic_answers": lambda d: [(d["answers"], d.get("origin"))],
    "small_nets": lambda d: [(network, network.get("origin")) for network in d.values()],
}


def origins(path) -> list[dict]:
    """Return what the file says about the origin of each of its parts."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    return [origin for _, origin in PARTS[path.stem](json.loads(text))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_table_says_where_its_numbers_come_from(path):
    found = origins(path)
    assert found
    for origin in found:
        assert COMMIT.fullmatch(origin["commit"]), origin
        assert origin.get("machine") or origin.get("device"), origin
        assert re.match(r"\d+\.\d+", origin["torch"]) and origin["python"], origin
        assert re.fullmatch(r"\d+( \d+)*|default|none", str(origin["seed"])), origin
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", origin["date"]), origin


def test_all_results_are_looked_at():
    assert len(FILES) >= 14
    assert {path.stem for path in FILES if path.suffix == ".json"} == set(PARTS)
