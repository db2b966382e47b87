"""Models by name: the course's own, a transformers folder or hub name, torchvision and timm."""

import difflib
import os
from pathlib import Path

import torch

from mlcomp.context import isolated
from mlcomp.deploy.image_models import from_timm, from_torchvision
from mlcomp.deploy.opened_model import (
    DIGITS,
    ENCODER,
    IMAGE_CLASSIFIER,
    IMAGENET,
    LANGUAGE_MODEL,
    ByteTokenizer,
    OpenedModel,
)
from mlcomp.deploy.transformers_models import from_transformers, longest_text
from mlcomp.models.byte_lm import CONTEXT, WIDTHS, byte_lm
from mlcomp.models.convnet import convnet
from mlcomp.models.minilm import minilm
from mlcomp.models.mlp import mlp
from mlcomp.models.mobilenet_v2 import MobileNetV2, mobilenet_v2
from mlcomp.models.smollm2 import smollm2


def course_names() -> list[str]:
    """Return the names of the models that the course brings."""
    return ["smollm2", "minilm", "mobilenet_v2", "convnet", "mlp", *(f"byte_lm_{width}" for width in WIDTHS)]


@isolated
def open_model(name: str, *, pretrained: bool = True, seed: int = 0) -> OpenedModel:
    """Return a model by its name, with its tokenizer and what kind of model it is.

    Args:
        name: one of the course's (``course_names()``: "smollm2", "convnet", "byte_lm_64", …), a folder that
            transformers has saved or the name of a model on its hub, "torchvision:resnet18", or "timm:NAME".
        pretrained: False: random weights from ``seed``, where only the shape of the network matters; a model of the
            hub still needs its configuration.
        seed: of the random weights; the global random state is left alone.
    Returns:
        The model in eval mode and in the dtype of its weights.
    Raises:
        ValueError: no such model, or one whose inputs are not known; the message says what was tried, and what to do.
        ImportError: transformers, torchvision or timm is not installed.
        mlcomp.assets.AssetError: the weights of a model of the course cannot be downloaded.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"a model is opened by its name, got {name!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        library, _, model = name.partition(":") if ":" in name else name.partition("/")
        if name in course_names():
            return _of_the_course(name, pretrained, seed)
        if Path(name).is_dir():
            return from_transformers(name, _ways(), pretrained=pretrained, hub=False)
        if library in ("torchvision", "timm") and model:
            return (from_torchvision if library == "torchvision" else from_timm)(model, pretrained=pretrained)
        near = difflib.get_close_matches(name.lower(), course_names(), n=2, cutoff=0.75)
        if near:
            raise ValueError(f"there is no model {name!r}; did you mean {' or '.join(near)}?")
        if ":" in name or name.startswith((".", "~", os.sep)) or name.count("/") > 1:
            raise ValueError(f"there is no folder {name!r}. {_ways()}")
        return from_transformers(name, _ways(), pretrained=pretrained, hub=True)


def _ways() -> str:
    return (
        f"A model is one of the course's ({', '.join(course_names())}), a folder with config.json and weights as "
        "transformers saves them, the name of one on its hub (owner/name), torchvision:NAME or timm:NAME"
    )


def _of_the_course(name: str, pretrained: bool, seed: int) -> OpenedModel:
    if name.startswith("byte_lm_"):
        bytes_only = byte_lm(int(name.rpartition("_")[2]), pretrained=pretrained, seed=seed)
        return OpenedModel(name, bytes_only, ByteTokenizer(), LANGUAGE_MODEL, longest=CONTEXT)
    if name in ("convnet", "mlp"):
        network = convnet if name == "convnet" else mlp
        return OpenedModel(name, network(pretrained=pretrained, seed=seed), None, IMAGE_CLASSIFIER, DIGITS)
    if name == "mobilenet_v2":
        return OpenedModel(
            name, mobilenet_v2() if pretrained else MobileNetV2().eval(), None, IMAGE_CLASSIFIER, IMAGENET
        )
    if not pretrained:
        raise ValueError(f"{name} comes with its weights only: leave pretrained=False (--random-weights) away")
    model, tokenizer = smollm2() if name == "smollm2" else minilm()
    kind = LANGUAGE_MODEL if name == "smollm2" else ENCODER
    return OpenedModel(name, model, tokenizer, kind, longest=longest_text(model))
