"""The page Which method?: its figures are those of the tables, its claims hold in them, its code runs."""

import csv
import json
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "book" / "_ext"))

import every_method_chart as chart
import which_method as subject
from every_method_page import KINDS, results

from mlcomp.compare import every_method
from mlcomp.compare.subject import Subject
from mlcomp.data import make_layer
from mlcomp.layerwise.load import load_results

ROOT = Path(__file__).parents[2]
CASES = yaml.safe_load(subject.CASES.read_text(encoding="utf-8"))
PAGE = (ROOT / "book" / "which_method.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['want']}; {case['have']}")
def test_each_case_leads_to_a_measured_row_and_a_notebook(case):
    ((name, key),) = case["measured"].items()
    told = subject.READ[name](**key)
    assert told.seconds > 0 and re.search(r"\d", told.quality) and told.machine
    assert f"lectures/{case['notebook']}" in (ROOT / "_toc.yml").read_text()
    assert not re.search(r"\d\.\d|\d %", " ".join(str(v) for k, v in case.items() if k != "measured")), (
        "typed figures"
    )


def test_a_row_that_is_not_there_is_an_error():
    with pytest.raises(KeyError, match=r"whole_model\.csv has no row"):
        subject.whole_model(method="gptq", bits="7")


def test_figures_are_those_of_the_file():
    with (subject.TABLES / "whole_model.csv").open() as file:
        (row,) = (r for r in csv.DictReader(file) if (r["method"], r["bits"]) == ("quip_sharp", "3"))
    told = subject.whole_model(method="quip_sharp", bits="3")
    assert f"perplexity {float(row['perplexity']):.1f} (dense " in told.quality
    assert told.size == f"{float(row['bits_per_weight']):.2f}" and told.seconds == float(row["total_seconds"])


def mean_of(name, column, **key):
    """Return the mean of a column over the rows with these entries: over the seeds."""
    with (subject.TABLES / f"{name}.csv").open(newline="") as file:
        found = [float(r[column]) for r in csv.DictReader(file) if all(r[k] == v for k, v in key.items())]
    assert len(found) == 3
    return sum(found) / 3


def test_figures_of_several_seeds_are_their_means():
    told = subject.onebit_byte_lm(part="OneBit")
    plain = mean_of("onebit_byte_lm", "after", part="without norm")
    assert f"{mean_of('onebit_byte_lm', 'after', part='OneBit'):.2f} nats a byte (dense 1.19;" in told.quality
    assert f"normalization {plain:.2f})" in told.quality
    told, part = subject.minillm_byte_lm(part="all three"), partial(mean_of, "minillm_byte_lm", "reverse_byte")
    assert told.seconds == pytest.approx(mean_of("minillm_byte_lm", "cpu_seconds", part="all three"))
    assert told.quality == (
        f"{part(part='all three'):.2f} nats a byte from the teacher (before {part(part='start'):.2f}, "
        f"word level {part(part='word level, equal seconds'):.2f})"
    )
    shots = partial(mean_of, "in_context_distillation", "shots_4")
    teacher, hard = shots(part="untaught", method="teacher"), shots(part="students", method="hard")
    assert subject.in_context_distillation(method="both").quality == (
        f"{shots(part='students', method='both'):.1%} right after four examples (teacher {teacher:.1%}, "
        f"written labels alone {hard:.1%})"
    )
    kinds = {"part": "students", "phrasings": "12", "learned": "response"}
    seen, new = (mean_of("instruction_distillation", c, n_kinds="40", **kinds) for c in ("seen", "kinds"))
    few = mean_of("instruction_distillation", "kinds", n_kinds="8", **kinds)
    told = subject.instruction_distillation(kinds="40", phrasings="12")
    assert told.quality == f"{seen:.0%} of known kinds right, {new:.0%} of new ones (taught eight kinds {few:.0%})"
    many = {"part": "students_1000", "kind": "noisy"}
    right = mean_of("rationales", "greedy", method="sampled", rationales="30", **many)
    alone = mean_of("rationales", "greedy", method="label-only", **many)
    assert subject.rationales(rationales="30").quality == f"{right:.1%} right (taught answers alone {alone:.1%})"


def test_what_the_cases_of_small_networks_take_holds_in_the_tables():
    nets = partial(mean_of, "tiny_and_large_nets", "held_out", length="16")
    plain, augmented, longer = (nets(part="net_aug", method=m) for m in ("plain", "NetAug", "plain, equal FLOPs"))
    assert plain < augmented < longer  # "longer training first, NetAug if epochs are what is short"
    told = subject.tiny_and_large_nets("net_aug", "NetAug", "16").quality
    assert told == f"accuracy {augmented:.1%} (plain {plain:.1%}, plain with equal FLOPs {longer:.1%})"
    scratch, tuned, big = (nets(part="pruning", method=m) for m in ("scratch B", "L1, tuned E", "big"))
    assert tuned < scratch < big
    told = subject.tiny_and_large_nets("pruning", "scratch B", "16").quality
    assert told == f"accuracy {scratch:.1%} (pruned and tuned {tuned:.1%}, all channels {big:.1%})"


def test_single_weights_to_the_second_order_lose_least_of_what_needs_no_training():
    by_seed = {}
    for row in subject.table("llm_pruner_smollm2"):
        if row["part"] == "strategies" and row["method"] != "dense":
            by_seed.setdefault(row["seed"], {})[row["method"]] = float(row["reference"])
    assert len(by_seed) == 3 and {min(found, key=found.get) for found in by_seed.values()} == {"element, second, sum"}
    told = subject.llm_pruner_smollm2("strategies", "element, second, sum", "0")
    perplexity = mean_of("llm_pruner_smollm2", "reference", part="strategies", method="element, second, sum")
    assert told.quality == f"perplexity {perplexity:.1f} (dense 20.1)" and told.seconds == 81.7 / 11


@pytest.mark.parametrize(
    ("size", "told"), [("3.05", "3.05 bits a weight"), ("as it is", "as it is"), ("113 M parameters",) * 2]
)
def test_only_a_number_alone_is_of_bits_a_weight(size, told):
    assert subject.stored(size) == told


@pytest.mark.parametrize(
    ("value", "shown"), [("26.248", "26.2"), ("3674181.395", "3.7·10⁶"), ("999.96", "1000.0"), ("1e10", "1.0·10¹⁰")]
)
def test_numbers(value, shown):
    assert subject.number(value) == shown


def test_times():
    assert [subject.took(s) for s in (0.15, 59.6, 599, 1237)] == ["0.1 s", "60 s", "599 s", "21 min"]


def test_what_the_page_claims_holds_in_the_tables():
    rows = {(r["method"], r["setting"]): r for r in results()}
    gptq, obq = rows["GPTQ", "bits=3 clip=mse order=activation"], rows["OBQ", "bits=3 clip=mse damp=0.01"]
    assert float(gptq["similarity"]) >= float(obq["similarity"])  # "it loses nothing to OBQ here"
    assert 10 * float(gptq["seconds"]) < float(obq["seconds"])  # "a small part of the time"
    trained = float(rows["QAT, learned steps", "bits=3"]["similarity"])
    assert float(gptq["similarity"]) > trained  # "gain more than a short training"
    size = {
        row["method"]: float(row["bits_per_weight"]) for row in subject.table("whole_model") if row["bits"] == "3"
    }
    assert 3.4 < size["gptq_g64"] < 3.6 and 3.9 < size["spqr"] < 4.1  # "half a bit more", "a whole bit more"


def test_every_table_says_how_it_was_made():
    assert set(subject.READ) <= set(subject.MADE)
    quoted = {name for case in CASES for name in case["measured"]}
    assert quoted <= set(subject.MADE)


def test_the_code_for_ones_own_model_runs(tmp_path, monkeypatch):
    code = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "compress(model" in block)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(128, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
    space = {"__name__": "__main__", "model": model, "batches": [torch.randn(256, 128)]}
    exec(code, space)
    (stored,) = load_results(tmp_path / "kept")["0"]
    assert stored.tensors["codes"].nbytes == 64 * 128 // 2 and stored.tensors["step"].shape == (64, 2)
    weight = space["small"][0].weight
    assert torch.equal(space["packed"][0].weight, weight) and not torch.equal(weight, model[0].weight)


def test_the_code_of_ones_own_method_runs(monkeypatch):
    """As it stands on the page, but on one small layer instead of MiniLM."""
    code = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "measure_method(" in block)
    weight, x = make_layer(32, 128, 300, seed=0)[:2]
    model = torch.nn.Sequential(torch.nn.Linear(128, 32))
    model[0].weight.data.copy_(weight)
    small = Subject(model, {"0": 2 * x @ x.T}, 0.5, x.T, lambda f, batch: f(batch), ("0",), lambda f: (0.9, 0.8))
    monkeypatch.setattr(every_method, "_minilm", lambda: small)
    space = {"__name__": "__main__"}
    exec(code, space)
    assert space["row"]["method"] == "mine" and 3 < float(space["row"]["bits_per_weight"]) < 5


def test_the_picture_shows_every_row_and_its_front():
    rows = results()
    shown = chart.points(rows)
    assert len(shown) == len(rows) and all(p["method"] in p["told"] and p["setting"] in p["told"] for p in shown)
    assert {p["kind"] for p in shown} == {title for title, _, _ in KINDS.values()} and set(chart.SHAPES) == set(KINDS)
    assert all(0.9 < p["bits"] < 18 for p in shown), "outside of the axis"


def test_every_row_passes_exactly_one_choice_of_bits():
    for point in chart.points(results()):
        ranges = [low <= point["bits"] < high for name, (low, high) in chart.BITS.items() if name != chart.ANY]
        assert sum(ranges) == 1


def test_the_figure_stands_without_scripts_and_holds_no_end_of_a_script():
    made = chart.figure(results(), "../")
    data = re.search(r'<script type="application/json">(.*?)</script>', made, re.DOTALL)[1]
    assert json.loads(data)["data"]["values"] and "</" not in data
    assert made.index('class="static"><svg') < made.index('class="interactive"')
    assert 'href="../_static/every_method.csv"' in made
