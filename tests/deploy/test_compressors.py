import functools
import inspect

import pytest
import torch

from mlcomp import quant
from mlcomp.cli import OPTIONS
from mlcomp.deploy import compressors as module
from mlcomp.deploy.compressors import bind, compressors, find_compressor, other_methods, read_option
from mlcomp.layerwise.plan import call_method
from tests.contract.test_checks import layer

# What a good call needs beside what the table of contract tests has.
NEEDED = {"bits": 4, "sparsity": 0.5, "dim": 4, "entries": 4, "parts": 2, "stages": 2, "branching": 2}


def needed(compressor):
    takes = set(compressor.options)
    options = {name: value for name, value in NEEDED.items() if name in takes}
    return options | ({"books": 1, "code_bits": 2} if compressor.name == "aqlm" else {})


def test_every_method_that_takes_a_layer_is_found():
    found = compressors()
    assert {"rtn", "gptq", "wanda", "sparsegpt", "aqlm", "quip_sharp", "exact_obs", "blockwise"} <= set(found)
    # Parts of methods have another name than their module, and take no layer or return no weight.
    assert not {"fit_grid", "ldlq_round", "obd_saliency", "exact_obs_trace", "weight_incoherence"} & set(found)
    assert list(found) == sorted(found)


@pytest.mark.parametrize("name", list(compressors()))
def test_each_can_be_bound_and_called_on_a_layer(name):
    compressor, given = compressors()[name], layer()
    method = bind(compressor, needed(compressor), seed=3)
    results = [call_method(method, given["weight"].clone(), given["hessian"].clone()) for _ in range(2)]
    a, b = (r if isinstance(r, torch.Tensor) else r.dequantize() for r in results)
    assert a.shape == given["weight"].shape
    torch.testing.assert_close(a, b, rtol=0, atol=0)  # each layer starts from the seed anew
    assert compressor.title and compressor.rows


def test_a_seed_reaches_the_method():
    compressor = find_compressor("vector_quantization")
    options = {"dim": 4, "entries": 6}
    a, b = (bind(compressor, options, seed=s)(layer()["weight"]).dequantize() for s in (0, 1))
    assert not torch.equal(a, b)
    assert bind(find_compressor("quip"), {"bits": 2}, seed=7).keywords["seed"] == 7


def test_no_option_of_a_method_is_one_of_the_command():
    own = {name.removeprefix("--").replace("-", "_") for name in OPTIONS}
    taken = {name: own & set(c.options) for name, c in compressors().items() if own & set(c.options)}
    assert taken == {}


def test_options_are_read_from_words_by_their_type():
    method = bind(find_compressor("adaround"), {"bits": "4", "group_size": "8"}, seed=0)
    assert method.keywords == {"bits": 4, "group_size": 8}
    parameters = inspect.signature(find_compressor("gptq").function).parameters
    cases = {("symmetric", "yes"): True, ("symmetric", "false"): False, ("damp", "1e-3"): 0.001}
    cases |= {("scale_dtype", "float16"): torch.float16, ("group_size", "none"): None, ("clip", "mse"): "mse"}
    for (name, word), value in cases.items():
        assert read_option(name, word, parameters[name]) == value
        assert type(read_option(name, word, parameters[name])) is type(value)
    pattern = inspect.signature(find_compressor("wanda").function).parameters["pattern"]
    assert read_option("pattern", "2:4", pattern) == (2, 4) and read_option("pattern", (1, 4), pattern) == (1, 4)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("bits", "4.5"),
        ("bits", "none"),
        ("symmetric", "4"),
        ("damp", "much"),
        ("scale_dtype", "float99"),
        ("bits", ""),
    ],
)
def test_a_word_of_another_type_is_refused(name, word):
    with pytest.raises(ValueError, match=rf"--{name.replace('_', '-')} takes .*got '{word}'"):
        bind(find_compressor("gptq"), {"bits": "4", name: word}, seed=0)


def test_unknown_and_missing_options_name_those_that_there_are():
    with pytest.raises(ValueError, match=r"gptq has no option 'group'; did you mean .*--bits, --group-size"):
        bind(find_compressor("gptq"), {"bits": 4, "group": 8}, seed=0)
    with pytest.raises(ValueError, match="rtn has no option 'damp'"):
        bind(find_compressor("rtn"), {"bits": 4, "damp": 0.1}, seed=0)
    with pytest.raises(ValueError, match=r"product_quantization needs dim \(--dim …\), entries .*, parts"):
        bind(find_compressor("product-quantization"), {}, seed=0)


def test_names_are_forgiving_and_wrong_ones_have_neighbours():
    assert find_compressor("Exact-OBS") is find_compressor("exact_obs")
    with pytest.raises(ValueError, match="there is no method 'gtpq'; did you mean gptq"):
        find_compressor("gtpq")


def test_a_recipe_fills_what_is_not_given(monkeypatch):
    recipes = {"gptq": {"bits": 3, "order": "activation"}, "wanda": {"pattern": (2, 4)}}
    monkeypatch.setattr(module, "RECIPES", recipes)
    assert bind(find_compressor("gptq"), {"bits": "4"}, seed=0).keywords == {"bits": 4, "order": "activation"}
    assert bind(find_compressor("wanda"), {}, seed=0).keywords == {"pattern": (2, 4)}
    # One target of pruning takes the place of another.
    assert bind(find_compressor("wanda"), {"sparsity": "0.5"}, seed=0).keywords == {"sparsity": 0.5}


def test_groups_of_a_recipe_hold_where_they_fit(monkeypatch):
    recipe = {"bits": 3, "group_size": 8, "static_groups": True}
    monkeypatch.setattr(module, "RECIPES", {"gptq": recipe, "rtn": {"bits": 3, "group_size": 8}})
    given, odd = layer(), slice(0, 12)  # 12 inputs, which 8 does not divide
    method, alone = (bind(find_compressor(name), {}, seed=0) for name in ("gptq", "rtn"))
    w, h = given["weight"], given["hessian"]
    same = [
        (method(w, h), quant.gptq(w, h, **recipe)),
        (method(w[:, odd], h[odd, odd]), quant.gptq(w[:, odd], h[odd, odd], bits=3)),
        (alone(w[:, odd]), quant.rtn(w[:, odd], bits=3)),
    ]
    for found, expected in same:
        torch.testing.assert_close(found.dequantize(), expected.dequantize(), rtol=0, atol=0)
    # What was asked for is not left away.
    with pytest.raises(ValueError, match="group_size must divide the 12 inputs, got 8"):
        bind(find_compressor("gptq"), {"group_size": 8}, seed=0)(w[:, odd], h[odd, odd])
    assert bind(find_compressor("gptq"), {"group_size": "none"}, seed=0).keywords == {"bits": 3, "group_size": None}


def test_every_recipe_is_one():
    for name, recipe in module.RECIPES.items():
        assert isinstance(bind(find_compressor(name), {}, seed=0), functools.partial) and recipe


def test_each_option_is_explained_from_the_docstring():
    told = dict(find_compressor("gptq").described())
    assert "bits per code, 1 to 8" in told["--bits INT"]
    assert "activation" in told["--order WORD (default natural)"] and "`" not in "".join(told.values())
    for compressor in compressors().values():
        assert all(meaning for _, meaning in compressor.described()), compressor.name


@pytest.mark.slow
def test_the_rest_of_the_index_is_listed_once():
    names = [name for name, title, rows in other_methods() if title and rows]
    assert "layerwise.compress" in names and "quant.post_training.gptq" not in names
    assert len(names) == len(set(names)) > 80
