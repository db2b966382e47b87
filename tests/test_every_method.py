"""The table of every method: registration, storage that is really packed, the runner, and what must be registered."""

import copy
import csv
import importlib
import inspect
from functools import partial

import pytest
import torch
from torch import nn

from experiments.every_method import methods, networks, registry, structured
from experiments.every_method.registry import ENTRIES, describe, register
from experiments.every_method.run import FIELDS, run, run_all
from mlcomp.compare.stored_layer import store
from mlcomp.compare.subject import Subject, recall_of_neighbours
from mlcomp.data import committed_table, make_layer
from mlcomp.distill import cofi
from mlcomp.formats import absmax_int8, sparse_nbytes, unpack
from mlcomp.obs import exact_obs, gptq, obq
from mlcomp.prune import bonsai, magnitude
from mlcomp.quant import blockwise, rtn
from tests.contract.test_modules import METHOD_PACKAGES
from tools.inventory import FINISHED_LECTURES, SYLLABUS
from tools.inventory import methods as modules_with_rows

# Layer-wise functions of lectures 1 and 2 that are no method of their own, and why.
NO_ROW_OF_ITS_OWN = {
    "bias_correction": "mends a bias after another method",
    "group_update": "one step of a method: the weights after a given removal",
    "ldlq": "codes equal to GPTQ's, which is in the table",
    "masked_finetune": "mends the weights on another method's mask",
    "refit": "mends the weights on another method's mask",
    "weight_correction": "mends mean and variance after another method",
}

# Rows of finished lectures that compress nothing by themselves, and why.
NO_METHOD = {
    "1.16": "the table itself",
    "1.18": "a cost model",
    "1.22": "a comparison and bounds",
    "2.01": "the problem that the methods solve",
    "2.03": "one step; ExactOBS repeats it",
    "3.02": "trained from a random start",
    "3.03": "trained from a random start",
    "3.04": "trained from a random start",
    "3.06": "formats, of which the table's sizes are made",
    "3.08": "needs BatchNorm's gammas, which an encoder does not have",
    "3.09": "needs labels: at the dense model's own outputs the gradient of the distance to them is zero",
    "3.12": "removes tokens, not weights",
    "3.13": "needs gated layers; removes activations, not weights",
    "3.14": "teaches another network",
    "3.15": "the rows of QAT and gradual pruning are taught by the dense model's outputs already",
    "4.01": "arithmetic",
    "4.03": "trained from a random start",
    "4.06": "what a machine can compute with",
    "4.07": "trains blocks as BRECQ does, with other losses",
    "4.13": "learns from data without labels",
    "4.14": "teaches another network",
    "4.15": "teaches another network",
    "4.16": "teaches another network",
    "4.17": "teaches another network",
    "4.18": "makes data",
    "5.01": "trained from a random start",
    "5.02": "trained from a random start",
    "5.03": "needs a language model's loss: on SmolLM2 in its own notebook",
    "5.05": "a comparison",
    "5.06": "teaches another network",
    "5.07": "teaches another network",
    "5.08": "asks a network several times",
    "5.09": "teaches another network",
    "5.10": "teaches another network",
    "5.11": "judges what others have compressed",
}


def layerwise_methods():
    """Modules of lectures 1 and 2 whose namesake takes a weight first: method name → function."""
    found = {}
    for module in modules_with_rows():
        if module.name.split(".")[1] not in METHOD_PACKAGES:
            continue
        own = [node for node in module.public if node.name == module.path.stem]
        if not own or not any(row[0] in "12" for row in module.syllabus):
            continue
        if [a.arg for a in own[0].args.args[:1]] == ["weight"]:
            package = importlib.import_module(".".join(module.name.split(".")[:2]))
            if own[0].name in package.__all__:  # exported: a finished method
                found[own[0].name] = getattr(package, own[0].name)
    return found


def test_every_finished_layerwise_method_is_in_the_table():
    found = layerwise_methods()
    assert {"rtn", "gptq", "obq", "exact_obs", "magnitude"} <= set(found)  # the search itself works
    registered = {entry.function for entry in ENTRIES.values()}
    missing = [
        name for name, function in found.items() if function not in registered and name not in NO_ROW_OF_ITS_OWN
    ]
    assert missing == [], "register them in experiments/every_method/methods.py, or say why not"
    assert set(NO_ROW_OF_ITS_OWN) <= set(found)


def test_every_row_of_a_finished_lecture_is_in_the_table():
    shown = {row for entry in ENTRIES.values() for row in entry.syllabus.split(", ")}
    rows = [row for lecture in FINISHED_LECTURES for row in SYLLABUS[lecture]]
    assert [row for row in rows if row not in shown and row not in NO_METHOD] == []
    assert not shown & set(NO_METHOD)


def test_committed_table_holds_the_registered_runs_and_no_others():
    rows = {(row["method"], row["setting"]): row for row in committed_table("every_method")}
    registered = {(e.name, describe(s)): e for e in ENTRIES.values() for s in e.settings}
    assert rows.keys() - registered.keys() == set(), "rows of settings that are registered no more: delete them"
    assert registered.keys() - rows.keys() == set(), "run `python -m experiments.every_method`"
    assert all(rows[key]["kind"] == e.kind and rows[key]["syllabus"] == e.syllabus for key, e in registered.items())


def test_codes_of_so_many_bits_take_hardly_more_in_the_committed_table():
    for row in committed_table("every_method"):
        words = dict(word.split("=") for word in row["setting"].split() if "=" in word)
        asked = words.get("bits", words.get("weight_bits"))
        if asked is not None and row["kind"] != "both":
            # SpQR at two bits has the largest share of outliers and statistics, 1.1 bits.
            assert int(asked) <= float(row["bits_per_weight"]) <= int(asked) + 1.2, row


@pytest.fixture(scope="module")
def subject():
    """Two small blocks of one layer with real Hessians; quality: agreement of the outputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(64, 64), nn.ReLU()), nn.Sequential(nn.Linear(64, 64)))
    x = make_layer(64, 64, 300, seed=0)[1]
    reference = model(x.T).detach()
    hessians = {"0.0": 2 * x @ x.T}
    inner = model[:1](x.T).detach().T
    hessians["1.0"] = 2 * inner @ inner.T

    def quality(candidate):
        with torch.no_grad():
            outputs = candidate(x.T)
        return float(nn.functional.cosine_similarity(outputs, reference).mean()), recall_of_neighbours(
            reference, outputs
        )

    return Subject(model, hessians, 0.5, x.T[:96], lambda network, batch: network(batch), ("0", "1"), quality)


UNITS = ("heads, one by one", "Bonsai", "CoFi")  # need a transformer, and have one below
QUICK = [(e, s) for e in ENTRIES.values() for s in e.settings[:1] if e.name not in ("AdaQuant", "AQLM", *UNITS)]


@pytest.mark.parametrize(("entry", "setting"), QUICK, ids=lambda v: getattr(v, "name", ""))
@pytest.mark.slow
def test_every_registered_method_gives_an_honest_row(entry, setting, subject):
    before = {k: v.clone() for k, v in subject.model.state_dict().items()}
    row = run(entry, setting, subject)
    assert set(row) == set(FIELDS)
    assert all(torch.equal(v, before[k]) for k, v in subject.model.state_dict().items())
    bits = float(row["bits_per_weight"])
    # Codebooks of 256 entries and factors of rank 16 weigh more than so small a layer.
    large = entry.kind == "vector" or entry.name.startswith(("AQLM", "sparse plus low rank"))
    assert 0 < bits <= (100 if large else 16)
    assert float(row["megabytes"]) == pytest.approx(bits * 8192 / 8e6, abs=6e-4)
    asked = setting.get("bits", setting.get("weight_bits"))
    if asked is not None and entry.kind != "both":
        # Steps, outliers and tables of so small a layer; a weight that lost its codes would count 16 bits, or nearly.
        assert asked <= bits <= asked + (100 if large else 4)
    assert 0 <= float(row["layer_error"]) < 1 and -1 <= float(row["similarity"]) <= 1.0001
    assert (row["hessian_seconds"] == "0") == (entry.data_free or entry.whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [e.name for e in ENTRIES.values() if e.kind == "tuned" and e.name not in ("DiffQ", *UNITS)]
)
def test_tuning_reaches_the_outputs_better_than_the_same_without(name, subject, monkeypatch):
    """With the steps of training turned off (a rate of nearly 0, no rounds) the outputs are further away."""
    entry = ENTRIES[name]
    setting = dict(entry.settings[0])
    if name.startswith("AQLM"):
        # With 256 entries for 1024 groups, or after the full search in a block of one layer, nothing is left to tune.
        setting |= {"code_bits": 4, "tau": 0.9}

    def distance():
        made = entry.method(subject, **setting)
        with torch.no_grad():
            return float((made.model(subject.inputs) - subject.model(subject.inputs)).square().mean())

    tuned = distance()
    monkeypatch.setattr(networks, "RATE", 1e-12)
    monkeypatch.setattr(networks, "SETTINGS", networks.SETTINGS | {"rounds": 0})
    monkeypatch.setattr(networks, "calibrate", lambda dense, pruned, *_, **__: pruned)
    monkeypatch.setattr(networks, "brecq", partial(networks.brecq, learning_rate=1e-12))
    assert tuned < distance()


@pytest.fixture(scope="module")
def encoder():
    """A tiny encoder with random weights, two layers of four heads; quality: agreement of the outputs."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=50, **sizes), add_pooling_layer=False).eval()
    inputs = torch.randint(50, (32, 8))
    names = [name for name, m in model.named_modules() if name.startswith("encoder.") and isinstance(m, nn.Linear)]
    hessians = {name: torch.eye(model.get_submodule(name).in_features) for name in names}

    def output(network, ids):
        return network(ids).last_hidden_state

    def quality(candidate):
        with torch.no_grad():
            a, b = output(candidate, inputs).flatten(1), output(model, inputs).flatten(1)
        return float(nn.functional.cosine_similarity(a, b).mean()), recall_of_neighbours(b, a)

    return Subject(model, hessians, 0.5, inputs, output, ("encoder.layer.0", "encoder.layer.1"), quality)


@pytest.mark.slow
@pytest.mark.parametrize("name", UNITS)
def test_units_are_removed_and_written_back(name, encoder, monkeypatch):
    entry, small = ENTRIES[name], []
    setting = dict(entry.settings[0])
    monkeypatch.setattr(structured, "UNITS", 8)
    monkeypatch.setattr(structured, "bonsai", lambda *a, samples, **k: bonsai(*a, samples=40, **k))
    monkeypatch.setattr(structured, "cofi", partial(cofi, gate_lr=1.0))  # for six steps
    monkeypatch.setattr(structured, "trained", lambda model, *_, **__: small.append(model.eval()) or model)
    row = run(entry, setting, encoder)
    made = entry.method(encoder, **setting)
    x = encoder.inputs
    with torch.no_grad():
        got, want = encoder.output(made.model, x), encoder.output(small[-1], x)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    stored = sum(p.numel() for n, p in small[-1].named_parameters() if n.startswith("encoder.") and p.ndim == 2)
    whole = sum(p.numel() for n, p in encoder.model.named_parameters() if n.startswith("encoder.") and p.ndim == 2)
    assert stored < whole and float(row["bits_per_weight"]) == pytest.approx(16 * stored / whole, abs=1e-3)
    assert row["size"] == "counted" and float(row["similarity"]) > 0.5


def test_cofi_trains_the_blocks_as_long_as_the_recipe(encoder, monkeypatch):
    """Gates and tuning share the epochs; embeddings and the reader of the stream stay."""
    spent, found = [], []

    def watched(*args, epochs, **options):
        found.append(cofi(*args, epochs=epochs, gate_lr=1.0, **options))
        spent.append(epochs)
        return found[-1]

    monkeypatch.setattr(structured, "cofi", watched)
    monkeypatch.setattr(structured, "trained", lambda model, *_, epochs, **__: spent.append(epochs) or model.eval())
    made = ENTRIES["CoFi"].method(encoder, sparsity=0.3)
    assert len(spent) == 2 and sum(spent) == networks.EPOCHS
    before = encoder.model.state_dict()
    changed = [name for name, value in made.model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed and all(name.startswith("encoder.layer.") for name in changed)
    assert torch.equal(found[0].model.get_submodule("1").weight, torch.eye(32))


def test_diffq_keeps_to_its_target(subject, monkeypatch):
    monkeypatch.setattr(networks, "EPOCHS", 30)  # of only six steps
    made = networks.learned_bits(subject, target_bits=4.0)
    size = sum(q.nbytes for q in made.results.values()) * 8 / 8192
    assert 2.5 < size <= 4


def test_training_leaves_what_is_outside_of_the_blocks(subject):
    outside = nn.Sequential(*copy.deepcopy(subject.model), nn.Linear(64, 64))
    networks.only_blocks(outside, subject)
    assert [n for n, p in outside.named_parameters() if p.requires_grad] == [
        "0.0.weight", "0.0.bias", "1.0.weight", "1.0.bias",
    ]  # fmt: skip


def test_data_free_methods_do_not_see_the_hessian():
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    for entry in ENTRIES.values():
        if entry.data_free and not entry.whole:
            a, b = (store(entry.method(weight, h, **entry.settings[0])).weight for h in (torch.eye(64), None))
            assert torch.equal(a, b)


def test_runner_goes_on_where_it_stopped(subject, tmp_path):
    path = tmp_path / "table.csv"
    entries = [ENTRIES["round to nearest"], ENTRIES["magnitude"]]
    count = sum(len(e.settings) for e in entries)
    assert run_all(entries[:1], lambda: subject, path) == len(entries[0].settings)
    first = path.read_text()
    assert run_all(entries, lambda: subject, path) == len(entries[1].settings)
    assert path.read_text().startswith(first)
    assert run_all(entries, lambda: pytest.fail("nothing is left to do"), path) == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == count == len({(r["method"], r["setting"]) for r in rows})


def test_a_file_of_other_columns_is_refused_before_anything_is_measured(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"rows\.csv has the columns a, b, not method.*--out"):
        run_all(list(ENTRIES.values())[:1], lambda: pytest.fail("measured"), path)


def test_pruned_weights_can_be_read_back():
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    for options in ({"sparsity": 0.5}, {"pattern": (2, 4)}, {"pattern": (1, 4)}, {"pattern": (6, 8)}):
        pattern = options.get("pattern")
        format = "n:m" if pattern else "bitmask"
        pruned = magnitude(weight, **options)
        stored = store(pruned, pattern)
        assert torch.equal(stored.weight, pruned.half().float())
        nnz = int((pruned != 0).sum())
        assert stored.nbytes == sparse_nbytes((6, 16), nnz, format=format, value_bits=16, pattern=pattern)
        values, where = stored.arrays
        rebuilt = torch.zeros(6 * 16, dtype=torch.float16)
        if format == "bitmask":
            rebuilt[unpack(where, 1, 96).bool()] = values
        else:
            block = options["pattern"][1]
            places = unpack(where, (block - 1).bit_length(), tuple(values.shape)).long()
            rebuilt = torch.zeros(96 // block, block, dtype=torch.float16).scatter_(1, places, values).flatten()
        assert torch.equal(rebuilt.reshape(6, 16).float(), stored.weight)


def test_little_sparsity_is_stored_dense():
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    stored = store(magnitude(weight, sparsity=0.02))
    assert stored.nbytes == 2 * 64 and len(stored.arrays) == 1


def test_quantized_results_are_their_own_account():
    weight, x, _ = make_layer(8, 32, 100, seed=0)
    hessian = 2 * x @ x.T
    for result in (
        rtn(weight, bits=3, group_size=8),
        rtn(weight, bits=4, symmetric=True),
        gptq(weight, hessian, bits=3, group_size=16, order="activation"),
        blockwise(weight, bits=3, data_type="quantile"),
    ):
        stored = store(result)
        assert stored.arrays is not None and stored.nbytes == sum(a.nbytes for a in stored.arrays) == result.nbytes
        assert torch.equal(stored.weight, result.dequantize().float())
    int8 = store(absmax_int8(weight, dim=-1))
    assert int8.nbytes == 8 * 32 + 8 * 4


def test_pattern_and_codes_together():
    weight, x, _ = make_layer(8, 32, 100, seed=0)
    hessian = 2 * x @ x.T
    both = obq(exact_obs(weight, hessian, pattern=(2, 4)), hessian, bits=4)
    stored = store(both, (2, 4))
    assert stored.nbytes == sparse_nbytes((8, 32), 128, format="n:m", value_bits=4, pattern=(2, 4)) + 8 * 4 + 4
    codes, places = unpack(stored.arrays[0], 4, (64, 2)), unpack(stored.arrays[1], 2, (64, 2)).long()
    zero = both.zero.to(torch.uint8).repeat_interleave(8, 0).expand(64, 4).clone()
    assert torch.equal(zero.scatter_(1, places, codes).reshape(8, 32), both.codes)


def test_recall_by_hand():
    a = torch.eye(4) + torch.tensor([[0, 0.5, 0, 0], [0.5, 0, 0, 0], [0, 0, 0, 0.5], [0, 0, 0.5, 0]])
    assert recall_of_neighbours(a, a, count=1) == 1
    assert recall_of_neighbours(a, a[[0, 2, 1, 3]], count=1) == 0  # each row's nearest was swapped away


def test_bad_input(as_user):
    with pytest.raises(ValueError, match="registered already"):
        register("GPTQ", "2.08", "compensated", gptq, {"bits": 4})
    with pytest.raises(ValueError, match="kind must be one of"):
        register("new", "1.02", "other", rtn, {"bits": 4})
    with pytest.raises(ValueError, match="at least one setting"):
        register("new", "1.02", "scalar", rtn)
    with pytest.raises(TypeError, match="a tensor, or a result"):
        store("text")
    with pytest.raises(ValueError, match="no whole number of blocks"):
        store(torch.ones(2, 6), (2, 4))
    assert "new" not in ENTRIES and describe({"pattern": (2, 4), "bits": 3}) == "pattern=2:4 bits=3"


def test_names_kinds_and_functions():
    assert methods.ENTRIES is ENTRIES if hasattr(methods, "ENTRIES") else registry.ENTRIES is ENTRIES
    for entry in ENTRIES.values():
        assert callable(entry.function) and inspect.signature(entry.method)
        assert len({describe(s) for s in entry.settings}) == len(entry.settings)
