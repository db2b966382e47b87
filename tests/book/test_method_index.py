"""The method index: each method once, under the name people say, with kernels and tests beside the code."""

import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "book" / "_ext"))

import method_index as subject

from experiments.every_method import methods  # noqa: F401  (registers)
from experiments.every_method.registry import ENTRIES
from tools import inventory

NAMES = yaml.safe_load(subject.NAMES.read_text(encoding="utf-8"))


class Directive:
    """What the links need of one."""

    def watch(self, *paths):
        assert all(path.exists() for path in paths)


@pytest.fixture
def links(tmp_path, monkeypatch):
    """Return the links of a book whose repository has the address that is given."""

    def made(url):
        config = tmp_path / "_config.yml"
        config.write_text(yaml.safe_dump({"repository": {"url": url, "branch": "main"}}))
        monkeypatch.setattr(subject, "CONFIG", config)
        return subject.Links(Directive())

    return made


def test_names_are_those_of_modules_and_differ():
    assert NAMES.keys() <= {m.name.removeprefix("mlcomp.") for m in inventory.methods()}
    slugs = [subject.slug(name) for name in NAMES.values()]
    assert len(set(slugs)) == len(slugs) and all(slugs)
    assert "gptq" in slugs and "quip" in slugs and "quip-sharp" in slugs and "optimal-brain-surgeon" in slugs


def test_every_method_that_is_measured_has_a_name():
    """A function of the table of every method is written in a module that has a row."""
    homes = {getattr(entry.function, "__module__", "") for entry in ENTRIES.values()}
    ours = {home.removeprefix("mlcomp.") for home in homes if home.startswith("mlcomp.")}
    assert len(ours) > 30 and ours - NAMES.keys() == set(), "name them in book/method_names.yml"


def test_kernels_stand_beside_what_they_compute():
    found = subject.kernels_of({m.name: m for m in inventory.methods()})
    assert [m.path.stem for m in found["mlcomp.obs.exact_obs"]] == ["exact_obs"]
    assert sorted(m.path.stem for m in found["mlcomp.formats.additive_codebook"]) == [
        "additive_decode",
        "additive_matvec",
    ]


def test_files_are_linked_only_where_the_repository_has_an_address(links):
    gptq = next(m for m in inventory.methods() if m.name == "mlcomp.quant.post_training.gptq")
    assert links("https://x.y/z").test(gptq) == (
        "[test](https://x.y/z/blob/main/tests/quant/post_training/test_gptq.py)"
    )
    for nowhere in ("", None):
        told = links(nowhere).test(gptq)
        assert "http" not in told and "](" not in told and "test_<wbr>gptq" in told


def test_a_row_leads_to_pages_of_the_book(links):
    gptq = next(m for m in inventory.methods() if m.name == "mlcomp.quant.post_training.gptq")
    made = links("")
    assert 'href="../_modules/mlcomp/quant/post_training/gptq.html"' in made.code(gptq)
    assert "(/lectures/2_optimal_brain_compression/05_optimal_brain_quantizer.ipynb)" in made.notebooks(gptq)
    assert "(/book/exercises.md)" in made.exercises(gptq) and "solutions" not in made.exercises(gptq)
    assert subject.papers(gptq) == "[2210.17323](https://arxiv.org/abs/2210.17323)"
    assert subject.meaning(gptq).startswith("OBQ with one column order")
