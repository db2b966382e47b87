import socket
import sys
import types

import pytest
import torch
from torch import nn

from mlcomp.deploy import open_model
from mlcomp.deploy.open_model import course_names
from tests.deploy import tiny


def test_the_models_of_the_course_that_come_with_it():
    convnet, lm = open_model("convnet"), open_model("byte_lm_16")
    assert (convnet.kind, convnet.tokenizer, convnet.images.size) == ("image classifier", None, 28)
    assert lm.kind == "language model" and lm.longest == 256
    assert lm.tokenizer("né")["input_ids"] == [110, 195, 169]
    assert not convnet.model.training and convnet.source is None
    assert {"smollm2", "minilm", "mobilenet_v2"} < set(course_names())


def test_random_weights_come_from_the_seed_and_leave_the_global_state():
    state = torch.get_rng_state()
    a, b, c = (open_model("mobilenet_v2", pretrained=False, seed=s).model for s in (1, 1, 2))
    first, again, other = (m.classifier[1].weight for m in (a, b, c))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state) and not a.training


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (tiny.llama, "language model"),
        (tiny.bert, "text encoder"),
        (lambda: tiny.bert("BertForSequenceClassification"), "text classifier"),
    ],
)
def test_folders_of_transformers(model, kind, tmp_path):
    made = model()
    opened = open_model(tiny.saved(made, tmp_path))
    assert (opened.kind, type(opened.model), opened.longest) == (kind, type(made), 64)
    assert opened.tokenizer("ab")["input_ids"] == tiny.tokenizer()("ab")["input_ids"]
    for key, value in made.state_dict().items():
        torch.testing.assert_close(opened.model.state_dict()[key], value, rtol=0, atol=0)
    other = open_model(str(tmp_path), pretrained=False, seed=1).model
    assert type(other) is type(made) and not torch.equal(next(other.parameters()), next(made.parameters()))


def test_a_model_keeps_the_dtype_of_its_weights(tmp_path):
    folder = tiny.saved(tiny.llama().bfloat16(), tmp_path)
    assert {p.dtype for p in open_model(folder).model.parameters()} == {torch.bfloat16}


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(ValueError, match=r"has no config.json.*smollm2.*torchvision:NAME"):
        open_model(str(tmp_path))
    tiny.saved(tiny.llama(), tmp_path, words=False)
    with pytest.raises(ValueError, match="cannot open the folder"):
        open_model(str(tmp_path))
    (tmp_path / "mlcomp.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds a compressed model already: open it with mlcomp\.layerwise\.load"):
        open_model(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("smolm2", "did you mean smollm2"),
        ("byte_lm_65", "did you mean .*byte_lm_64"),
        ("./nowhere", "there is no folder './nowhere'.*owner/name"),
        ("a:b", "there is no folder"),
        ("", "a model is opened by its name"),
        (None, "a model is opened by its name"),
    ],
)
def test_names_of_nothing(name, told, as_user):
    with pytest.raises(ValueError, match=told):
        open_model(name)


def test_without_a_network_the_hub_is_not_asked_for_long(monkeypatch):
    def no_address(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"there is no model 'some/thing'.*without a network.*Name or service"):
        open_model("some/thing")


def test_a_model_whose_inputs_are_not_known(tmp_path):
    import transformers

    sizes = {"vocab_size": 260, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))
    with pytest.raises(ValueError, match="T5ForConditionalGeneration, and how to give it inputs is not known"):
        open_model(tiny.saved(model, tmp_path))


class Classifier(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
        )


def stand_in(monkeypatch, name, **attributes):
    module = types.ModuleType(name)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def torchvision(monkeypatch):
    """What is used of torchvision, as its documentation says, with one small network."""
    shown = types.SimpleNamespace(crop_size=[32], resize_size=[40], mean=[0.5] * 3, std=[0.25] * 3)
    weights = types.SimpleNamespace(transforms=lambda: shown)

    def get_model(name, weights):
        if weights is not None:
            raise OSError("no network")
        return Classifier()

    models = types.SimpleNamespace(
        list_models=lambda: ["resnet18", "resnet34"],
        get_model_weights=lambda name: types.SimpleNamespace(DEFAULT=weights),
        get_model=get_model,
    )
    return stand_in(monkeypatch, "torchvision", models=models)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision/resnet18"])
def test_models_of_torchvision(name, torchvision):
    opened = open_model(name, pretrained=False)
    assert opened.kind == "image classifier" and opened.source == opened.name == "torchvision:resnet18"
    assert (opened.images.size, opened.images.resize, opened.images.std) == (32, 40, (0.25,) * 3)
    with pytest.raises(ValueError, match=r"torchvision has no model 'resnet19'; did you mean resnet18"):
        open_model("torchvision:resnet19")
    with pytest.raises(ValueError, match=r"the weights of torchvision:resnet18 could not be had: no network"):
        open_model(name)


def test_models_of_timm(monkeypatch):
    facts = {"input_size": (3, 32, 32), "crop_pct": 0.8, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    stand_in(
        monkeypatch,
        "timm",
        data=types.SimpleNamespace(resolve_model_data_config=lambda model: facts),
        list_models=lambda: ["vit_tiny"],
        is_model=lambda name: name == "vit_tiny",
        create_model=lambda name, pretrained: Classifier(),
    )
    opened = open_model("timm:vit_tiny", pretrained=False)
    assert (opened.images.size, opened.images.resize, opened.source) == (32, 40, "timm:vit_tiny")
    with pytest.raises(ValueError, match="timm has no model 'vit_tini'; did you mean vit_tiny"):
        open_model("timm:vit_tini")


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_library_that_is_missing_is_named(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"this needs {library}, which is not installed \(pip install {library}"):
        open_model(f"{library}:resnet18")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18"])
def test_the_real_libraries(name):
    try:
        opened = open_model(name, pretrained=False)
    except ImportError as problem:
        pytest.skip(str(problem))
    assert opened.images.size == 224 and sum(p.numel() for p in opened.model.parameters()) == 11_689_512
